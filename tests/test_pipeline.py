"""The whole chain, tiny: every stage reads the folder that the one before wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segdeploy
from segdeploy.bench import bench
from segdeploy.core.folder import load_folder
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.predict import predict
from segdeploy.report import report
from segdeploy.train import TrainConfig, train
from segdeploy.workflows import demo, export_and_verify

DATA = "synthetic:64x96:32"
TARGETS = ("torchscript-fp32", "onnx-fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained checkpoint with two artifacts, verified."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = TrainConfig(
        model="lraspp_mobilenet_v3_small", data=DATA, out=str(out), epochs=3, batch_size=8,
        warmup_steps=4, norm_momentum=0.1, workers=0, device="cpu",
    )  # fmt: skip
    checkpoint = train(config)
    exports = export_and_verify(checkpoint.path, TARGETS, out, data=DATA)
    assert [each.passed for each in exports] == [True, True]
    return out


def test_artifacts_score_as_their_checkpoint(run: Path) -> None:
    scores = [evaluate(run / name, data=DATA) for name in ("checkpoint", *TARGETS)]
    for score in scores[1:]:
        assert np.abs(score.confusion - scores[0].confusion).sum() <= 1e-4 * score.confusion.sum()
    assert json.loads((run / "onnx-fp32" / "eval.json").read_bytes())["num_images"] == 8


def test_bench_predict_and_report_finish_the_run(run: Path, tmp_path: Path) -> None:
    folders = [run / "checkpoint", *(run / name for name in TARGETS)]
    results = bench(folders, seconds=0.2, warmup_s=0.05)
    assert [r.target for r in results] == ["pytorch-fp32", *TARGETS]
    image = open_dataset("synthetic:50x70", "test")[0].image
    Image.fromarray(image).save(tmp_path / "photo.png")
    (written,) = predict(run / "onnx-fp32", [tmp_path / "photo.png"], tmp_path / "masks")
    page = report(run).read_text(encoding="utf-8")
    assert all(name in page for name in TARGETS)
    with segdeploy.open(run / "checkpoint") as model:
        expected = model.predict(image).labels
    mask = np.asarray(Image.open(next((tmp_path / "masks").glob("photo.png"))))
    assert mask.shape == (50, 70)
    assert (mask != expected).mean() < 1e-3
    assert written is not None


def test_manifests_name_their_parents_and_carry_the_recipe(run: Path) -> None:
    checkpoint = load_folder(run / "checkpoint")
    for name in TARGETS:
        manifest = load_folder(run / name).manifest
        assert manifest.reference is not None
        assert manifest.reference.digest == checkpoint.manifest.digest
        assert manifest.preprocess == checkpoint.manifest.preprocess
        assert manifest.passed is True


_WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "onnxscript", "safetensors"):
    sys.modules[name] = None
from segdeploy.cli import commands
from segdeploy.cli.app import run_app
code = 0
for line in {lines!r}:
    sys.argv = ["segdeploy", *line]
    code = code or run_app()
sys.exit(code)
"""


@pytest.mark.slow
def test_an_artifact_runs_without_torch(run: Path, tmp_path: Path) -> None:
    Image.fromarray(open_dataset("synthetic", "test")[0].image).save(tmp_path / "photo.png")
    artifact = str(run / "onnx-fp32")
    lines = [
        ["--help"],
        ["evaluate", artifact, "--data", DATA, "--json"],
        ["predict", artifact, str(tmp_path / "photo.png"), "--out", str(tmp_path / "masks")],
        ["report", str(run)],
    ]
    code = _WITHOUT_TORCH.format(lines=lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "photo.png").is_file()


@pytest.mark.slow
def test_the_demo_reaches_its_promise(tmp_path: Path) -> None:
    result = demo(tmp_path / "demo")
    assert result.report.is_file()
    assert all(row["mean_iou"] >= 0.7 for row in result.rows)
    assert [row["passed"] for row in result.rows] == [None, True, True, True, True]
