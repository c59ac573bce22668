"""Parameter counts and multiply-adds against those published of the systems the nets come from."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model
from segdeploy.zoo.checkpoint import num_parameters

prepare_torchvision()  # timm imports torchvision.

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "zoo_reference.toml"
ROWS = tomllib.loads(REFERENCES.read_text(encoding="utf-8"))["row"]
# The originals run a stage that no output needs, or a convolution behind an upsampling.
FEWER = {
    "pspnet_mobilenet_v2",
    "pspnet_efficientnet_b0",
    "dpt_timm/vit_base_patch16_224.augreg_in21k",
}
IDS = [f"{row['model']}-{row['num_classes']}" for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_the_published_cost(row: dict[str, Any]) -> None:
    if row["model"].partition("_timm/")[1]:
        pytest.importorskip("timm", reason="timm absent: pip install 'segdeploy[timm]'")
    with torch.device("meta"):
        module = create_model(row["model"], row["num_classes"]).eval()
        assert num_parameters(module) == row["num_parameters"]
        if "gmac" not in row:
            return
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            module(torch.empty(1, 3, row["size"], row["size"]))
    gmac = counter.get_total_flops() / 2e9
    if row["model"] in FEWER:
        assert 0.5 * row["gmac"] < gmac < row["gmac"]
    else:
        assert gmac == pytest.approx(row["gmac"], rel=0.01)
