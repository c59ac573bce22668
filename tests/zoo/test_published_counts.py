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
    # Less is possible: stages that no output needs are not computed (PSPNet, DPT).
    assert 0.65 * row["gmac"] < counter.get_total_flops() / 2e9 < 1.01 * row["gmac"]
