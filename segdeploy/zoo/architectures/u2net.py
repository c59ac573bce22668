"""U2-Net and its small form, and how the weights of their authors fit in.

Source: Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection",
2020, table 1. Names are those of WZ's state dicts. Other than there, the output stays logits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from segdeploy.zoo.blocks.rsu import RSU, halve, resize
from segdeploy.zoo.spec import ModelSpec

# Height of the blocks of stage 1 to 6, and where they are dilated instead (the last two).
_HEIGHTS = (7, 6, 5, 4, 4, 4)
_DILATED = (5, 6)
# (mid, out) channels of the encoder's stages 1 to 6 and of the decoder's stages 5 to 1.
_Widths = Sequence[tuple[int, int]]
_FULL = (
    ((32, 64), (32, 128), (64, 256), (128, 512), (256, 512), (256, 512)),
    ((256, 512), (128, 256), (64, 128), (32, 64), (16, 64)),
)
_LITE = (((16, 64),) * 6, ((16, 64),) * 5)


class U2Net(nn.Module):
    """A UNet of six stages of RSU blocks; each decoder stage gives logits, which are fused."""

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, encoder: _Widths, decoder: _Widths
    ) -> None:
        super().__init__()
        inputs = [in_channels, *(out for _, out in encoder)]
        self.encode_modules = nn.ModuleList(
            _stage(number, inputs[number - 1], *encoder[number - 1]) for number in range(1, 7)
        )
        skips = [out for _, out in encoder[4::-1]]  # Of stages 5 to 1.
        outputs = [encoder[5][1], *(out for _, out in decoder)]
        self.decode_modules = nn.ModuleList(
            _stage(5 - i, outputs[i] + skips[i], *decoder[i]) for i in range(5)
        )
        self.side_modules = nn.ModuleList(
            nn.Conv2d(width, num_classes, 3, padding=1) for width in outputs
        )
        self.out_conv = nn.Conv2d(6 * num_classes, num_classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return {"out": logits (N, K, H, W)}, in training also "aux1" (finest) to "aux6"."""
        size = x.shape[-2:]
        maps: list[Tensor] = []
        for stage in self.encode_modules:
            maps.append(stage(halve(maps[-1]) if maps else x))
        decoded = [maps.pop()]
        for stage in self.decode_modules:
            skip = maps.pop()
            x = resize(decoded[-1], skip.shape[-2:])
            decoded.append(stage(torch.cat([x, skip], dim=1)))
        pairs = zip(self.side_modules, decoded, strict=True)
        sides = [resize(side(features), size) for side, features in pairs][::-1]
        outputs = {"out": self.out_conv(torch.cat(sides, dim=1))}
        if self.training:
            outputs |= {f"aux{number}": side for number, side in enumerate(sides, 1)}
        return outputs


def _stage(number: int, in_channels: int, mid_channels: int, out_channels: int) -> RSU:
    height, is_dilated = _HEIGHTS[number - 1], number in _DILATED
    return RSU(height, in_channels, mid_channels, out_channels, is_dilated=is_dilated)


_OFFICIAL = re.compile(r"stage(\d)(d?)\.rebnconv(in|\d)(d?)\.(conv|bn)_s1\.(\w+)")
_OFFICIAL_BIAS = ".conv_s1.bias"


def is_official_u2net(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is one of xuebinqin's U-2-Net repository."""
    return f"stage1.rebnconvin{_OFFICIAL_BIAS}" in state and "outconv.weight" in state


def official_u2net_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of `u2net` or `u2net_lite` that computes what the authors' net does.

    Their convolutions have a bias before batch norm; it is subtracted from the running mean, which
    changes nothing in evaluation. Without its bias a running mean is left out: it is then missing.
    """
    converted = {}
    for key, value in state.items():
        if key.endswith(".bn_s1.running_mean"):
            bias = state.get(key.replace(".bn_s1.running_mean", _OFFICIAL_BIAS))
            if bias is not None:
                converted[_our_key(key)] = value - bias
        elif not key.endswith(_OFFICIAL_BIAS):
            converted[_our_key(key)] = value
    return converted


def _our_key(key: str) -> str:
    """Stages and convolutions are numbered from the finest, with a `d` in decoders."""
    if key.startswith("side"):
        return f"side_modules.{6 - int(key[4])}.{key[6:]}"
    match = _OFFICIAL.fullmatch(key)
    if match is None:
        return key.replace("outconv", "out_conv")
    stage, is_decoder, conv, is_up, part, name = match.groups()
    number = int(stage)
    place = f"decode_modules.{5 - number}" if is_decoder else f"encode_modules.{number - 1}"
    if conv == "in":
        inner = "conv_in"
    elif is_up:
        inner = f"decode_modules.{_HEIGHTS[number - 1] - 1 - int(conv)}"
    else:
        inner = f"encode_modules.{int(conv) - 1}"
    return f"{place}.{inner}.{part}.{name}"


def _spec(name: str, widths: tuple[_Widths, _Widths]) -> ModelSpec:
    return ModelSpec(
        name=name,
        build=partial(U2Net, encoder=widths[0], decoder=widths[1]),
        output_stride=1,
        source="arXiv:2005.09007",
        family="WZ",
        input_size=(320, 320),
    )


U2NET = _spec("u2net", _FULL)
U2NET_LITE = _spec("u2net_lite", _LITE)
