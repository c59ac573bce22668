"""Calibration of an export: which images, what is written down, and clear errors on every fault."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.errors import ArtifactError, ConfigError, DataError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.target import ClipMethod
from segdeploy.evaluate import evaluate
from segdeploy.export import Int8Options, export
from segdeploy.export.calibration import open_calibration
from segdeploy.export.coverage import spread
from segdeploy.verify import find_judges, verify
from segdeploy.verify.cases import plan_cases
from segdeploy.workflows.choose_output import export_fastest
from segdeploy.workflows.export_verified import export_and_verify
from segdeploy.workflows.tune import TunePlan, tune

CLASSES = ("background", "disc", "box", "stripe", "thin")
Edit = Callable[[Path], object]


def _image(seed: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def write_folder(
    root: Path,
    num_train: int = 6,
    size: tuple[int, int] = (48, 64),
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Write a `folder` data set with train and val splits of noise images."""
    for split, count, first in (("train", num_train, 0), ("val", 3, 1000)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            label = np.random.default_rng(index).integers(0, len(classes), size).astype(np.uint8)
            Image.fromarray(_image(first + index, size)).save(root / f"images/{split}/{index}.png")
            Image.fromarray(label).save(root / f"labels/{split}/{index}.png")
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain_run, tmp_path / "run")
    return tmp_path / "run"


def _export(checkpoint: Checkpoint, root: Path, out: Path, **options: Any) -> Path:
    chosen = {"num_calibration_images": 3, **options}
    found = export(checkpoint.path, ["onnx-int8"], out, calibration=f"folder:{root}", **chosen)
    return found[0].path


def test_labels_that_are_all_ignored_fall_back_to_an_even_spread(root: Path) -> None:
    for path in (root / "labels/train").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(path)
    found = open_calibration(f"folder:{root}", 3)
    assert found.chosen_by == "even spread: no pixel is labelled"
    assert found.indices == spread(6, 3)


def test_more_images_than_there_are_means_all(root: Path) -> None:
    found = open_calibration(f"folder:{root}", 1000)
    assert found.indices == tuple(range(6))
    assert found.chosen_by == "all"


def test_calibration_json_tells_options_images_and_clipped_shares(
    checkpoint: Checkpoint, root: Path, run: Path
) -> None:
    options = Int8Options(ClipMethod.PERCENTILE, 99.0, equalize=True, correct_bias=True)
    folder = _export(checkpoint, root, run, int8_options=options)
    told = json.loads((folder / "calibration.json").read_text())
    assert told["options"] == {
        "method": "percentile", "percentile": 99.0, "equalize": True, "correct_bias": True,
        "recipe": told["options"]["recipe"],
    }  # fmt: skip
    assert len(told["images"]) == 3
    shares = [r["clipped_share"] for r in told["ranges"].values()]
    assert 0.002 < max(shares) <= 0.011
    onnx.checker.check_model(onnx.load(str(folder / "model.onnx")), full_check=True)


def test_other_options_are_other_work_for_int8_alone(
    checkpoint: Checkpoint, root: Path, run: Path
) -> None:
    targets = ["onnx-fp32", "onnx-fp16", "onnx-int8"]
    keys: list[list[str]] = []
    for options in (None, Int8Options(), Int8Options(ClipMethod.MIN_MAX)):
        done = export(
            checkpoint.path, targets, run, calibration=f"folder:{root}",
            num_calibration_images=2, int8_options=options,
        )  # fmt: skip
        keys.append([load_artifact(o.path).manifest.build_key or "" for o in done])
    assert keys[0] == keys[1]  # None is the defaults.
    assert keys[1][:2] == keys[2][:2]
    assert keys[1][2] != keys[2][2]


@pytest.mark.parametrize("method", list(ClipMethod))
def test_every_method_gives_an_artifact(
    checkpoint: Checkpoint, root: Path, run: Path, method: ClipMethod
) -> None:
    folder = _export(checkpoint, root, run, int8_options=Int8Options(method))
    told = json.loads((folder / "calibration.json").read_text())
    assert told["options"]["method"] == method
    assert all(r["scale"] > 0 for r in told["ranges"].values())


def test_a_binary_model_is_calibrated(binary_checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(
        binary_checkpoint.path, ["onnx-int8"], tmp_path, calibration="synthetic_binary:64x96",
        num_calibration_images=2, int8_options=Int8Options(equalize=True, correct_bias=True),
    )  # fmt: skip
    assert done[0].path.is_dir()


def test_images_of_other_sizes_calibrate(checkpoint: Checkpoint, root: Path, run: Path) -> None:
    for index, size in ((0, (33, 90)), (1, (120, 40))):
        Image.fromarray(_image(index, size)).save(root / f"images/train/{index}.png")
        label = np.zeros(size, np.uint8)
        Image.fromarray(label).save(root / f"labels/train/{index}.png")
    folder = _export(checkpoint, root, run, num_calibration_images=6)
    assert len(json.loads((folder / "calibration.json").read_text())["images"]) == 6


@pytest.mark.parametrize("count", [1, 2])
def test_one_image_and_equal_images_calibrate(
    checkpoint: Checkpoint, root: Path, run: Path, count: int
) -> None:
    for path in sorted((root / "images/train").iterdir()):
        Image.fromarray(_image(0)).save(path)
    folder = _export(checkpoint, root, run, num_calibration_images=count)
    assert len(json.loads((folder / "calibration.json").read_text())["images"]) == count


def test_constant_images_calibrate(checkpoint: Checkpoint, root: Path, run: Path) -> None:
    for path in (root / "images/train").iterdir():
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(path)
    folder = _export(checkpoint, root, run)
    ranges = json.loads((folder / "calibration.json").read_text())["ranges"]
    assert all(r["scale"] > 0 for r in ranges.values())


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _empty(root: Path) -> None:
    for path in [*(root / "images/train").iterdir(), *(root / "labels/train").iterdir()]:
        path.unlink()


def _tiny(root: Path) -> None:
    for kind in ("images", "labels"):
        for path in (root / kind / "train").iterdir():
            with Image.open(path) as image:
                image.crop((0, 0, 20, 20)).save(path)


FAULTS: dict[str, tuple[Edit, str]] = {
    "no images": (_empty, "train"),
    "no train split": (lambda r: (r / "images/train").rename(r / "gone"), "train"),
    "unreadable image": (lambda r: _truncate(r / "images/train/2.png"), "2.png"),
    "image that is text": (lambda r: (r / "images/train/2.png").write_text("hello"), "2.png"),
    "unreadable label": (lambda r: _truncate(r / "labels/train/2.png"), "2.png"),
    "lost label": (lambda r: (r / "labels/train/2.png").unlink(), "2.png"),
    "label of another size": (
        lambda r: Image.fromarray(np.zeros((9, 9), np.uint8)).save(r / "labels/train/2.png"), "9x9",
    ),
    "label id beyond the classes": (
        lambda r: Image.fromarray(np.full((48, 64), 9, np.uint8)).save(r / "labels/train/2.png"),
        "label ids",
    ),
    "label of three channels": (
        lambda r: Image.fromarray(_image(9)).save(r / "labels/train/2.png"), "2.png",
    ),
    "images too small for a model": (_tiny, "at least 32x32"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_images_is_a_clear_error_and_nothing_is_half_written(
    fault: str, checkpoint: Checkpoint, root: Path, run: Path
) -> None:
    edit, told = FAULTS[fault]
    edit(root)
    with pytest.raises(DataError) as caught:
        _export(checkpoint, root, run, num_calibration_images=5)
    assert told in str(caught.value)
    assert [p.name for p in run.iterdir()] == ["onnx-fp32"]  # And no temporary folder.


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_that_is_not_positive_is_refused(root: Path, count: int) -> None:
    with pytest.raises(ConfigError, match="at least one image"):
        open_calibration(f"folder:{root}", count)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--calibration-method", "median"), "min-max"),
        (("--calibration-method", "percentile", "--percentile", "0"), "percentile"),
        (("--calibration-method", "percentile", "--percentile", "101"), "percentile"),
        (("--calibration-images", "0"), "at least one image"),
    ],
)
def test_wrong_flags_exit_2(
    cli: Callable[..., tuple[int, str, str]],
    checkpoint: Checkpoint,
    root: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    told: str,
) -> None:
    code, _, err = cli(
        "export", str(checkpoint.path), "--target", "onnx-int8", "--out", str(tmp_path / "run"),
        "--calibration", f"folder:{root}", *flags,
    )  # fmt: skip
    assert code == 2
    assert told in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Path:
    """A data set that trains on an image of the val split of `root`, called `holiday` there."""
    other = write_folder(tmp_path / "other")
    (root / "images/val/1.png").replace(other / "images/train/holiday.png")
    (root / "labels/val/1.png").replace(other / "labels/train/holiday.png")
    for kind in ("images", "labels"):  # The same picture, stored anew: its bytes differ.
        with Image.open(other / kind / "train/holiday.png") as copied:
            copied.save(root / kind / "val/1.png", compress_level=1)
    return other


def test_a_val_image_among_the_calibration_images_is_found(
    checkpoint: Checkpoint, root: Path, run: Path, other: Path
) -> None:
    folder = _export(checkpoint, other, run, num_calibration_images=100)
    for judge in (verify, evaluate):
        with pytest.raises(DataError, match=r"Image 1 of .*val.* calibrated .*holiday"):
            judge(folder, data=f"folder:{root}")
    with pytest.raises(DataError, match="holiday"):
        export_and_verify(
            checkpoint.path, ["onnx-int8"], run, data=f"folder:{root}",
            calibration=f"folder:{other}", num_calibration_images=100,
        )  # fmt: skip
    assert not (folder / "eval.json").exists()
    assert evaluate(folder, data=f"folder:{other}", split="train").num_images == 7  # On purpose.
    (folder / "calibration.json").unlink()  # Then nobody knows; the manifest knows that it was.
    for judge in (verify, evaluate):
        with pytest.raises(ArtifactError, match=r"lacks its file calibration\.json"):
            judge(folder, data=f"folder:{root}")


def test_images_that_would_judge_are_refused_before_anything_is_built(
    checkpoint: Checkpoint, root: Path, run: Path, other: Path, tmp_path: Path
) -> None:
    leak: dict[str, Any] = {
        "data": f"folder:{root}", "calibration": f"folder:{other}", "num_calibration_images": 100,
    }  # fmt: skip
    told = r"Image 1 of .*val.* calibrated .*holiday"
    works: list[Callable[..., object]] = [export_and_verify, export_fastest]
    for work in works:
        for dry_run in (True, False):
            with pytest.raises(DataError, match=told):
                work(checkpoint.path, ["onnx-int8"], run, dry_run=dry_run, **leak)
        assert [p.name for p in run.iterdir()] == ["onnx-fp32"]
    plan = TunePlan(checkpoint=checkpoint.path, target="onnx-int8", work=tmp_path / "work", **leak)
    with pytest.raises(DataError, match=told):
        tune(plan, tmp_path / "mine.toml")
    assert not any((tmp_path / "work").glob("*/manifest.json"))
    # What nobody judges may take any image, and fp16 has no ranges.
    (made, *_) = export_and_verify(checkpoint.path, ["onnx-int8"], run, verify=False, **leak)
    assert made.outcome.path.is_dir()
    assert export_and_verify(checkpoint.path, ["onnx-fp16"], run, **leak)[0].passed


def test_the_images_that_judge_are_those_that_verify_reads(checkpoint: Checkpoint) -> None:
    judges = find_judges("synthetic:64x96:40")
    assert list(judges.indices) == [0, 1, 3, 4, 5, 6, 8, 9]  # 8, spread over 10.
    case = plan_cases(checkpoint, "synthetic:64x96:40", 8)[0]
    read = [batch[0] for batch in case.batches()]
    for image, index in zip(read, judges.indices, strict=True):
        np.testing.assert_array_equal(image, judges.dataset[index].image)


def test_calibration_json_holds_the_grids_of_the_graph(
    checkpoint: Checkpoint, root: Path, run: Path
) -> None:
    folder = _export(checkpoint, root, run)
    graph = onnx.load(str(folder / "model.onnx")).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    told = json.loads((folder / "calibration.json").read_text())["ranges"]
    quantized = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in told]
    assert len(quantized) == len(told) > 2
    for node in quantized:
        grid = told[node.input[0]]["asymmetric"]  # ONNX Runtime's policy is asymmetric.
        assert float(stored[node.input[1]]) == grid["scale"]
        assert int(stored[node.input[2]]) == grid["zero_point"]
        ends = [(end - grid["zero_point"]) * grid["scale"] for end in (0, 255)]
        assert ends == pytest.approx([grid["low"], grid["high"]])


def test_a_percentile_that_changes_nothing_is_refused() -> None:
    for options in (Int8Options(percentile=99.0), Int8Options(ClipMethod.MIN_MAX, 99.0)):
        with pytest.raises(ConfigError, match="changes nothing"):
            options.check()
    Int8Options(ClipMethod.PERCENTILE, 99.0).check()
    Int8Options(ClipMethod.MIN_MAX).check()


def test_a_killed_calibration_leaves_the_run_folder_unharmed(
    checkpoint: Checkpoint, root: Path, run: Path
) -> None:
    folder = _export(checkpoint, root, run)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    child = os.fork()
    if child == 0:  # The fork holds the tiny model's zoo; it dies in the middle of pass 1.

        def die(what: str, done: int, _: int) -> None:
            if "calibrate" in what and done == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        other = Int8Options(ClipMethod.MIN_MAX)  # Ranges that this process does not know yet.
        _export(checkpoint, root, run, int8_options=other, progress=die)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert load_artifact(folder).path == folder
    again = _export(checkpoint, root, run, int8_options=Int8Options(ClipMethod.MIN_MAX))
    assert json.loads((again / "calibration.json").read_text())["options"]["method"] == "min-max"
    assert sorted(p.name for p in run.iterdir()) == ["onnx-fp32", "onnx-int8"]


def test_the_few_images_are_the_same_whatever_the_order(root: Path) -> None:
    found = open_calibration(f"folder:{root}", 5)
    turned = dataclasses.replace(found, indices=found.indices[::-1])
    few, others = found.few(2), turned.few(2)
    assert few.indices == others.indices
    assert few.digest == others.digest
    assert len(few.images) == 2
    digests = sorted(each["sha256"] for each in found.images)
    assert [each["sha256"] for each in few.images] == digests[:2]
