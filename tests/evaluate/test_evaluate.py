"""Evaluate against a slow loop; the same counts whatever the number of processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    RunLockedError,
    SegDeployError,
)
from segdeploy.core.folder import Checkpoint
from segdeploy.core.lock import run_lock
from segdeploy.core.preprocess import PreprocessSpec, SizeRule, preprocess_image
from segdeploy.core.results import EvalResult, read_result
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.zoo import create_model, load_module, main_logits, save_checkpoint

DATA = "synthetic:48x64:28"  # 7 images to validate on.
CLASSES = ("background", "disc", "box", "triangle", "bar")


def _save(
    root: Path, task: Task = Task.MULTICLASS, classes: Sequence[str] = CLASSES, **spec: Any
) -> Checkpoint:
    torch.manual_seed(0)
    module = create_model("lraspp_mobilenet_v3_small", 1 if task is Task.BINARY else len(classes))
    state = module.state_dict()
    for key in state:  # Spread the logits, so that a random model predicts every class.
        if "classifier" in key and key.endswith("weight"):
            state[key] = state[key] * 20
    saved: Checkpoint = save_checkpoint(
        root / "run" / "checkpoint", state, model="lraspp_mobilenet_v3_small", task=task,
        classes=classes, preprocess=PreprocessSpec(**spec), trained=False,
    )  # fmt: skip
    return saved


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return _save(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> NDArray[np.int64]:
    """Count with torch alone."""
    module, dataset = load_module(checkpoint), open_dataset(DATA, "val")
    matrix = np.zeros((5, 5), np.int64)
    for i in range(len(dataset)):
        sample = dataset[i]
        tensor = torch.from_numpy(preprocess_image(sample.image, PreprocessSpec()))[None]
        with torch.inference_mode():
            found = main_logits(module(tensor))[0].argmax(0).numpy()
        for truth, guess in zip(sample.label.flat, found.flat, strict=True):
            if truth != 255:
                matrix[truth, guess] += 1
    assert np.count_nonzero(matrix.sum(0)) > 1
    return matrix


def test_counts_equal_a_slow_loop_and_are_written(
    checkpoint: Checkpoint, expected: NDArray[np.int64]
) -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(checkpoint.path, data=DATA, progress=lambda *a: seen.append(a))
    np.testing.assert_array_equal(result.confusion, expected)
    assert (result.num_images, result.data) == (7, "synthetic/val")
    assert seen == [(i, 7) for i in range(1, 8)]
    written = read_result(checkpoint.path / "eval.json")
    assert written == json.loads(json.dumps(result.to_dict()))
    pictures = sorted((checkpoint.path / "samples").glob("eval_*.png"))
    assert len(pictures) == 6
    with Image.open(pictures[0]) as picture:
        assert picture.width > 64


def test_two_processes_count_the_same(checkpoint: Checkpoint, expected: NDArray[np.int64]) -> None:
    result = evaluate(checkpoint.path, data=DATA, nproc=2, save=False)
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.num_images == 7


_RANK = """
import sys
from pathlib import Path
from segdeploy.evaluate import evaluate, is_main
result = evaluate(Path(sys.argv[1]), data=sys.argv[2], device="cpu", save=False)
print("MAIN" if is_main() else "OTHER", result.confusion.tolist(), flush=True)
"""


def _launch(path: Path, data: str) -> list[subprocess.CompletedProcess[str]]:
    """Start two ranks as torchrun does, without its own seconds of start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(2):
        env = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", _RANK, str(path), data],
                env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    done = []
    for process in ranks:
        out, err = process.communicate(timeout=200)
        done.append(subprocess.CompletedProcess([], process.returncode, out, err))
    return done


def test_ranks_count_the_same(checkpoint: Checkpoint, expected: NDArray[np.int64]) -> None:
    ranks = _launch(checkpoint.path, DATA)
    assert [r.returncode for r in ranks] == [0, 0], ranks[0].stderr + ranks[1].stderr
    assert f"MAIN {expected.tolist()}" in ranks[0].stdout
    assert f"OTHER {expected.tolist()}" in ranks[1].stdout


def test_a_failing_rank_ends_the_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = _write_folder(tmp_path, 2)
    Image.new("L", (64, 48), 77).save(root / "labels" / "val" / "1.png")
    ranks = _launch(checkpoint.path, f"folder:{root}")
    assert all(r.returncode != 0 for r in ranks)
    assert "77" in ranks[1].stderr
    assert "other ranks failed" in ranks[0].stderr


def _write_folder(root: Path, count: int, classes: Sequence[str] = CLASSES) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        for kind in ("images", "labels"):
            (root / kind / "val").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / "val" / f"{i}.png")
        Image.new("L", (64, 48), i % 2).save(root / "labels" / "val" / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_label_id_that_is_no_class_is_a_data_error(
    checkpoint: Checkpoint, tmp_path: Path, nproc: int
) -> None:
    root = _write_folder(tmp_path, 3)
    Image.new("L", (64, 48), 77).save(root / "labels" / "val" / "2.png")
    with pytest.raises(DataError, match="77"):
        evaluate(checkpoint.path, data=f"folder:{root}", nproc=nproc)
    assert not (checkpoint.path / "eval.json.tmp").exists()


def test_a_killed_process_is_a_clear_error(checkpoint: Checkpoint) -> None:
    def kill(done: int, total: int) -> None:
        assert done < total == 100
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(SegDeployError, match="ended without an answer"):
        evaluate(checkpoint.path, data="synthetic:48x64:400", nproc=2, save=False, progress=kill)


def test_absent_classes_are_listed_and_not_averaged(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = _write_folder(tmp_path, 2)
    result = evaluate(checkpoint.path, data=f"folder:{root}", save=False)
    assert result.absent_classes == ["box", "triangle", "bar"]
    present = [result.class_iou["background"], result.class_iou["disc"]]
    assert result.mean_iou == pytest.approx(np.mean([p for p in present if p is not None]))


def test_another_class_count_says_both(checkpoint: Checkpoint, tmp_path: Path) -> None:
    root = _write_folder(tmp_path, 1, CLASSES[:3])
    with pytest.raises(DataError, match=r"knows 5 classes.*has 3"):
        evaluate(checkpoint.path, data=f"folder:{root}")
    with pytest.raises(DataError, match=r"multiclass.*binary"):
        evaluate(checkpoint.path, data="synthetic_binary:48x64")


def test_the_same_classes_in_another_order_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    root = _write_folder(tmp_path, 1, CLASSES[::-1])
    with pytest.raises(DataError, match="another order"):
        evaluate(checkpoint.path, data=f"folder:{root}")


def test_a_binary_model_has_a_confusion_of_two(tmp_path: Path) -> None:
    saved = _save(tmp_path, Task.BINARY, ("object",))
    result = evaluate(saved.path, data="synthetic_binary:48x64:8", save=False)
    assert result.confusion.shape == (2, 2)
    assert list(result.class_iou) == ["background", "object"]


def test_scored_at_the_labels_own_size(tmp_path: Path) -> None:
    saved = _save(tmp_path, size_rule=SizeRule.FIXED, size=(64, 96))
    result = evaluate(saved.path, data=DATA, save=False)
    labelled = sum(int((s.label != 255).sum()) for s in _samples())
    assert result.confusion.sum() == labelled


def _samples() -> list[Any]:
    dataset = open_dataset(DATA, "val")
    return [dataset[i] for i in range(len(dataset))]


def test_a_limited_evaluation_says_so(checkpoint: Checkpoint) -> None:
    result = evaluate(checkpoint.path, data=DATA, limit=3, save=False)
    assert result.num_images == 3
    assert "first 3 of 7" in result.data


def test_no_save_writes_nothing(tmp_path: Path) -> None:
    saved = _save(tmp_path)
    before = sorted(p.name for p in saved.path.iterdir())
    evaluate(saved.path, data=DATA, limit=1, save=False)
    assert sorted(p.name for p in saved.path.iterdir()) == before


def test_a_second_evaluation_replaces_its_pictures_only(tmp_path: Path) -> None:
    saved = _save(tmp_path)
    evaluate(saved.path, data=DATA)
    (saved.path / "samples" / "mine.png").write_bytes(b"kept")
    evaluate(saved.path, data=DATA, limit=2)
    names = sorted(p.name for p in (saved.path / "samples").iterdir())
    assert len(names) == 3
    assert "mine.png" in names


@pytest.mark.parametrize("options", [{"nproc": 0}, {"limit": 0}, {"nproc": -1}])
def test_senseless_options_are_refused(checkpoint: Checkpoint, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        evaluate(checkpoint.path, data=DATA, save=False, nproc=options.get("nproc", 1),
                 limit=options.get("limit"))  # fmt: skip


def test_nproc_under_torchrun_is_refused(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        evaluate(checkpoint.path, data=DATA, nproc=2)


def test_a_locked_run_is_left_alone(checkpoint: Checkpoint) -> None:
    with run_lock(checkpoint.path.parent), pytest.raises(RunLockedError):
        evaluate(checkpoint.path, data=DATA, limit=1)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a checkpoint or artifact"):
        evaluate(tmp_path, data=DATA)


def test_the_result_reads_back(checkpoint: Checkpoint) -> None:
    result = evaluate(checkpoint.path, data=DATA, limit=1, save=False)
    again = EvalResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()
