"""What a TensorRT session asks of the runtime and the driver, in which order.

There is no GPU here: the engine and the device are small fakes, and only the calls, the shapes and
the memory are judged. Numbers are judged on a GPU, by the tests marked so and gpu_acceptance.py.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from segdeploy.backends import open_session, require_backend
from segdeploy.backends.tensorrt import TENSORRT, check_engine
from segdeploy.backends.tensorrt_plan import Place, describe_place, pack_plan, strip_header
from segdeploy.backends.tensorrt_session import EngineSession
from segdeploy.core.contract import IoContract, TensorSpec, contract_tensors
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, DataError
from segdeploy.core.folder import Artifact
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.session import Array
from segdeploy.core.task import Task
from segdeploy.frameworks import cuda, tensorrt
from segdeploy.frameworks.cuda import CudaError, Gpu
from segdeploy.frameworks.tensorrt import BuilderLog

H200 = Gpu("NVIDIA H200", "9.0", "580.65", "13.0")
INPUTS, OUTPUTS = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)


class DataType(Enum):
    FLOAT = 0
    INT32 = 3
    UINT8 = 5


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class FakeDevice:
    """Device memory as a dict; notes every call."""

    stream = 77

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.memory: dict[int, Array] = {}
        self.pending: list[tuple[int, Array]] = []
        self.next = 1000

    def allocate(self, num_bytes: int) -> int:
        self.next += 1
        self.memory[self.next] = np.zeros(num_bytes, np.uint8)
        self.calls.append(f"allocate {num_bytes}")
        return self.next

    def free(self, address: int) -> None:
        self.calls.append("free")
        del self.memory[address]

    def upload(self, array: Array, address: int) -> None:
        self.calls.append("upload")
        self.memory[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def download(self, address: int, array: Array) -> None:
        self.calls.append("download")
        self.pending.append((address, array))

    def wait(self) -> None:
        self.calls.append("wait")
        for address, array in self.pending:
            array[...] = self.memory[address][: array.nbytes].view(array.dtype).reshape(array.shape)
        self.pending.clear()

    def close(self) -> None:
        self.calls.append("close")


class FakeContext:
    """Copies its input to its output; refuses what TensorRT would."""

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.fails = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.device.calls.append(f"shape {shape}")
        self.shape = shape
        return shape[0] < 9

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        assert address in self.device.memory
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.device.stream
        assert set(self.addresses) == {"tensor", "logits"}
        self.device.calls.append("execute")
        source = self.device.memory[self.addresses["tensor"]]
        size = int(np.prod(self.shape)) * 4
        self.device.memory[self.addresses["logits"]][:size] = source[:size]
        return not self.fails


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, device: FakeDevice, kinds: dict[str, DataType] | None = None) -> None:
        self.context = FakeContext(device)
        self.kinds = kinds or {"tensor": DataType.FLOAT, "logits": DataType.FLOAT}

    def create_execution_context(self) -> FakeContext:
        return self.context

    def get_tensor_name(self, index: int) -> str:
        return list(self.kinds)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in {"tensor", "image"} else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.kinds[name]

    def get_tensor_profile_shape(self, _name: str, _index: int) -> list[tuple[int, ...]]:
        return [(1, 3, 4, 4), (2, 3, 8, 8), (9, 3, 16, 16)]


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def session(device: FakeDevice) -> EngineSession:
    return EngineSession(FakeEngine(device), device, INPUTS, OUTPUTS, BuilderLog(lines=["[E] no"]))


def _batch(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_run_copies_in_runs_copies_out_and_waits(
    session: EngineSession, device: FakeDevice
) -> None:
    batch = _batch(2, 3, 5, 7)
    np.testing.assert_array_equal(session.run(batch)["logits"], batch)
    size = batch.nbytes
    assert device.calls == [
        "shape (2, 3, 5, 7)", f"allocate {size}", f"allocate {size}", "upload", "execute",
        "download", "wait",
    ]  # fmt: skip
    device.calls.clear()
    np.testing.assert_array_equal(session.run(batch[:, ::-1])["logits"], batch[:, ::-1])
    assert device.calls == ["upload", "execute", "download", "wait"]


def test_buffers_grow_and_are_kept(session: EngineSession, device: FakeDevice) -> None:
    for shape in ((1, 3, 4, 4), (2, 3, 16, 16), (1, 3, 5, 5), (2, 3, 16, 16)):
        batch = _batch(*shape)
        np.testing.assert_array_equal(session.run(batch)["logits"], batch)
    assert sum(call.startswith("allocate") for call in device.calls) == 4
    assert device.calls.count("free") == 2
    assert len(device.memory) == 2


def test_a_bound_batch_survives_other_runs(session: EngineSession, device: FakeDevice) -> None:
    first, second = _batch(1, 3, 8, 8), _batch(2, 3, 16, 16) + 1
    call = session.bind(first)
    session.run(second)
    device.calls.clear()
    call()
    assert device.calls == ["shape (1, 3, 8, 8)", "execute", "wait"]  # No copy in what is timed.
    made = device.memory[session._buffers["logits"][0]][: first.nbytes]
    np.testing.assert_array_equal(made.view(np.float32).reshape(first.shape), first)


def test_refusals(session: EngineSession, device: FakeDevice) -> None:
    with pytest.raises(DataError, match=r"\(1, 3, 4, 4\) to \(9, 3, 16, 16\)"):
        session.run(_batch(1, 3, 4, 17))
    with pytest.raises(ArtifactError, match="refuses the shape"):
        session.run(_batch(9, 3, 4, 4))
    with pytest.raises(DataError, match="must be float32"):
        session.run(_batch(1, 3, 4, 4).astype(np.float64))
    session._context.fails = True
    with pytest.raises(ArtifactError, match=r"cannot run the engine.\n\[E\] no"):
        session.run(_batch(1, 3, 4, 4))
    session.close()
    assert device.calls[-1] == "close"
    for use in (session.run, session.bind):
        with pytest.raises(ArtifactError, match=r"The session is closed\."):
            use(_batch(1, 3, 4, 4))


def test_int32_labels_are_narrowed_to_what_the_manifest_says(device: FakeDevice) -> None:
    labels = (TensorSpec("logits", "uint16", (None, None, None, None)),)
    engine = FakeEngine(device, {"tensor": DataType.FLOAT, "logits": DataType.INT32})
    check_engine(_fake_module(engine), engine, INPUTS, labels)
    session = EngineSession(engine, device, INPUTS, labels, BuilderLog())
    whole = np.arange(300, 300 + 48, dtype=np.int32).reshape(1, 3, 4, 4)
    found = session.run(whole.view(np.float32))["logits"]
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"image": DataType.FLOAT, "logits": DataType.FLOAT}, "manifest says"),
        ({"tensor": DataType.FLOAT, "logits": DataType.UINT8}, "'logits': 'uint8'"),
        ({"tensor": DataType.UINT8, "logits": DataType.FLOAT}, "'tensor': 'uint8'"),
    ],
)
def test_an_engine_that_contradicts_its_manifest_is_refused(
    device: FakeDevice, kinds: dict[str, DataType], words: str
) -> None:
    engine = FakeEngine(device, kinds)
    with pytest.raises(ArtifactError, match=words):
        check_engine(_fake_module(engine), engine, INPUTS, OUTPUTS)


def _fake_module(engine: Any) -> Any:
    """A module like TensorRT's, whose runtime loads `engine`."""

    class Logger:
        pass

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            assert plan == b"engine"
            return engine

    module = ModuleType("tensorrt")
    content = {
        "__version__": "11.4.0", "Builder": object, "ILogger": Logger, "Runtime": Runtime,
        "TensorIOMode": TensorIOMode,
    }  # fmt: skip
    module.__dict__.update(content)
    return module


@pytest.fixture
def gpu_here(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> Any:
    """A machine with an H200 and a TensorRT 11.4.0 whose engine copies."""
    module = _fake_module(FakeEngine(device))
    monkeypatch.setattr("segdeploy.backends.tensorrt.require_tensorrt", lambda: module)
    monkeypatch.setattr(
        "segdeploy.backends.tensorrt.require_gpu", lambda _index, _what: (object(), H200)
    )
    monkeypatch.setattr("segdeploy.backends.tensorrt.Device", lambda _driver, _index: device)
    monkeypatch.setattr(TENSORRT, "require", lambda: None, raising=False)
    return module


def _artifact(folder: Path, payload: bytes) -> Artifact:
    (folder / "model.plan").write_bytes(payload)
    manifest = Manifest(
        kind="artifact", model="tiny", task=Task.MULTICLASS, classes=("a", "b", "c"),
        preprocess=PreprocessSpec(), inputs=INPUTS, outputs=OUTPUTS, files={"model.plan": ""},
        target="tensorrt-fp16",
    )  # fmt: skip
    return Artifact(folder, manifest)


def _header(place: Place) -> dict[str, Any]:
    return {"format": 1, "built": place.__dict__}


def test_an_engine_of_this_place_opens_and_runs(gpu_here: Any, tmp_path: Path) -> None:
    payload = pack_plan(_header(describe_place(gpu_here, H200)), b"engine")
    session = open_session(_artifact(tmp_path, payload), "cuda", isolated=False)
    batch = _batch(1, 3, 8, 8)
    np.testing.assert_array_equal(session.run(batch)["logits"], batch)
    with pytest.raises(BackendUnavailableError, match=r"GPUs only.*'cpu'"):
        open_session(_artifact(tmp_path, payload), "cpu", isolated=False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gpu": "NVIDIA L4", "capability": "8.9"},
         r"GPU NVIDIA L4 \(here NVIDIA H200\), compute capability 8.9 \(here 9.0\)"),
        ({"tensorrt": "10.9.0"}, r"TensorRT 10.9.0 \(here 11.4.0\)"),
        ({"driver": "550.1"}, r"driver 550.1 \(here 580.65\)"),
        ({"platform": "linux-aarch64"}, "system linux-aarch64"),
        ({"flavour": "tensorrt_rtx"}, r"library tensorrt_rtx \(here tensorrt\)"),
        ({"gpu": "none", "capability": "none", "driver": "none"}, r"GPU none \(here NVIDIA H200\)"),
    ],
)  # fmt: skip
def test_an_engine_of_another_place_is_refused_before_it_is_read(
    gpu_here: Any, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    place = Place(**{**describe_place(gpu_here, H200).__dict__, **change})
    payload = pack_plan(_header(place), b"never to be read")  # The fake would fail on it.
    with pytest.raises(ArtifactError, match=reason) as caught:
        open_session(_artifact(tmp_path, payload), "cuda", isolated=False)
    assert "export it again" in caught.value.hint


def test_an_engine_of_tensorrt_rtx_goes_to_any_gpu_of_its_version(
    gpu_here: Any, tmp_path: Path
) -> None:
    gpu_here.__name__ = "tensorrt_rtx"
    payload = pack_plan(_header(describe_place(gpu_here, None)), b"engine")
    open_session(_artifact(tmp_path, payload), "cuda", isolated=False).close()


@pytest.mark.parametrize("payload", [b"", b"ftrt" * 99, pack_plan({"format": 2}, b"e"), b"\x02\0"])
@pytest.mark.usefixtures("gpu_here")
def test_what_is_no_engine_of_ours_is_refused(tmp_path: Path, payload: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"model\.plan is not a TensorRT engine"):
        open_session(_artifact(tmp_path, payload), "cuda", isolated=False)


def test_a_module_of_that_name_that_is_not_tensorrt_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise FileNotFoundError('libnvinfer.so.11')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"cannot be loaded: libnvinfer\.so\.11"):
        tensorrt.require_tensorrt()


def test_the_drivers_errors_carry_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def cuInit(self, _flags: int) -> int:  # noqa: N802  the driver's name
            return 0

        def cuDeviceGetCount(self, _count: Any) -> int:  # noqa: N802
            return 100

        def cuGetErrorString(self, _status: int, text: Any) -> int:  # noqa: N802
            text._obj.value = b"no CUDA-capable device is detected"
            return 0

    monkeypatch.setattr(cuda, "_load", Library)
    with pytest.raises(CudaError, match=r"cuDeviceGetCount: CUDA error 100 \(no CUDA-capable"):
        cuda.Driver().describe(0)
    assert cuda.find_gpu() is None


def test_another_gpu_or_driver_builds_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TENSORRT, "require", lambda: None, raising=False)
    monkeypatch.setattr("segdeploy.backends.tensorrt.find_gpu", lambda: H200)
    found = require_backend(TENSORRT)
    assert (found["gpu"], found["driver"]) == ("NVIDIA H200", "580.65")
    monkeypatch.setattr("segdeploy.backends.tensorrt.find_gpu", lambda: None)
    assert "gpu" not in require_backend(TENSORRT)


def test_the_bare_engine_can_be_cut_out(tmp_path: Path) -> None:
    place = Place("tensorrt", "11.4.0", "linux-x86_64", *["none"] * 4)
    payload = tmp_path / "model.plan"
    payload.write_bytes(pack_plan(_header(place), b"ftrt engine"))
    strip_header(payload, tmp_path / "bare.plan")
    assert (tmp_path / "bare.plan").read_bytes() == b"ftrt engine"
