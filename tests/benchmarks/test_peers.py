"""The peers that segdeploy is measured against do what they say, and the table is theirs."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import render_peers
from benchmarks.pipelines import MEAN, STD, plain_pytorch, tutorial_onnxruntime
from segdeploy.core.folder import Checkpoint


def picture() -> Any:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


def test_plain_pytorch_gives_the_labels_of_the_module(tiny_checkpoint: Checkpoint) -> None:
    torch = pytest.importorskip("torch")
    from segdeploy.zoo.checkpoint import load_module

    image = picture()
    options = {"checkpoint": str(tiny_checkpoint.path), "compile": False, "threads": 1}
    found = plain_pytorch(options, image)()
    batch = ((image.astype(np.float64) / 255 - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)
    with torch.no_grad():
        wanted = load_module(tiny_checkpoint)(torch.from_numpy(batch)[None])["out"][0].argmax(0)
    assert found.dtype == np.uint8
    assert float((found == wanted.numpy()).mean()) > 0.999  # Ties within float32's last bit.


@pytest.mark.slow
def test_the_notebook_gives_the_labels_of_the_smp_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation_models_pytorch is not installed")
    from benchmarks import peers

    image = picture()
    with warnings.catch_warnings():  # The notebook is older than torch's new exporter.
        warnings.simplefilter("ignore")
        path = peers.export_as_the_notebook(tmp_path / "notebook.onnx")
    found = tutorial_onnxruntime({"path": str(path), "threads": 1}, image)()
    batch = ((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)
    with torch.no_grad():
        wanted = peers._smp_model()(torch.from_numpy(batch)[None])[0].argmax(0)
    assert float((found == wanted.numpy()).mean()) > 0.999


def test_the_table_shows_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(ms: float) -> dict[str, float]:
        return {"p50_ms": ms, "min_ms": ms - 1, "peak_memory_mib": 100.0}

    case = {
        "model": "unet", "size": [180, 240], "threads": 2, "environment": {"cpu": "CPU A"},
        "versions": {"torch": "2.13"},
        "times": {"PyTorch eager": row(40), "peer": row(20), "segdeploy x": row(10)},
        "scores": {"segdeploy x": {"agreement": 0.5, "mean_iou": 0.6}},
    }  # fmt: skip
    untimed = {"model": "m", "size": [1, 2], "scores": case["scores"]}
    monkeypatch.setattr(render_peers, "read", lambda _: {"unet": case, "smp": untimed})
    text = render_peers.peers()
    assert "| segdeploy x | 10.0 | 9.0 | 4.00 | 2.00 | 100 | 50.00 % | 0.6000 |" in text
    assert "| segdeploy x | - | - | - | - | - | 50.00 % | 0.6000 |" in text
    assert "unet at 180x240, 2 threads, one interleaved run on CPU A; torch 2.13." in text
    assert "m at 1x2, never trained." in text
