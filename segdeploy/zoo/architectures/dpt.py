"""DPT on a plain vision transformer of timm, as in segmentation-models-pytorch.

Source: Ranftl et al., "Vision Transformers for Dense Prediction", 2021. Maps of four depths are
brought to strides of about 4, 8, 16 and 32 and fused, deepest first.

Eager takes any size: the image is padded with zeros at the bottom and right to whole patches, and
position embeddings are resampled as in timm. Exported forms have the size of the export.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.errors import ConfigError
from segdeploy.zoo.architectures.encoder_decoder import initialize_decoder
from segdeploy.zoo.encoders import TIMM
from segdeploy.zoo.encoders.timm_vit import ViTEncoder
from segdeploy.zoo.spec import Architecture

_STRIDES = (4, 8, 16, 32)
_MID_CHANNELS = (256, 512, 1024, 1024)
_CHANNELS = 256

Taps = Sequence[tuple[Tensor, Tensor | None]]


class Readout(nn.Module):
    """Joins the first prefix token (the class token) to every pixel."""

    def __init__(self, channels: int, *, has_prefix: bool) -> None:
        super().__init__()
        joined = 2 * channels if has_prefix else channels
        self.project = nn.Sequential(nn.Linear(joined, channels), nn.GELU())

    def forward(self, x: Tensor, prefix: Tensor | None) -> Tensor:
        """Return (N, C, H, W) of a map (N, C, H, W) and tokens (N, T, C)."""
        pixels = x.permute(0, 2, 3, 1)
        if prefix is not None:
            token = prefix[:, :1, None].expand_as(pixels)
            pixels = torch.cat([pixels, token], dim=-1)
        projected: Tensor = self.project(pixels)
        return projected.permute(0, 3, 1, 2)


class Reassemble(nn.Module):
    """Brings a map from one stride to another, the nearest that a whole factor reaches."""

    def __init__(self, in_channels: int, mid: int, stride: int, target: int) -> None:
        super().__init__()
        self.project_to_out_channel = nn.Conv2d(in_channels, mid, 1)
        self.upsample: nn.Module
        if stride > target:
            factor = stride // target
            self.upsample = nn.ConvTranspose2d(mid, mid, factor, stride=factor)
        elif stride == target:
            self.upsample = nn.Identity()
        else:
            self.upsample = nn.Conv2d(mid, mid, 3, stride=target // stride, padding=1)
        self.project_to_feature_dim = nn.Conv2d(mid, _CHANNELS, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 256, H', W') of (N, C, H, W)."""
        resampled = self.upsample(self.project_to_out_channel(x))
        reassembled: Tensor = self.project_to_feature_dim(resampled)
        return reassembled


class ResidualConvBlock(nn.Module):
    """Twice ReLU, 3x3 convolution, batch norm; plus the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        self.batch_norm_1 = nn.BatchNorm2d(_CHANNELS)
        self.conv_2 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        self.batch_norm_2 = nn.BatchNorm2d(_CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 256, H, W) of the same."""
        inner = self.batch_norm_1(self.conv_1(torch.relu(x)))
        residual: Tensor = self.batch_norm_2(self.conv_2(torch.relu(inner)))
        return x + residual


class FusionBlock(nn.Module):
    """Adds what was fused so far to a map and resizes the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_conv_block1 = ResidualConvBlock()
        self.residual_conv_block2 = ResidualConvBlock()
        self.project = nn.Conv2d(_CHANNELS, _CHANNELS, 1)

    def forward(self, x: Tensor, fused: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return (N, 256, *size) of a map (N, 256, H, W) and what was fused, of the same shape."""
        x = self.residual_conv_block1(x)
        if fused is not None:
            x = x + fused
        # A 1x1 convolution commutes with interpolation; this way round it costs a quarter.
        projected = self.project(self.residual_conv_block2(x))
        return F.interpolate(projected, size=tuple(size), mode="bilinear", align_corners=True)


class DPTDecoder(nn.Module):
    """Readout and reassembly for each tap, then fusion from the deepest on."""

    def __init__(self, encoder: ViTEncoder) -> None:
        super().__init__()
        has_prefix = encoder.num_prefix_tokens > 0
        self.projection_blocks = nn.ModuleList(
            [Readout(channels, has_prefix=has_prefix) for channels in encoder.channels]
        )
        rows = zip(encoder.channels, _MID_CHANNELS, encoder.strides, _STRIDES, strict=True)
        self.reassemble_blocks = nn.ModuleList([Reassemble(*row) for row in rows])
        self.fusion_blocks = nn.ModuleList([FusionBlock() for _ in _STRIDES])

    def forward(self, taps: Taps) -> Tensor:
        """Return (N, 256, h, w), twice as large as the finest reassembled map."""
        rows = zip(taps, self.projection_blocks, self.reassemble_blocks, strict=True)
        maps = [reassemble(readout(*tap)) for tap, readout, reassemble in rows]
        sizes = [[2 * side for side in maps[0].shape[-2:]], *(x.shape[-2:] for x in maps)]
        blocks = zip(self.fusion_blocks, maps[::-1], sizes[-2::-1], strict=True)
        (deepest, x, size), *others = blocks
        fused: Tensor = deepest(x, None, size)
        for block, x, size in others:
            fused = block(x, fused, size)
        return fused


class DPTHead(nn.Module):
    """3x3 convolution and a 1x1 one to K channels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        inner = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False)
        outer = nn.Conv2d(_CHANNELS, num_classes, 1)
        norm_relu = nn.BatchNorm2d(_CHANNELS), nn.ReLU(inplace=True)
        self.head = nn.Sequential(inner, *norm_relu, nn.Dropout(0.1), outer)
        nn.init.xavier_uniform_(inner.weight)
        nn.init.xavier_uniform_(outer.weight)
        nn.init.zeros_(outer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K, H, W) of (N, 256, H, W)."""
        logits: Tensor = self.head(x)
        return logits


class DPT(nn.Module):
    """The whole net."""

    def __init__(self, encoder: ViTEncoder, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = DPTDecoder(encoder)
        initialize_decoder(self.decoder)
        self.segmentation_head = DPTHead(num_classes)
        self._patch = max(encoder.strides)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)} of a batch (N, C, H, W)."""
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, -width % self._patch, 0, -height % self._patch))
        logits = self.segmentation_head(self.decoder(self.encoder(padded)))
        whole = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=True)
        return {"out": whole[..., :height, :width]}


def build_dpt(encoder: str, num_classes: int, in_channels: int = 3) -> DPT:
    """Return DPT on a transformer of timm, `encoder` being `timm/<name>`.

    Raises:
        BackendUnavailableError: If timm is not installed.
        UnknownNameError: If timm has no such net.
        ConfigError: If it is no vision transformer, or takes one image size only.
    """
    if not encoder.startswith(TIMM):
        raise ConfigError(
            f"DPT needs a vision transformer of timm, not {encoder}.",
            hint="For example dpt_timm/vit_base_patch16_224.augreg_in21k.",
        )
    return DPT(ViTEncoder(encoder.removeprefix(TIMM), in_channels), num_classes)


DPT_ON_VIT = Architecture(
    name="dpt",
    build=build_dpt,
    output_stride=2,
    source="arXiv:2103.13413",
    family="segmentation-models-pytorch",
    input_size=(224, 224),
    is_fixed_size=True,
)
