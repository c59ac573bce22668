"""The contracts as torch code around a module, for the backends that trace or capture it.

The same operations in the same order as `core.preprocess.normalize_image` and `core.task`. Cast to
float comes before permute, as in the ONNX form.

Low-resolution logits are what goes into the last `F.interpolate`, if the logits are what comes out
of it and nothing was written into either. The interpolation is run all the same: without a reader,
tracers leave it out.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention
from torch.overrides import TorchFunctionMode

from segdeploy.core.contract import InputKind, IoContract, OutputKind, Upsampling
from segdeploy.core.errors import UnsupportedTargetError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task, label_dtype
from segdeploy.zoo import main_logits

_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}


class ContractModule(nn.Module):
    """A module with the two ends of an `IoContract`; one or two output tensors."""

    mean: Tensor
    std: Tensor
    image_scale: Tensor

    def __init__(
        self,
        module: nn.Module,
        io: IoContract,
        task: Task,
        num_labels: int,
        preprocess: PreprocessSpec,
    ) -> None:
        super().__init__()
        self.module = module
        self.io = io
        self.task = task
        self.label_type = _DTYPES[label_dtype(num_labels).name]
        self.is_bgr = preprocess.channel_order == "bgr"
        self.register_buffer("mean", torch.tensor(preprocess.mean))
        self.register_buffer("std", torch.tensor(preprocess.std))
        self.register_buffer("image_scale", torch.tensor(preprocess.scale, dtype=torch.float32))

    def forward(self, batch: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return what the contract gives for one batch of what it takes."""
        tensor = self._normalize(batch) if self.io.input is InputKind.IMAGE else batch
        if self.io.output is OutputKind.LOW_LOGITS:
            return _as_float32(find_low_logits(self.module, tensor).logits)
        logits = _as_float32(main_logits(self.module(tensor)))
        if self.io.output is OutputKind.LOGITS:
            return logits
        labels = self._decide(logits)
        if self.io.output is OutputKind.LABELS:
            return labels
        return labels, self._confidence(logits)

    def _normalize(self, image: Tensor) -> Tensor:
        pixels = image.to(torch.float32)
        if self.is_bgr:
            pixels = pixels.flip(3)
        normal = (pixels * self.image_scale - self.mean) / self.std
        return normal.permute(0, 3, 1, 2).contiguous()

    def _decide(self, logits: Tensor) -> Tensor:
        if self.task is Task.BINARY:
            return (logits[:, 0] > 0).to(self.label_type)
        return logits.argmax(dim=1).to(self.label_type)

    def _confidence(self, logits: Tensor) -> Tensor:
        if self.task is Task.BINARY:
            return logits[:, 0].abs().sigmoid()
        return (logits - logits.amax(dim=1, keepdim=True)).exp().sum(dim=1).reciprocal()


def _as_float32(logits: Tensor) -> Tensor:
    """Return logits of a module in low precision as float32; tracers see no cast of others."""
    return logits if logits.dtype is torch.float32 else logits.float()


@dataclass(frozen=True)
class LowLogits:
    """Logits before the last upsampling (N, K, h, w), and how that is done."""

    logits: Tensor
    upsampling: Upsampling


def find_low_logits(module: nn.Module, tensor: Tensor) -> LowLogits:
    """Run a module on a batch (N, C, H, W) and return its logits before the last upsampling.

    Raises:
        UnsupportedTargetError: If its logits are no bilinear upsampling to H and W.
    """
    with _Interpolations() as seen:
        logits = main_logits(module(tensor))
    calls = [call for call in seen.calls if call.result is logits]
    if not calls:
        _refuse("they do not come out of a torch.nn.functional.interpolate")
    call = calls[-1]
    if call.versions != (_version(call.result), _version(call.source)):
        _refuse("they are changed in place after the last interpolation")
    if call.mode != "bilinear" or call.antialias:
        _refuse(f"the last interpolation is {call.mode}{' with antialias' * call.antialias}")
    if logits.shape[-2:] != tensor.shape[-2:] or not call.is_to_size:
        _refuse("the last interpolation is not to the size of the image")
    return LowLogits(call.source, Upsampling(align_corners=call.align_corners))


def find_upsampling(
    module: nn.Module, size: tuple[int, int], num_channels: int = 3
) -> tuple[Upsampling, tuple[int, int]]:
    """Return how a module upsamples its logits, and their size (h, w) of an image (H, W).

    Shapes only are computed, where the module can do without values.

    Raises:
        UnsupportedTargetError: If it has no low-resolution logits.
    """
    module = module.eval()
    with torch.no_grad():
        try:
            shapes = torch.zeros(1, num_channels, *size, device="meta")
            found = find_low_logits(copy.deepcopy(module).to("meta"), shapes)
        except (NotImplementedError, RuntimeError):  # An own module that looks at values.
            found = find_low_logits(module, torch.zeros(1, num_channels, *size))
    height, width = found.logits.shape[-2:]
    return found.upsampling, (height, width)


def _refuse(why: str) -> NoReturn:
    raise UnsupportedTargetError(
        f"The logits cannot be given at low resolution: {why}.",
        hint="Use --output logits or labels: a network whose head works at full resolution has no "
        "low-resolution logits.",
    )


@dataclass(frozen=True)
class _Call:
    """One call of interpolate, and what came out.

    `versions` are those of result and source just after it: a write in place raises them.
    """

    result: Tensor
    source: Tensor
    versions: tuple[int | None, int | None]
    mode: str
    align_corners: bool
    antialias: bool
    is_to_size: bool


class _Interpolations(TorchFunctionMode):
    """Listens to `F.interpolate` while a module runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.interpolate:
            self.calls.append(_read_call(result, *args, **(kwargs or {})))
        return result


def _read_call(
    result: Tensor,
    input: Tensor,  # noqa: A002  torch's name
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> _Call:
    """Return a call by the names of its parameters.

    A factor places pixels by itself, not by the two sizes: the same where it divides them evenly.
    """
    factors = scale_factor if isinstance(scale_factor, tuple | list) else [scale_factor] * 2
    is_to_size = size is not None or bool(recompute_scale_factor)
    is_to_size = is_to_size or all(
        have * factor == want
        for have, factor, want in zip(input.shape[-2:], factors, result.shape[-2:], strict=True)
    )
    versions = _version(result), _version(input)
    return _Call(result, input, versions, mode, bool(align_corners), antialias, is_to_size)


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written in place; None under inference mode, which counts not.

    `find_upsampling` asks a module without that mode, before anything is built.
    """
    return None if tensor.is_inference() else tensor._version  # noqa: SLF001  no public name
