"""ONNX: exported by torch.onnx (dynamo), run by ONNX Runtime on CPU or CUDA.

fp16 and int8 are not built here: they are graph passes, so `build` takes a finished graph as it is
(`request.graph`) or exports the plain fp32 one from the checkpoint. Running needs onnxruntime only;
without the onnx package an int8 graph opens unchanged (right, but slower on x86).

ONNX Runtime lists CUDA as available whatever the machine has, and falls back to the CPU in silence:
the session is asked what it really got.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError
from segdeploy.core.files import write_bytes
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.onnxruntime import find_onnxruntime, require_onnxruntime, session_options

_X86 = {"x86_64", "amd64", "i386", "i686"}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession:
    """An ONNX Runtime session on one device."""

    def __init__(
        self, runtime: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._runtime = runtime
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        check_batch(batch, self.inputs[0])
        found = self._call(np.ascontiguousarray(batch))
        return {spec.name: array for spec, array in zip(self.outputs, found, strict=True)}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once; I/O binding was measured to gain nothing."""
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)

        def call() -> None:
            self._call(contiguous)

        return call

    def close(self) -> None:
        """Free the runtime's session."""
        self._runtime = None

    def _call(self, batch: Array) -> list[Array]:
        if self._runtime is None:
            raise ArtifactError("The session is closed.")
        try:
            found: list[Array] = self._runtime.run(
                [spec.name for spec in self.outputs], {self.inputs[0].name: batch}
            )
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run a batch of shape {batch.shape}: {error}"
            ) from error
        return found


class OnnxBackend(Backend):
    """Builds `model.onnx` and opens it with ONNX Runtime."""

    name = "onnx"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)
    payload_name = "model.onnx"
    is_isolated = False

    def require(self) -> None:
        """Raise BackendUnavailableError if onnxruntime is missing."""
        find_onnxruntime()

    def build(self, request: BuildRequest) -> None:
        """Write the plain fp32 graph of the checkpoint, or the finished `request.graph`.

        Raises:
            BuildError: If the exporter fails.
        """
        from segdeploy.backends.onnx_export import export_checkpoint
        from segdeploy.graph.metadata import set_metadata
        from segdeploy.graph.proto import graph_bytes, load_graph

        if request.graph is None:
            model = export_checkpoint(request.checkpoint, request.size)
        else:
            model = load_graph(request.graph)
        facts = request.options.get("facts", {})
        write_bytes(request.payload, graph_bytes(set_metadata(model, facts)))

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the artifact's graph on `cpu`, `cuda` or `cuda:N`.

        Raises:
            ArtifactError: If the graph cannot be loaded or contradicts the manifest.
            BackendUnavailableError: If onnxruntime or the device is missing.
        """
        manifest = folder.manifest
        runtime = open_runtime(_graph_source(folder, device), device, str(folder.payload))
        _check_contract(runtime, manifest.inputs, manifest.outputs, folder.payload)
        return OnnxSession(runtime, manifest.inputs, manifest.outputs)


def open_runtime(source: str | bytes, device: str, what: str) -> Any:
    """Return an onnxruntime.InferenceSession for a path or a serialised graph.

    Raises:
        ArtifactError: If it is no loadable graph; `what` names it.
        BackendUnavailableError: If the device is missing.
    """
    runtime = require_onnxruntime()
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS or (index and not index.isdigit()):
        raise BackendUnavailableError(
            f"ONNX Runtime is not set up for the device '{device}'.", hint="Use cpu or cuda."
        )
    if _PROVIDERS[kind] not in runtime.get_available_providers():
        raise BackendUnavailableError(
            f"This onnxruntime {runtime.__version__} has no {_PROVIDERS[kind]}.", hint=_GPU_HINT
        )
    provider = (
        (_PROVIDERS[kind], {"device_id": index or "0"}) if kind == "cuda" else _PROVIDERS[kind]
    )
    try:
        session = runtime.InferenceSession(source, session_options(), providers=[provider])
    except Exception as error:
        raise ArtifactError(
            f"ONNX Runtime cannot open {what}: {error}", hint="Export it again."
        ) from error
    if _PROVIDERS[kind] not in session.get_providers():
        raise BackendUnavailableError(
            f"ONNX Runtime fell back to {', '.join(session.get_providers())}: no usable CUDA.",
            hint=_GPU_HINT,
        )
    return session


_GPU_HINT = (
    "Use --device cpu, or install 'segdeploy[gpu]' in place of 'segdeploy[cpu]' beside an NVIDIA "
    "driver, CUDA and cuDNN."
)


def _graph_source(folder: ModelFolder, device: str) -> str | bytes:
    """Return the path, or the rewritten graph where x86 wants unsigned int8 activations."""
    is_int8 = (folder.manifest.target or "").endswith(f"-{Precision.INT8}")
    is_x86 = platform.machine().lower() in _X86
    if not (is_int8 and is_x86 and device == "cpu") or importlib.util.find_spec("onnx") is None:
        return str(folder.payload)
    from segdeploy.graph.proto import graph_bytes, load_graph
    from segdeploy.graph.u8_activations import use_u8_activations

    return graph_bytes(use_u8_activations(load_graph(folder.payload)))


def _check_contract(
    runtime: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    payload: Path,
) -> None:
    found = [v.name for v in runtime.get_inputs()], [v.name for v in runtime.get_outputs()]
    wanted = [s.name for s in inputs], [s.name for s in outputs]
    if found != wanted:
        raise ArtifactError(
            f"{payload} takes and gives {found}, but the manifest says {wanted}.",
            hint="Export it again.",
        )


ONNX = OnnxBackend()
