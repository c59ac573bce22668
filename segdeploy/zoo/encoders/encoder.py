"""The protocol of encoders, and the one implementation for nets that are a chain of stages.

An encoder returns all its feature maps, finest first. Its children keep the names of the library
they come from, so that classification weights load unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from segdeploy.core.errors import ConfigError


@dataclass(frozen=True)
class EncoderOptions:
    """What a decoder asks of an encoder.

    Args:
        in_channels: Channels of the input.
        output_stride: 8, 16 or 32; below 32 the deepest stages keep their resolution and are
            dilated instead.
        depth: Maps of strides up to 2**depth are computed. Deeper stages are kept, since weights
            hold them, but are frozen.
        is_first_dilated: Whether the convolution that lost its stride already gets the new
            dilation (segmentation-models-pytorch) or still the one before (torchvision, and timm's
            encoders always).
    """

    in_channels: int = 3
    output_stride: int = 32
    depth: int = 5
    is_first_dilated: bool = True


class Encoder(nn.Module):
    """Gives feature maps (N, C, H/s, W/s), finest first, of a batch (N, in_channels, H, W).

    `channels` and `strides` are theirs. Strides need not begin at 2 (transformers start at 4), and
    two maps have the same one where stages are dilated. Sides that a stride does not divide are
    rounded, up or down as the net does: decoders resize to the size of a map, not by a factor.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps."""
        raise NotImplementedError

    def channels_at(self, stride: int) -> int:
        """Return the channels of the deepest map of this stride, 0 if there is none."""
        found = [c for c, s in zip(self.channels, self.strides, strict=True) if s == stride]
        return found[-1] if found else 0


class ChainEncoder(Encoder):
    """Runs named modules one after another and keeps the result of each stage.

    Args:
        children: The modules under their own names; those in no stage are kept but frozen.
        stages: Names (dotted paths) of the modules of each stage, in order.
        channels: Output channels of each stage.
        strides: Undilated stride of each stage.
        options: What the decoder asks for.

    Raises:
        ConfigError: If the net has no map so fine as the depth asks, or cannot be dilated.
    """

    def __init__(
        self,
        children: Mapping[str, nn.Module],
        stages: Sequence[Sequence[str]],
        channels: Sequence[int],
        strides: Sequence[int],
        options: EncoderOptions,
    ) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.requires_grad_(requires_grad=False)
        used = maps_within(strides, options.depth)
        self._stages = [list(stages[i]) for i in used]
        for name in (name for stage in self._stages for name in stage):
            self.get_submodule(name).requires_grad_()
        self.channels = tuple(channels[i] for i in used)
        self.strides = tuple(min(strides[i], options.output_stride) for i in used)
        for stage, stride in zip(stages, strides, strict=True):
            if stride > options.output_stride:
                rate = stride // options.output_stride
                first = rate if options.is_first_dilated else rate // 2
                dilate([self.get_submodule(name) for name in stage], rate, first)

    def stage_modules(self) -> list[list[nn.Module]]:
        """Return the modules of every computed stage, in order."""
        return [[self.get_submodule(name) for name in stage] for stage in self._stages]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage."""
        maps = []
        for stage in self._stages:
            for name in stage:
                x = self.get_submodule(name)(x)
            maps.append(x)
        return maps


def maps_within(strides: Sequence[int], depth: int) -> list[int]:
    """Return the indices of the strides up to 2**depth.

    Raises:
        ConfigError: If there is none.
    """
    used = [i for i, stride in enumerate(strides) if stride <= 2**depth]
    if not used:
        raise ConfigError(
            f"The finest map of this encoder has stride {strides[0]}: depth {depth} leaves none."
        )
    return used


def dilate(modules: Iterable[nn.Module], rate: int, first_rate: int) -> None:
    """Replace the stride of a stage by dilation.

    Convolutions up to the one that loses its stride get `first_rate`, those behind it `rate`.

    Raises:
        ConfigError: If no convolution of the stage has a stride.
    """
    convs = [m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d)]
    if all(conv.stride == (1, 1) for conv in convs):
        raise ConfigError(
            "This encoder cannot be dilated: it halves its maps by pooling, not by convolution.",
            hint="Take another encoder, such as resnet34, or an architecture of stride 32.",
        )
    now = first_rate
    for conv in convs:
        kernel = conv.kernel_size[0]
        is_strided = conv.stride != (1, 1)
        conv.stride = (1, 1)
        if kernel == 1 and first_rate != rate:
            continue  # As torchvision: for a dilated 1x1 torch picks a kernel that rounds anew.
        conv.dilation = (now, now)
        conv.padding = (kernel // 2 * now, kernel // 2 * now)
        if is_strided and kernel > 1:
            now = rate


def with_in_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return `conv` itself, or a fresh one like it for another number of input channels."""
    if conv.in_channels == in_channels:
        return conv
    fresh = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh
