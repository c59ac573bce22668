"""ONNX: exported by torch.onnx (dynamo), run by ONNX Runtime on CPU or GPU.

fp16 and int8 are not built here: they are graph passes, so `build` takes a finished graph as it is
(`request.graph`) or exports the plain fp32 one from the checkpoint. Running needs onnxruntime only;
without the onnx package an int8 graph opens unchanged (right, but slower on x86).

Which device really runs a session is the business of `onnx_providers`.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.backends.onnx_providers import bind_io, open_runtime, run_in_steps
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError
from segdeploy.core.files import write_bytes
from segdeploy.core.folder import ModelFolder
from segdeploy.core.foreign import is_foreign
from segdeploy.core.session import Array, Backend, BuildRequest, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.onnxruntime import find_onnxruntime
from segdeploy.measure.regions import is_booked

_X86 = {"x86_64", "amd64", "i386", "i686"}


class OnnxSession:
    """An ONNX Runtime session on one device (for batches that `bind` puts there)."""

    def __init__(
        self,
        runtime: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: str = "cpu",
    ) -> None:
        self._runtime = runtime
        self._device = device
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)
        if self._device != "cpu" and self._runtime is not None and is_booked():
            names = [spec.name for spec in self.outputs]
            found = run_in_steps(
                self._runtime, self._device, self.inputs[0].name, contiguous, names
            )
        else:
            found = self._call(contiguous)
        return {spec.name: array for spec, array in zip(self.outputs, found, strict=True)}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once; on a GPU it is there already, outputs stay.

        On the CPU I/O binding was measured to gain nothing.
        """
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)
        if self._device != "cpu" and self._runtime is not None:
            names = [spec.name for spec in self.outputs]
            bound = bind_io(self._runtime, self._device, self.inputs[0].name, contiguous, names)

        def call() -> None:
            if self._device == "cpu" or self._runtime is None:
                self._call(contiguous)
            else:
                bound()

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
    recipe = 1

    def require(self) -> None:
        """Raise BackendUnavailableError if onnxruntime is missing."""
        find_onnxruntime()

    def build(self, request: BuildRequest) -> None:
        """Write the plain fp32 graph of the checkpoint, or the finished `request.graph`.

        Raises:
            BuildError: If the exporter fails.
        """
        from segdeploy.graph.metadata import set_metadata
        from segdeploy.graph.proto import graph_bytes, load_graph

        if request.graph is None and is_foreign(request.checkpoint):
            from segdeploy.backends.foreign_export import export_foreign

            model = export_foreign(request.checkpoint, request.size)
        elif request.graph is None:
            from segdeploy.backends.onnx_export import export_checkpoint

            model = export_checkpoint(request.checkpoint, request.size)
        else:
            model = load_graph(request.graph)
        facts = request.options.get("facts", {})
        write_bytes(request.payload, graph_bytes(set_metadata(model, facts)))

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the artifact's graph on `cpu`, `cuda[:N]` or `tensorrt[:N]`.

        Raises:
            ArtifactError: If the graph cannot be loaded or contradicts the manifest.
            BackendUnavailableError: If onnxruntime or the device is missing.
        """
        manifest = folder.manifest
        precision = Precision((manifest.target or "onnx-fp32").rpartition("-")[2])
        source = graph_source(folder, device)
        runtime = open_runtime(source, device, str(folder.payload), precision)
        _check_contract(runtime, manifest.inputs, manifest.outputs, folder.payload)
        return OnnxSession(runtime, manifest.inputs, manifest.outputs, device)


def graph_source(folder: ModelFolder, device: str) -> str | bytes:
    """Return the path, or the int8 graph as the CPU's kernels want it."""
    is_int8 = (folder.manifest.target or "").endswith(f"-{Precision.INT8}")
    if not (is_int8 and device == "cpu") or importlib.util.find_spec("onnx") is None:
        return str(folder.payload)
    from segdeploy.graph.byte_kernels import use_byte_kernels
    from segdeploy.graph.proto import graph_bytes, load_graph

    is_x86 = platform.machine().lower() in _X86
    return graph_bytes(use_byte_kernels(load_graph(folder.payload), unsigned=is_x86))


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
