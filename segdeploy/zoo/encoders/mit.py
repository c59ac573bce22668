"""Mix Transformer, SegFormer's encoder: B0 to B5.

Source: Xie et al., "SegFormer", 2021 (arXiv:2105.15203), section 3.1 and table 6. Keys are those of
segmentation-models-pytorch. Inside a stage the maps are (N, H, W, C): linear layers and layer norms
then need no reshaping, and no size is fixed when the net is traced.

Dilated, it is what that library computes: the convolution that shortens keys and values in stage 3
loses its stride too (output stride 8), so attention there sees as many keys as pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder, EncoderOptions

prepare_torchvision()
from torchvision.ops import StochasticDepth  # noqa: E402

_HEADS = (1, 2, 5, 8)
_REDUCTIONS = (8, 4, 2, 1)  # Of the sides of keys and values, per stage.
_MLP_RATIO = 4
_DROP_RATE = 0.1  # Of the deepest block's residuals; it rises linearly from 0.
_BLOCK_NORM_EPS = 1e-6  # Other layer norms have torch's 1e-5.


class PatchEmbed(nn.Module):
    """Overlapping patches: (N, C, H, W) to (N, H/stride, W/stride, C')."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised patches."""
        patches: Tensor = self.norm(_channels_last(self.proj(x)))
        return patches


class Attention(nn.Module):
    """Multi-head attention of all pixels to a map whose sides are `reduction` times smaller."""

    def __init__(self, channels: int, num_heads: int, reduction: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, of the shape of x (N, H, W, C)."""
        reduced = self.norm(_channels_last(self.sr(_channels_first(x))))
        keys, values = self.kv(reduced).chunk(2, dim=-1)
        heads = F.scaled_dot_product_attention(
            self._split(self.q(x)), self._split(keys), self._split(values)
        )
        attended: Tensor = self.proj(heads.transpose(1, 2).flatten(2).view_as(x))
        return attended

    def _split(self, x: Tensor) -> Tensor:
        """From (N, H, W, C) to (N, heads, H*W, C/heads)."""
        heads = torch.unflatten(x.flatten(1, 2), -1, (self.num_heads, -1))
        return heads.transpose(1, 2)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution per channel of a map (N, H, W, C); it tells the net where pixels are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of x."""
        return _channels_last(self.dwconv(_channels_first(x)))


class MixMlp(nn.Module):
    """Mix-FFN (equation 3): linear, depthwise 3x3 convolution, GELU, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, _MLP_RATIO * channels)
        self.dwconv = DepthwiseConv(_MLP_RATIO * channels)
        self.fc2 = nn.Linear(_MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of x (N, H, W, C)."""
        mixed: Tensor = self.fc2(F.gelu(self.dwconv(self.fc1(x))))
        return mixed


class Block(nn.Module):
    """Attention and Mix-FFN, each on a normalised map and added to it."""

    def __init__(self, channels: int, num_heads: int, reduction: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, _BLOCK_NORM_EPS)
        self.attn = Attention(channels, num_heads, reduction)
        self.drop_path = StochasticDepth(drop_rate, "row")
        self.norm2 = nn.LayerNorm(channels, _BLOCK_NORM_EPS)
        self.mlp = MixMlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of x (N, H, W, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class StageNorm(nn.LayerNorm):
    """The layer norm at the end of a stage: (N, H, W, C) to (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  The name in nn.LayerNorm.
        """Return the map of the stage."""
        return _channels_first(super().forward(input))


def build_mit(
    options: EncoderOptions, channels: Sequence[int], depths: Sequence[int]
) -> ChainEncoder:
    """Return a Mix Transformer with `depths` blocks and `channels` channels in its four stages."""
    rates = iter(_DROP_RATE * i / (sum(depths) - 1) for i in range(sum(depths)))
    embeds: dict[str, nn.Module] = {}
    stages: dict[str, nn.Module] = {}
    for i, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        before = channels[i - 1] if i else options.in_channels
        embeds[f"patch_embed{i + 1}"] = PatchEmbed(before, width, *((3, 2) if i else (7, 4)))
        blocks = (Block(width, _HEADS[i], _REDUCTIONS[i], next(rates)) for _ in range(depth))
        stages[f"block{i + 1}"] = nn.Sequential(*blocks)
        stages[f"norm{i + 1}"] = StageNorm(width, _BLOCK_NORM_EPS)
    names = [(f"patch_embed{i}", f"block{i}", f"norm{i}") for i in range(1, 5)]
    encoder = ChainEncoder(embeds | stages, names, channels, (4, 8, 16, 32), options)
    return encoder.apply(_initialize)


def _initialize(module: nn.Module) -> None:
    """As in SegFormer: linear layers N(0, 0.02) cut at 2, convolutions He normal by fan-out."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


_WIDE = (64, 128, 320, 512)
MIT_B0 = partial(build_mit, channels=(32, 64, 160, 256), depths=(2, 2, 2, 2))
MIT_B1 = partial(build_mit, channels=_WIDE, depths=(2, 2, 2, 2))
MIT_B2 = partial(build_mit, channels=_WIDE, depths=(3, 4, 6, 3))
MIT_B3 = partial(build_mit, channels=_WIDE, depths=(3, 4, 18, 3))
MIT_B4 = partial(build_mit, channels=_WIDE, depths=(3, 8, 27, 3))
MIT_B5 = partial(build_mit, channels=_WIDE, depths=(3, 6, 40, 3))
