"""Evaluation by views and windows: counted as torch counts, recorded, and without torch as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch.nn import functional

from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.cli import evaluate as _evaluate
from segdeploy.cli import predict as _predict
from segdeploy.cli.app import run_app
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.folder import save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.results import EvalResult
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.data.synthetic import CLASSES
from segdeploy.evaluate import evaluate

assert _evaluate  # Imported to register the commands.
assert _predict

DATA = "synthetic:48x64:28"
KERNEL = np.random.default_rng(0).normal(0, 1, (5, 3, 5, 5)).astype(np.float32)
TTA, WINDOW = TtaSpec((0.75, 1.0), flip=True), SlidingWindow((32, 40), 0.5)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One 5x5 convolution, as ONNX."""
    sides: list[str | int | None] = ["N", 3, "H", "W"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["tensor", "kernel"], ["logits"], pads=[2, 2, 2, 2])],
        "convolution",
        [helper.make_tensor_value_info("tensor", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5, "H", "W"])],
        [numpy_helper.from_array(KERNEL, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 5, None)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.MULTICLASS, classes=CLASSES,
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, files={"model.onnx": ""},
        target="onnx-fp32",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "onnx-fp32"
    save_folder(path, manifest, lambda folder: onnx.save(model, folder / "model.onnx"))
    return path


def _windowed(image: NDArray[np.uint8]) -> torch.Tensor:
    """Logits (5, h, w) by windows of 32x40 at half a window's steps."""
    tensor = torch.from_numpy(normalize_image(image, PreprocessSpec()))[None]
    height, width = image.shape[:2]
    tops = sorted({min(top, height - 32) for top in range(0, height, 16)})
    lefts = sorted({min(left, width - 40) for left in range(0, width, 20)})
    total, count = torch.zeros(5, height, width), torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            place = slice(top, top + 32), slice(left, left + 40)
            cut = tensor[..., place[0], place[1]]
            total[:, *place] += functional.conv2d(cut, torch.from_numpy(KERNEL), padding=2)[0]
            count[place] += 1
    return total / count


def _decide(image: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return labels (48, 64) by views of windows, and where they are too close to call."""
    chances = []
    for size in ((48, 36), (64, 48)):
        scaled = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        straight = _windowed(scaled).softmax(0)
        mirrored = _windowed(scaled[:, ::-1].copy()).softmax(0).flip(2)
        views = torch.stack([straight, mirrored])
        chances.append(functional.interpolate(views, (48, 64), mode="bilinear").mean(0))
    best = torch.stack(chances).mean(0).topk(2, dim=0)
    return best.indices[0].numpy(), (best.values[0] - best.values[1] < 1e-5).numpy()


def _expected() -> tuple[NDArray[np.int64], int]:
    """Return the matrix of all images, and how many pixels are too close to call."""
    dataset, matrix, close = open_dataset(DATA, "val"), np.zeros((5, 5), np.int64), 0
    for sample in (dataset[i] for i in range(len(dataset))):
        labels, is_close = _decide(sample.image)
        close += int(is_close.sum())
        for truth, guess in zip(sample.label.flat, labels.flat, strict=True):
            if truth != 255:
                matrix[truth, guess] += 1
    return matrix, close


def test_views_of_windows_are_counted_as_torch_counts(artifact: Path) -> None:
    result = evaluate(artifact, data=DATA, tta=TTA, sliding_window=WINDOW, save=False)
    expected, close = _expected()
    assert close < 20
    assert np.abs(result.confusion - expected).sum() <= 2 * close
    plain = evaluate(artifact, data=DATA, save=False)
    assert np.abs(result.confusion - plain.confusion).sum() > 200


def test_two_processes_count_the_same(artifact: Path) -> None:
    alone = evaluate(artifact, data=DATA, tta=TTA, sliding_window=WINDOW, save=False)
    shared = evaluate(artifact, data=DATA, tta=TTA, sliding_window=WINDOW, save=False, nproc=2)
    assert shared.to_dict() == alone.to_dict()


def test_the_result_says_how_images_were_run(artifact: Path) -> None:
    result = evaluate(artifact, data=DATA, tta=TTA, sliding_window=WINDOW, limit=1)
    written = json.loads((artifact / "eval.json").read_text())
    assert written["tta"] == {"scales": [0.75, 1.0], "flip": True}
    assert written["sliding_window"] == {"size": [32, 40], "overlap": 0.5}
    assert EvalResult.from_dict(written).to_dict() == written
    assert result.to_dict()["tta"] == written["tta"]
    plain = evaluate(artifact, data=DATA, limit=1, save=False).to_dict()
    assert (plain["tta"], plain["sliding_window"]) == (None, None)


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["segdeploy", *arguments])
    return run_app()


def test_people_are_told_how_images_were_run(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--tta", "flip,0.75,1.0", "--sliding-window", "32x40", "--limit", "1", "--no-save")
    assert _call(monkeypatch, "evaluate", str(artifact), "--data", DATA, *flags) == 0
    out = capsys.readouterr().out
    assert "averaged over the scales 0.75, 1 and flips" in out
    assert "windows of 32x40, overlap 0.5" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [(("--tta", "flop"), "flip,0.75"), (("--overlap", "0.5"), "--sliding-window"),
     (("--sliding-window", "dynamic"), "HxW"), (("--sliding-window", "64"), "HEIGHTxWIDTH"),
     (("--sliding-window", "64x64", "--overlap", "1"), "overlap")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_bad_flags_exit_2(
    command: str, flags: tuple[str, ...], said: str, artifact: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    given = {
        "evaluate": ("--data", DATA, "--no-save"),
        "predict": (str(tmp_path / "a.png"), "--out", str(tmp_path / "out")),
    }[command]
    assert _call(monkeypatch, command, str(artifact), *given, *flags) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_both_commands_work_without_torch(artifact: Path, tmp_path: Path) -> None:
    image = open_dataset(DATA, "val")[0].image
    Image.fromarray(image).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision'): sys.modules[name] = None\n"
        "from segdeploy.cli import main\n"
        "sys.exit(main())\n"
    )
    flags = ("--tta", "flip,0.75,1.0", "--sliding-window", "32x40", "--json")
    documents = []
    for arguments in (
        ("evaluate", str(artifact), "--data", DATA, "--no-save"),
        ("predict", str(artifact), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, *flags], capture_output=True, text=True,
            check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    expected, close = _expected()
    assert np.abs(np.array(documents[0]["confusion"]) - expected).sum() <= 2 * close
    with Image.open(documents[1][0]["mask"]) as mask:
        found = np.array(mask)
    labels, is_close = _decide(image)
    np.testing.assert_array_equal(found[~is_close], labels[~is_close])
