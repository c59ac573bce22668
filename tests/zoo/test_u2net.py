"""U2-Net against the layout of its authors, written down here once more with recursion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own convention

from segdeploy.core.errors import CheckpointError
from segdeploy.zoo import create_model, main_logits
from segdeploy.zoo.architectures.u2net import is_official_u2net, official_u2net_state
from segdeploy.zoo.importing import import_weights

HEIGHTS = {1: 7, 2: 6, 3: 5, 4: 4, 5: 4, 6: 4}
FULL = {
    "stage1": (3, 32, 64), "stage2": (64, 32, 128), "stage3": (128, 64, 256),
    "stage4": (256, 128, 512), "stage5": (512, 256, 512), "stage6": (512, 256, 512),
    "stage5d": (1024, 256, 512), "stage4d": (1024, 128, 256), "stage3d": (512, 64, 128),
    "stage2d": (256, 32, 64), "stage1d": (128, 16, 64),
}  # fmt: skip
LITE = {name: (3 if name == "stage1" else 128 if "d" in name else 64, 16, 64) for name in FULL}


class OfficialConv(nn.Module):
    """Convolution with a bias, which batch norm makes superfluous, and ReLU."""

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
        self.bn_s1 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn_s1(self.conv_s1(x)))


def up(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class OfficialBlock(nn.Module):
    """Level i is convolution i, what is below it, and convolution `id` of both."""

    def __init__(self, height: int, channels: tuple[int, int, int], dilated: bool) -> None:
        super().__init__()
        self.height, self.dilated = height, dilated
        inputs, middle, outputs = channels
        self.rebnconvin = OfficialConv(inputs, outputs, 1)
        for i in range(1, height + 1):
            rate = 2 ** (i - 1) if dilated else 1 + (i == height)
            self.add_module(
                f"rebnconv{i}", OfficialConv(outputs if i == 1 else middle, middle, rate)
            )
        for i in range(1, height):
            rate = 2 ** (i - 1) if dilated else 1
            self.add_module(
                f"rebnconv{i}d", OfficialConv(2 * middle, outputs if i == 1 else middle, rate)
            )

    def level(self, i: int, x: Tensor) -> Tensor:
        here: Tensor = self.get_submodule(f"rebnconv{i}")(x)
        if i == self.height:
            return here
        if self.dilated or i == self.height - 1:
            below = self.level(i + 1, here)
        else:
            below = up(self.level(i + 1, F.max_pool2d(here, 2, ceil_mode=True)), here)
        joined: Tensor = self.get_submodule(f"rebnconv{i}d")(torch.cat((below, here), 1))
        return joined

    def forward(self, x: Tensor) -> Tensor:
        x = self.rebnconvin(x)
        return self.level(1, x) + x


class OfficialU2Net(nn.Module):
    """Fused logits and those of the six sides, finest first."""

    def __init__(self, channels: dict[str, tuple[int, int, int]], classes: int) -> None:
        super().__init__()
        for name, widths in channels.items():
            number = int(name[5])
            self.add_module(name, OfficialBlock(HEIGHTS[number], widths, dilated=number > 4))
        for i in range(1, 7):
            last = channels["stage6" if i == 6 else f"stage{i}d"][2]
            self.add_module(f"side{i}", nn.Conv2d(last, classes, 3, padding=1))
        self.outconv = nn.Conv2d(6 * classes, classes, 1)

    def stages(self, i: int, x: Tensor) -> list[Tensor]:
        """The decoded maps of stages i to 6."""
        here: Tensor = self.get_submodule(f"stage{i}")(x)
        if i == 6:
            return [here]
        below = self.stages(i + 1, F.max_pool2d(here, 2, ceil_mode=True))
        joined = torch.cat((up(below[0], here), here), 1)
        return [self.get_submodule(f"stage{i}d")(joined), *below]

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = enumerate(self.stages(1, x), 1)
        sides = [up(self.get_submodule(f"side{i}")(features), x) for i, features in maps]
        return [self.outconv(torch.cat(sides, 1)), *sides]


def official(channels: dict[str, tuple[int, int, int]], classes: int = 1) -> OfficialU2Net:
    """The authors' net with random weights, biases and statistics."""
    torch.manual_seed(0)
    net = OfficialU2Net(channels, classes)
    for module in net.modules():
        if isinstance(module, OfficialConv):
            assert module.conv_s1.bias is not None
            assert module.bn_s1.running_mean is not None
            assert module.bn_s1.running_var is not None
            nn.init.normal_(module.conv_s1.bias, 0, 0.3)
            module.bn_s1.running_mean.normal_(0, 0.2)
            module.bn_s1.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.bn_s1.weight, 0.7, 1.3)
            nn.init.normal_(module.bn_s1.bias, 0, 0.2)
    return net


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "channels", "classes"),
    [("u2net", FULL, 1), ("u2net_lite", LITE, 1), ("u2net_lite", LITE, 3)],
)
def test_the_authors_weights_give_the_authors_logits(
    name: str, channels: dict[str, tuple[int, int, int]], classes: int
) -> None:
    reference, ours = official(channels, classes).eval(), create_model(name, classes).eval()
    ours.load_state_dict(official_u2net_state(reference.state_dict()))
    for size in ((64, 96), (97, 51), (33, 32)):
        image = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected, found = reference(image)[0], main_logits(ours(image))
        assert found.shape == (1, classes, *size)
        assert relative(found, expected) <= 1e-5


def test_in_training_the_six_sides_are_auxiliary_logits_finest_first() -> None:
    reference, ours = official(LITE).train(), create_model("u2net_lite", 1).train()
    ours.load_state_dict(official_u2net_state(reference.state_dict()))
    # In double precision: batch norm over the few pixels of the deepest maps amplifies rounding.
    image = torch.randn(2, 3, 70, 47, dtype=torch.float64)
    expected, found = reference.double()(image), ours.double()(image)
    assert list(found) == ["out", "aux1", "aux2", "aux3", "aux4", "aux5", "aux6"]
    for ours_one, reference_one in zip(found.values(), expected, strict=True):
        assert relative(ours_one, reference_one) <= 1e-9


def test_only_the_authors_layout_is_recognised() -> None:
    state = official(LITE).state_dict()
    assert is_official_u2net(state)
    assert not is_official_u2net(official_u2net_state(state))
    assert not is_official_u2net(create_model("unet", 1).state_dict())
    assert not is_official_u2net({})


def test_a_file_that_lacks_a_bias_does_not_fit(tmp_path: Path) -> None:
    state = official(LITE).state_dict()
    del state["stage2.rebnconv1.conv_s1.bias"]
    torch.save(state, tmp_path / "cut.pth")
    missing = r"1 missing: encode_modules\.1\.encode_modules\.0\.bn\.running_mean"
    with pytest.raises(CheckpointError, match=missing):
        import_weights(tmp_path / "cut.pth", model="u2net_lite", out=tmp_path / "out")


def test_names_are_those_of_wz() -> None:
    with torch.device("meta"):
        keys = set(create_model("u2net", 1).state_dict())
    assert {
        "encode_modules.0.conv_in.conv.weight",
        "encode_modules.0.encode_modules.6.bn.running_mean",
        "decode_modules.4.decode_modules.5.conv.weight",
        "side_modules.0.weight",
        "side_modules.5.bias",
        "out_conv.weight",
    } <= keys
    assert "encode_modules.0.conv_in.conv.bias" not in keys
