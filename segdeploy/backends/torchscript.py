"""TorchScript fp32: traced and frozen, run by torch or libtorch on CPU or CUDA.

torch.jit is deprecated (torch 2.13) but still what C++ and older servers load. A TorchScript file
is code: open only files from people you trust.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from segdeploy.backends.batch import check_batch
from segdeploy.backends.pytorch import (
    require_device,
    to_device,
    use_exact_float32,
    wait_for_device,
)
from segdeploy.core.contract import InputKind, TensorSpec
from segdeploy.core.errors import ArtifactError, BuildError
from segdeploy.core.files import canonical_json
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.torch import find_torch
from segdeploy.frameworks.torchscript import load_script, save_script, trace_module
from segdeploy.measure.regions import Region, enter

if TYPE_CHECKING:
    import torch

_SAMPLE_SIZE = (96, 128)
FACTS = "segdeploy.json"
"""Name of the extra file that says what the module is."""


class TorchScriptSession:
    """A loaded TorchScript module on one device."""

    def __init__(
        self,
        script: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: str,
    ) -> None:
        self._script = script
        self.inputs = inputs
        self.outputs = outputs
        self._device = device

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        enter(Region.HOST_TO_DEVICE)
        check_batch(batch, self.inputs[0])
        placed = to_device(batch, self._device)
        enter(Region.RUN, self._wait)
        found = self._forward(placed)
        enter(Region.DEVICE_TO_HOST, self._wait)
        tensors = found if isinstance(found, tuple) else (found,)
        return {
            spec.name: tensor.cpu().numpy()
            for spec, tensor in zip(self.outputs, tensors, strict=True)
        }

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once and waits for the device."""
        check_batch(batch, self.inputs[0])
        placed = to_device(batch, self._device)

        def call() -> None:
            self._forward(placed)
            self._wait()

        return call

    def close(self) -> None:
        """Free the module."""
        self._script = None

    def _wait(self) -> None:
        wait_for_device(self._device)

    def _forward(self, tensor: torch.Tensor) -> Any:
        import torch

        if self._script is None:
            raise ArtifactError("The session is closed.")
        try:
            with torch.inference_mode():
                return self._script(tensor)
        except RuntimeError as error:
            raise ArtifactError(
                f"TorchScript cannot run a batch of shape {tuple(tensor.shape)}: {error}"
            ) from error


class TorchScriptBackend(Backend):
    """Builds and opens `model.ts`."""

    name = "torchscript"
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    payload_name = "model.ts"
    is_isolated = False

    def require(self) -> None:
        """Raise BackendUnavailableError if torch is missing."""
        find_torch()

    def build(self, request: BuildRequest) -> None:
        """Trace the checkpoint's module with its contract.

        Raises:
            BuildError: If torch.jit cannot trace or save it.
            CheckpointError: If the weights do not fit the model.
        """
        import torch

        from segdeploy.backends.contract_module import ContractModule
        from segdeploy.zoo import load_module

        manifest = request.checkpoint.manifest
        module = ContractModule(
            load_module(request.checkpoint),
            request.io,
            manifest.task,
            len(manifest.classes),
            manifest.preprocess,
        )
        height, width = request.size or _SAMPLE_SIZE
        sample = torch.zeros(2, 3, height, width)
        if request.io.input is InputKind.IMAGE:
            sample = torch.zeros(2, height, width, 3, dtype=torch.uint8)
        try:
            script = trace_module(module, sample)
            facts = canonical_json(request.options.get("facts", {})).decode()
            save_script(script, request.payload, {FACTS: facts})
        except (RuntimeError, TypeError, ValueError) as error:
            raise BuildError(
                f"torch.jit cannot trace {manifest.model}.", log=str(error)[-2000:]
            ) from error

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the artifact's module on `cpu` or `cuda`.

        Raises:
            ArtifactError: If the payload cannot be read.
            BackendUnavailableError: If torch or the device is missing.
        """
        require_device(device)
        use_exact_float32(device)
        try:
            script = load_script(folder.payload, device)
        except Exception as error:
            raise ArtifactError(
                f"torch.jit cannot load {folder.payload}: {error}", hint="Export it again."
            ) from error
        manifest = folder.manifest
        return TorchScriptSession(script, manifest.inputs, manifest.outputs, device)


TORCHSCRIPT = TorchScriptBackend()
