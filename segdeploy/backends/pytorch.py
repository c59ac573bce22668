"""Eager PyTorch fp32: the reference of every comparison. Not an export target.

It runs the module as it was trained, in the plain memory format: channels_last picks other kernels
and would move the reference by their rounding. `ModuleSession` also serves a live module, so that
train's validation and `evaluate` share everything behind the session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    CheckpointError,
    SegDeployError,
)
from segdeploy.core.folder import Checkpoint, ModelFolder
from segdeploy.core.session import Array, Session
from segdeploy.frameworks.torch import require_torch
from segdeploy.measure.regions import Region, enter

if TYPE_CHECKING:
    import torch
    from torch import nn


def require_device(device: str) -> None:
    """Raise BackendUnavailableError if torch cannot use `device` (`cpu`, `cuda` or `cuda:N`)."""
    torch = require_torch()
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) < found:
        return
    raise BackendUnavailableError(
        f"The device '{device}' is not usable: torch {torch.__version__} finds {found} CUDA GPUs.",
        hint="Use --device cpu, or install a CUDA build of torch and the NVIDIA driver.",
    )


def use_exact_float32(device: str) -> None:
    """Switch TF32 off, which cuDNN's convolutions use by default: fp32 means fp32."""
    if device.startswith("cuda"):
        import torch

        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


class ModuleSession:
    """Runs a live module; the module's own mode is set to eval and stays so.

    Args:
        module: Takes float32 NCHW; gives a tensor or a dict with "out".
        inputs: What a batch must be (one tensor).
        outputs: One tensor, the logits.
        device: Where the module is or is moved to.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: str = "cpu",
    ) -> None:
        require_device(device)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._device = device
        self._module: nn.Module | None = module.to(device)

    def run(self, batch: Array) -> dict[str, Array]:
        """Return {"logits": float32 (N, K, H, W)}."""
        enter(Region.HOST_TO_DEVICE)
        placed = self._place(batch)
        enter(Region.RUN, self._wait)
        logits = self._forward(placed)
        enter(Region.DEVICE_TO_HOST, self._wait)
        return {self.outputs[0].name: logits.float().cpu().numpy()}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once and waits for the device."""
        placed = self._place(batch)

        def call() -> None:
            self._forward(placed)
            self._wait()

        return call

    def close(self) -> None:
        """Let go of the module."""
        self._module = None

    def _wait(self) -> None:
        wait_for_device(self._device)

    def _place(self, batch: Array) -> torch.Tensor:
        check_batch(batch, self.inputs[0])
        return to_device(batch, self._device)

    def _forward(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        from segdeploy.zoo import main_logits

        if self._module is None:
            raise ArtifactError("The session is closed.")
        if self._module.training:
            self._module.eval()
        try:
            with torch.inference_mode():
                logits: torch.Tensor = main_logits(self._module(tensor))
                return logits
        except (SegDeployError, MemoryError):
            raise
        except (Exception, SystemExit) as error:  # The module may be code of one's own.
            raise ArtifactError(
                f"The module cannot run a batch of shape {tuple(tensor.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error


def to_device(batch: Array, device: str) -> torch.Tensor:
    """Return the batch as a tensor of its own type; a read-only array is copied."""
    import numpy as np
    import torch

    tensor: torch.Tensor = torch.from_numpy(np.require(batch, requirements=["C", "W"]))
    return tensor.to(device)


def wait_for_device(device: str) -> None:
    """Return when the device has finished what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


class PyTorchBackend:
    """Opens a checkpoint as the reference."""

    name = "pytorch"

    def require(self) -> None:
        """Raise BackendUnavailableError if torch is missing."""
        require_torch()

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open a checkpoint as eager fp32.

        Raises:
            CheckpointError: If the weights do not fit the model.
            BackendUnavailableError: If torch or the device is missing.
        """
        require_device(device)
        use_exact_float32(device)
        if not isinstance(folder, Checkpoint):
            raise CheckpointError(f"{folder.path} is not a checkpoint.")
        from segdeploy.zoo import load_module

        manifest = folder.manifest
        return ModuleSession(load_module(folder, device), manifest.inputs, manifest.outputs, device)


PYTORCH = PyTorchBackend()
