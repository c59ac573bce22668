"""Opening ONNX Runtime on the device that was asked for, or not at all.

`cuda` is its CUDA provider, `tensorrt` its TensorRT provider (with CUDA for what that leaves). Seen
with onnxruntime-gpu 1.31 on a machine without CUDA: both are listed as available; a session that
asks for CUDA opens on the CPU and only logs why; TensorRT raises, and the Python layer then tries
the CPU by itself. So: the provider's library is loaded before (the loader names what is missing),
the Python layer's fallback is off, and the session is asked which providers it has and which nodes
each of them took. `session.disable_cpu_ep_fallback` is of no use here: arithmetic on shapes belongs
on the CPU.

TF32 is on by default in both; fp32 means fp32, so it is switched off, for TensorRT by the variable
that NVIDIA's libraries read when they are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ArtifactError, BackendUnavailableError
from segdeploy.core.session import Array
from segdeploy.core.target import Precision
from segdeploy.frameworks.cuda import require_gpu
from segdeploy.frameworks.onnxruntime import require_onnxruntime, session_options
from segdeploy.measure.regions import Region, enter

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_HEAVY = {"Conv", "ConvTranspose", "MatMul", "Gemm"}  # Where the time goes.
_LIBRARY = re.compile(r"lib[\w+-]+\.so[.\d]*|\b[\w-]+\.dll\b")
_RECORD = "session.record_ep_graph_assignment_info"
_TF32 = "NVIDIA_TF32_OVERRIDE"
_GPU_HINT = (
    "Use --device cpu, or install 'segdeploy[gpu]' in place of 'segdeploy[cpu]' beside an NVIDIA "
    "driver, CUDA, cuDNN and, for --device tensorrt, TensorRT."
)


def open_runtime(
    source: str | bytes, device: str, what: str, precision: Precision = Precision.FP32
) -> Any:
    """Return an onnxruntime.InferenceSession for a path or a serialised graph.

    Raises:
        ArtifactError: If it is no loadable graph; `what` names it.
        BackendUnavailableError: If the device is missing, or is not what would really run.
    """
    runtime = require_onnxruntime()
    kind, _, number = device.partition(":")
    if kind not in PROVIDERS or (number and not number.isdigit()):
        raise BackendUnavailableError(
            f"ONNX Runtime is not set up for the device '{device}'.",
            hint="Use cpu, cuda or tensorrt.",
        )
    if PROVIDERS[kind] not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"This onnxruntime {runtime.__version__} has no {PROVIDERS[kind]}.", hint=_GPU_HINT
        )
    options = session_options()
    if kind != "cpu":
        os.environ.setdefault(_TF32, "0")
        _require_libraries(runtime, kind)
        require_gpu(int(number or 0), f"ONNX Runtime's {PROVIDERS[kind]}")
        options.add_session_config_entry(_RECORD, "1")
    try:
        session = runtime.InferenceSession(
            source, options, providers=choose_providers(kind, number or "0", precision),
            enable_fallback=0,
        )  # fmt: skip
    except Exception as error:
        raise _why_not_opened(error, kind, what) from error
    check_providers(kind, session.get_providers())
    if kind != "cpu" and hasattr(session, "get_provider_graph_assignment_info"):
        check_assignment(kind, _count_nodes(session))
    return session


def choose_providers(kind: str, number: str, precision: Precision) -> list[Any]:
    """Return what a session is asked for: providers with their options, the first one first."""
    cuda = (PROVIDERS["cuda"], {"device_id": number, "use_tf32": "0"})
    if kind == "cuda":
        return [cuda]
    if kind == "cpu":
        return [PROVIDERS["cpu"]]
    options = {"device_id": number}
    if precision is not Precision.FP32:  # The graph has the types; TensorRT must be let use them.
        options[f"trt_{precision}_enable"] = "1"
    return [(PROVIDERS["tensorrt"], options), cuda]


def _require_libraries(runtime: Any, kind: str) -> None:
    """Load a provider's library and what it links to, as ONNX Runtime will.

    Raises:
        BackendUnavailableError: If one of them is missing; the loader names the first.
    """
    folder = Path(runtime.__file__).parent / "capi"
    library = folder / f"libonnxruntime_providers_{kind}.so"
    if not library.is_file():
        return  # Another system, or built in: what opens the session will tell.
    if hasattr(runtime, "preload_dlls"):  # CUDA from Python packages; it prints what it misses.
        with contextlib.redirect_stdout(io.StringIO()):
            runtime.preload_dlls()
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as error:
        missing = missing_library(str(error))
        if missing is not None:
            raise BackendUnavailableError(
                f"ONNX Runtime's {PROVIDERS[kind]} cannot be loaded: {missing} is missing.",
                hint=_GPU_HINT,
            ) from error


def missing_library(message: str) -> str | None:
    """Return the library that a loader's message misses; None if it says something else."""
    where = re.search(r"cannot open shared object|Failed to load|Unable to load|not found", message)
    named = [n for n in _LIBRARY.findall(message) if not n.startswith("libonnxruntime")]
    return named[-1] if where and named else None


def _why_not_opened(error: Exception, kind: str, what: str) -> Exception:
    text = str(error)
    missing = missing_library(text) if kind != "cpu" else None
    if missing is not None:
        return BackendUnavailableError(
            f"ONNX Runtime's {PROVIDERS[kind]} cannot be loaded: {missing} is missing.",
            hint=_GPU_HINT,
        )
    if kind != "cpu" and re.search(r"CUDA failure|install TensorRT|Create.*Provider", text):
        return BackendUnavailableError(
            f"ONNX Runtime's {PROVIDERS[kind]} does not work here: {text.strip()[-500:]}",
            hint=_GPU_HINT,
        )
    return ArtifactError(f"ONNX Runtime cannot open {what}: {error}", hint="Export it again.")


def check_providers(kind: str, found: list[str]) -> None:
    """Check that a session's first provider is the one that was asked for.

    Raises:
        BackendUnavailableError: If it fell back to another.
    """
    if found[:1] != [PROVIDERS[kind]]:
        raise BackendUnavailableError(
            f"ONNX Runtime was asked for {PROVIDERS[kind]} and fell back to "
            f"{', '.join(found) or 'nothing'}.",
            hint=_GPU_HINT,
        )


def _count_nodes(session: Any) -> Counter[tuple[str, str]]:
    """Return how many nodes of each operator each provider took: (provider, operator) -> count."""
    return Counter(
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )


def check_assignment(kind: str, taken: Counter[tuple[str, str]]) -> None:
    """Check that the asked provider runs what takes the time, not only something.

    Raises:
        BackendUnavailableError: If it took no node, or a convolution is left to another.
    """
    own = PROVIDERS[kind]
    elsewhere = Counter[str]()
    for (provider, operator), count in taken.items():
        if provider != own and operator in _HEAVY:
            elsewhere[provider] += count
    num_own = sum(count for (provider, _), count in taken.items() if provider == own)
    if taken and (elsewhere or not num_own):
        others = ", ".join(f"{name} {count}" for name, count in sorted(elsewhere.items()))
        raise BackendUnavailableError(
            f"ONNX Runtime's {own} took {num_own} of {sum(taken.values())} nodes of the graph; "
            f"convolutions and matrix products left to others: {others or 'none'}.",
            hint="Use another --device for this precision, e.g. --device cuda.",
        )


def bind_io(
    session: Any, device: str, name: str, batch: Array, outputs: Sequence[str], kind: str = "cuda"
) -> Callable[[], None]:
    """Return a call that runs a batch which lies on the GPU, leaves the outputs there, and waits.

    What the other GPU runtimes are measured by. The two GPU providers share CUDA's memory.
    """
    index = int(device.partition(":")[2] or 0)
    runtime = require_onnxruntime()
    binding = session.io_binding()
    held = runtime.OrtValue.ortvalue_from_numpy(batch, kind, index)
    binding.bind_ortvalue_input(name, held)
    for output in outputs:
        binding.bind_output(output, kind, index)

    def call() -> None:
        try:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run a batch of shape {batch.shape}: {error}"
            ) from error

    return call


def run_in_steps(
    session: Any, device: str, name: str, batch: Array, outputs: Sequence[str], kind: str = "cuda"
) -> list[Array]:
    """Return the outputs of a batch on the CPU, with both copies made apart from the run.

    `session.run` makes the same copies inside, where nobody can time them.
    """
    index = int(device.partition(":")[2] or 0)
    try:
        enter(Region.HOST_TO_DEVICE)
        held = require_onnxruntime().OrtValue.ortvalue_from_numpy(batch, kind, index)
        binding = session.io_binding()
        binding.bind_ortvalue_input(name, held)
        for output in outputs:
            binding.bind_output(output, kind, index)
        binding.synchronize_inputs()
        enter(Region.RUN)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        enter(Region.DEVICE_TO_HOST)
        found: list[Array] = binding.copy_outputs_to_cpu()
    except Exception as error:
        raise ArtifactError(
            f"ONNX Runtime cannot run a batch of shape {batch.shape}: {error}"
        ) from error
    return found
