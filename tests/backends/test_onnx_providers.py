"""ONNX Runtime's providers: what was asked for runs, or the error says what is missing.

The messages are those of onnxruntime-gpu 1.31.1 on a machine without CUDA, as it gave them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from segdeploy.backends import onnx_providers
from segdeploy.backends.onnx_providers import (
    bind_io,
    check_assignment,
    check_providers,
    choose_providers,
    missing_library,
    open_runtime,
    run_in_steps,
)
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, ConfigError
from segdeploy.core.session import check_device
from segdeploy.core.target import Precision
from segdeploy.frameworks.onnxruntime import require_onnxruntime
from segdeploy.measure.regions import sample_regions

CUDA, TENSORRT, CPU = (onnx_providers.PROVIDERS[kind] for kind in ("cuda", "tensorrt", "cpu"))
LOADING = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library /venv/lib/python3.11/site-packages/"
    "onnxruntime/capi/libonnxruntime_providers_cuda.so with error: {}: cannot open shared object "
    "file: No such file or directory"
)
PLEASE_INSTALL = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::"
    "RegisterTensorRTPluginsAsCustomOps(PySessionOptions&, const onnxruntime::ProviderOptions&) "
    "Please install TensorRT libraries as mentioned in the GPU requirements page, make sure "
    "they're in the PATH or LD_LIBRARY_PATH, and that your GPU is supported."
)


@pytest.mark.parametrize(
    ("message", "library"),
    [
        (LOADING.format("libcublasLt.so.13"), "libcublasLt.so.13"),
        (LOADING.format("libcudnn.so.9"), "libcudnn.so.9"),
        (LOADING.format("libnvinfer.so.10"), "libnvinfer.so.10"),
        ("libcublas.so.13: cannot open shared object file: No such file", "libcublas.so.13"),
        ("Unable to load from any of {libcudnn_cnn.so.9.1.0}", "libcudnn_cnn.so.9.1.0"),
        ("libonnxruntime_providers_cuda.so: undefined symbol: Provider_GetHost", None),
        ("This is an invalid model. Error: node libfoo.so", None),
    ],
)
def test_the_missing_library_is_read_from_the_loaders_words(
    message: str, library: str | None
) -> None:
    assert missing_library(message) == library


@pytest.mark.parametrize("name", ["cuda:1", "tensorrt", "tensorrt:0"])
def test_devices_that_can_be_asked_for(name: str) -> None:
    check_device(name)


@pytest.mark.parametrize("name", ["tensorrt:", "TensorRT", "cuda:x", "tensorrt:1:2"])
def test_devices_that_cannot(name: str) -> None:
    with pytest.raises(ConfigError, match="tensorrt:N"):
        check_device(name)


def test_tf32_is_off_and_the_asked_provider_comes_first() -> None:
    ((name, options),) = choose_providers("cuda", "1", Precision.FP32)
    assert (name, options) == (CUDA, {"device_id": "1", "use_tf32": "0"})
    first, second = choose_providers("tensorrt", "0", Precision.INT8)
    assert first == (TENSORRT, {"device_id": "0", "trt_int8_enable": "1"})
    assert second[0] == CUDA
    assert choose_providers("tensorrt", "0", Precision.FP32)[0] == (TENSORRT, {"device_id": "0"})
    assert choose_providers("cpu", "0", Precision.FP16) == [CPU]


@pytest.mark.parametrize(
    ("kind", "found"), [("cuda", [CPU]), ("tensorrt", [CUDA, CPU]), ("cuda", [])]
)
def test_a_session_that_fell_back_is_refused(kind: str, found: list[str]) -> None:
    with pytest.raises(BackendUnavailableError, match="fell back to"):
        check_providers(kind, found)
    check_providers(kind, [onnx_providers.PROVIDERS[kind], *found])


def test_the_provider_must_run_what_takes_the_time() -> None:
    shapes = {(CPU, "Shape"): 4, (CPU, "Concat"): 4}
    check_assignment("cuda", Counter({(CUDA, "Conv"): 66, **shapes}))
    with pytest.raises(BackendUnavailableError, match=r"took 60 of 71 .*CPUExecutionProvider 3"):
        check_assignment("cuda", Counter({(CUDA, "Relu"): 60, (CPU, "Conv"): 3, **shapes}))
    with pytest.raises(BackendUnavailableError, match="took 0 of 8"):
        check_assignment("tensorrt", Counter(shapes))


class FakeRuntime:
    """A build of ONNX Runtime with GPU providers, and no libraries or with them."""

    __version__ = "1.31.1"

    def __init__(self, folder: Path, failure: Exception | None = None) -> None:
        self.__file__ = str(folder / "__init__.py")
        self.failure = failure
        self.asked: dict[str, Any] = {}

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        print("Failed to load libcublasLt.so.13")  # noqa: T201  as it does

    def InferenceSession(self, source: object, options: object, **asked: Any) -> Any:  # noqa: N802
        self.asked = asked
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(get_providers=lambda: [CPU])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_providers, "require_gpu", lambda _index, _what: None)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # Set by the code; here it is undone.


def _use(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> FakeRuntime:
    monkeypatch.setattr(onnx_providers, "require_onnxruntime", lambda: runtime)
    return runtime


@pytest.mark.usefixtures("gpu")
def test_a_silent_fall_back_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = _use(monkeypatch, FakeRuntime(tmp_path))
    with pytest.raises(BackendUnavailableError, match="fell back to CPUExecutionProvider"):
        open_runtime("model.onnx", "cuda", "model.onnx")
    assert runtime.asked["enable_fallback"] == 0  # The Python layer's own second try.


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (RuntimeError(PLEASE_INSTALL), BackendUnavailableError, "Please install TensorRT"),
        (RuntimeError(LOADING.format("libcudnn.so.9")), BackendUnavailableError,
         r"libcudnn\.so\.9 is missing"),
        (RuntimeError("CUDA failure 35: CUDA driver version is insufficient"),
         BackendUnavailableError, "failure 35"),
        (RuntimeError("This is an invalid model."), ArtifactError, "cannot open model.onnx"),
    ],
)  # fmt: skip
def test_what_the_runtime_raises_is_told_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    _use(monkeypatch, FakeRuntime(tmp_path, failure))
    with pytest.raises(kind, match=words):
        open_runtime("model.onnx", "tensorrt", "model.onnx")


def test_a_missing_library_is_named_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The provider's library is a real one that links to what nobody has."""
    import shutil
    import subprocess

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path / "capi"
    folder.mkdir()
    (tmp_path / "empty.c").write_text("int nothing_here(void) { return 0; }\n")
    absent, shared = tmp_path / "libcublasLt.so.99", folder / "libonnxruntime_providers_shared.so"
    library = folder / "libonnxruntime_providers_cuda.so"
    build = [compiler, "-shared", "-fPIC", str(tmp_path / "empty.c")]
    subprocess.run([*build, f"-Wl,-soname,{absent.name}", "-o", str(absent)], check=True)
    subprocess.run([*build, "-o", str(shared)], check=True)
    link = ["-Wl,--no-as-needed", str(absent), "-o", str(library)]
    subprocess.run([*build, *link], check=True)
    absent.unlink()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    runtime = _use(monkeypatch, FakeRuntime(tmp_path))
    with pytest.raises(BackendUnavailableError, match=r"libcublasLt\.so\.99 is missing") as caught:
        open_runtime("model.onnx", "cuda", "model.onnx")
    assert "segdeploy[gpu]" in caught.value.hint
    assert not runtime.asked
    assert not capsys.readouterr().out


def test_a_runtime_without_gpu_providers_says_so() -> None:
    if CUDA in require_onnxruntime().get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    for device, name in (("cuda", CUDA), ("tensorrt:1", TENSORRT)):
        with pytest.raises(BackendUnavailableError, match=f"has no {name}"):
            open_runtime("model.onnx", device, "model.onnx")


def test_a_bound_batch_stays_where_it_was_put_and_is_run_by_each_call() -> None:
    """The same binding on the CPU, where its outputs can be looked at."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])], "double",
        [value("x", TensorProto.FLOAT, ["N"])], [value("y", TensorProto.FLOAT, ["N"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = open_runtime(model.SerializeToString(), "cpu", "a graph")
    made: list[Any] = []

    class Spy:
        """The session, whose bindings are kept."""

        run_with_iobinding = session.run_with_iobinding

        def io_binding(self) -> Any:
            made.append(session.io_binding())
            return made[-1]

    call = bind_io(Spy(), "cuda:0", "x", np.arange(4, dtype=np.float32), ["y"], kind="cpu")
    for _ in range(2):
        call()
        np.testing.assert_array_equal(made[0].copy_outputs_to_cpu()[0], [0, 2, 4, 6])
    wrong = bind_io(Spy(), "cuda:0", "x", np.zeros(4, np.float64), ["y"], kind="cpu")
    with pytest.raises(ArtifactError, match=r"cannot run a batch of shape \(4,\)"):
        wrong()


def test_a_run_in_steps_gives_what_a_run_gives_and_books_its_copies() -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = open_runtime(model.SerializeToString(), "cpu", "neg")
    batch = np.arange(1000, dtype=np.float32)

    def call() -> list[Any]:
        return run_in_steps(session, "cuda:0", "x", batch, ["y"], kind="cpu")

    np.testing.assert_array_equal(call()[0], session.run(None, {"x": batch})[0])
    _, books = sample_regions(call, 0)
    assert min(books[name][0] for name in ("host_to_device", "run")) > 0
    with pytest.raises(ArtifactError, match="cannot run a batch of shape"):
        run_in_steps(session, "cuda:0", "x", batch.astype(np.float64), ["y"], kind="cpu")
