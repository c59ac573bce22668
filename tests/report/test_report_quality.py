"""What the page says of `eval.json` and of training, read back with an HTML parser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.folder import save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import EvalResult, ImageScore
from segdeploy.core.task import Task
from segdeploy.report import report
from segdeploy.report.runlog import smoothed

CLASSES = ("sky", "road", "pavement", "<b>pole")
CONFUSION = np.array([[900, 50, 0, 50], [0, 300, 100, 0], [10, 180, 10, 0], [0, 0, 0, 0]])
WORST = [ImageScore(2, "bad <i>one", 0.125, 0.5), ImageScore(0, "poor", 0.25, None)]
BEST = [ImageScore(1, "fine", 0.875, 0.95)]


def write_run(run: Path, result: EvalResult, name: str = "checkpoint") -> Path:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 4, None)
    manifest = Manifest(
        kind="checkpoint", model="unet", task=Task.MULTICLASS, classes=CLASSES,
        preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs,
        files={"weights.safetensors": ""},
    )  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / "weights.safetensors").write_bytes(b"x")

    save_folder(run / name, manifest, fill)
    write_eval(run / name, result.to_dict())
    return run / name


def write_eval(folder: Path, document: dict[str, Any]) -> None:
    (folder / "eval.json").write_text(json.dumps(document), encoding="utf-8")


def make_result(**changes: Any) -> EvalResult:
    fields: dict[str, Any] = {
        "target": "pytorch-fp32", "data": "folder/val", "classes": CLASSES, "confusion": CONFUSION,
        "num_images": 3, "mean_iou_ci": (0.31, 0.62), "worst": WORST, "best": BEST,
        "class_iou_ci": {"sky": (0.8, 0.93), "road": (0.375, 0.625), "pavement": None,
                         "<b>pole": None},
    }  # fmt: skip
    return EvalResult(**fields | changes)


def draw(path: Path, size: tuple[int, int] = (40, 20), *, noise: bool = False) -> None:
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255 if noise else 1, (size[1], size[0], 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)


class _Page(HTMLParser):
    """Text by section (h2), and the images with their captions."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, list[str]] = {"": []}
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self._tag, self._section = "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        if self._tag == "h2":
            self._section = data
            self.sections[data] = []
        self.sections[self._section].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def read_report(run: Path) -> tuple[_Page, str]:
    raw = report(run).read_text(encoding="utf-8")
    page = _Page()
    page.feed(raw)
    page.close()
    assert not page.tags & {"script", "b>pole", "i>one", "link", "object"}
    return page, raw


def test_class_bars_are_sorted_and_equal_the_result(tmp_path: Path) -> None:
    result = make_result()
    write_run(tmp_path / "run", result)
    page, raw = read_report(tmp_path / "run")
    words = page.sections["IoU per class"]
    assert [word for word in words if word in CLASSES] == ["sky", "road", "pavement"]
    for name in ("sky", "road"):
        iou, dice = result.class_iou[name], result.class_dice[name]
        low, high = (result.class_iou_ci or {})[name] or (0, 0)
        share = 100 * CONFUSION[CLASSES.index(name)].sum() / CONFUSION.sum()
        start = words.index(name)
        assert words[start + 1 : start + 5] == [
            f"{iou:.3f}", f"{low:.3f}-{high:.3f}", f"{dice:.3f}", f"{share:.1f} %"
        ]  # fmt: skip
    assert re.findall(r'<u style="([^"]*)"', raw) == [
        "left:80.0%;width:13.0%", "left:37.5%;width:25.0%"
    ]  # fmt: skip
    assert words[words.index("pavement") + 2] == "-"  # In one image only.


def test_scores_with_the_interval_and_only_kinds_that_exist(tmp_path: Path) -> None:
    result = make_result()
    write_run(tmp_path / "run", result)
    words = read_report(tmp_path / "run")[0].sections["Scores"]
    said = " ".join(words)
    assert f"{result.mean_iou:.4f}  0.3100-0.6200" in said
    assert f"{result.pixel_accuracy:.4f}" in words
    assert "MAE" not in words
    assert "foreground Dice" not in words


def test_a_binary_run_shows_its_foreground(tmp_path: Path) -> None:
    result = make_result(
        task=Task.BINARY, classes=("background", "object"), mae=0.0625, max_f=0.9375,
        confusion=np.array([[70, 10], [5, 15]]), class_iou_ci=None,
    )  # fmt: skip
    write_run(tmp_path / "run", result)
    page, _ = read_report(tmp_path / "run")
    words = page.sections["Scores"]
    assert {"foreground IoU", "foreground Dice", "MAE", "max-F"} <= set(words)
    assert {"0.5000", "0.6667", "0.0625", "0.9375"} <= set(words)
    assert "best foreground Dice: checkpoint" in page.sections[""]


def _cells(raw: str) -> dict[str, float]:
    """Title of each cell of the first heat picture, and the share that it is filled with."""
    svg = re.findall(r"<svg.*?</svg>", raw, flags=re.DOTALL)[0]
    return {
        group.findtext("title") or "": float(group.findall("rect")[1].attrib["fill-opacity"])
        for group in ET.fromstring(svg).iter("g")  # noqa: S314
    }


def test_the_heat_picture_is_the_confusion_by_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "run", make_result())
    page, raw = read_report(tmp_path / "run")
    cells = _cells(raw)
    assert len(cells) == 16
    assert cells["pavement → road: 180 pixels, 90.0 % of pavement"] == 0.9
    assert cells["sky → sky: 900 pixels, 90.0 % of sky"] == 0.9
    assert cells["<b>pole → sky: 0 pixels, 0.0 % of <b>pole"] == 0
    words = page.sections["Confusion"]
    pairs = [word for word in words if " → " in word and "pixels" not in word]
    assert pairs == [
        "pavement → road", "road → pavement", "sky → road", "sky → <b>pole", "pavement → sky"
    ]  # fmt: skip
    assert "25.0 % of road" in words
    assert "1 600 labelled pixels" in words


def test_of_many_classes_those_with_most_wrong_pixels_are_pictured(tmp_path: Path) -> None:
    confusion = np.diag(np.full(150, 1000))
    confusion[100:130, 7] += np.arange(30) + 1
    names = tuple(f"class {i}" for i in range(150))
    result = make_result(classes=names, confusion=confusion, class_iou_ci=None)
    write_run(tmp_path / "run", result)
    page, raw = read_report(tmp_path / "run")
    cells = _cells(raw)
    assert len(cells) == 24 * 24
    truths = {title.partition(" → ")[0] for title in cells}
    assert truths == {"class 7", *(f"class {i}" for i in range(107, 130))}
    assert "the 24 of 150 classes" in " ".join(page.sections["Confusion"])
    assert "class 129 → class 7" in page.sections["Confusion"]
    assert len(raw) < 400_000


@pytest.mark.parametrize(
    "confusion",
    [
        [[1]],
        [[1, 2], [3]],
        "x",
        [[-1] * 4] * 4,
        [[0.5] * 4] * 4,
        [[10**400] * 4] * 4,
        [[True] * 4] * 4,
    ],
)
def test_a_confusion_that_is_no_matrix_is_named_and_left_out(
    tmp_path: Path, confusion: Any
) -> None:
    folder = write_run(tmp_path / "run", make_result())
    write_eval(folder, make_result().to_dict() | {"confusion": confusion})
    page, _ = read_report(tmp_path / "run")
    assert "confusion" in " ".join(page.sections["Problems"])
    assert "Confusion" not in page.sections
    assert "sky" in page.sections["IoU per class"]


@pytest.mark.parametrize("value", [[1, 0], [0.2], ["a", "b"], {}, 3, [-1, 2]])
def test_a_damaged_interval_is_a_dash(tmp_path: Path, value: Any) -> None:
    folder = write_run(tmp_path / "run", make_result())
    intervals = {"sky": value, "road": None}
    write_eval(folder, make_result().to_dict() | {"class_iou_ci": intervals, "mean_iou_ci": value})
    page, raw = read_report(tmp_path / "run")
    assert "<u style" not in raw
    words = page.sections["IoU per class"]
    assert words[words.index("sky") + 2] == "-"


def test_a_class_score_that_is_no_number_is_named_and_left_out(tmp_path: Path) -> None:
    document = make_result().to_dict()
    document["class_iou"]["road"] = "high"
    write_eval(write_run(tmp_path / "run", make_result()), document)
    page = report(tmp_path / "run").read_text(encoding="utf-8")
    assert "checkpoint/eval.json: class_iou.road has the wrong type." in page
    assert "class_iou.&lt;b&gt;pole" not in page  # Null: absent, which is no fault.


def test_worst_and_best_images_carry_their_scores(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_result())
    for name in ("worst_00_bad_one", "worst_01_poor", "best_00_fine", "mine"):
        draw(folder / "samples" / f"{name}.png")
    page, _ = read_report(tmp_path / "run")
    assert [image["alt"] for image in page.images] == [
        "checkpoint: bad <i>one: mIoU 0.125, 50.0 % of its pixels right",
        "checkpoint: poor: mIoU 0.250",
        "checkpoint: fine: mIoU 0.875, 95.0 % of its pixels right",
        "checkpoint: mine",
    ]
    assert {"Worst images", "Best images"} <= set(page.sections["Samples"])


def _decode(image: dict[str, str | None]) -> tuple[bytes, Image.Image]:
    head, _, content = (image["src"] or "").partition(",")
    assert head == "data:image/webp;base64"
    plain = base64.b64decode(content, validate=True)
    return plain, Image.open(io.BytesIO(plain))


def test_pictures_are_bounded_in_bytes_and_number(tmp_path: Path) -> None:
    for folder in ("checkpoint", "second"):
        write_run(tmp_path / "run", make_result(), folder)
        for kind in ("worst", "best", "x"):
            for i in range(7):
                draw(tmp_path / "run" / folder / "samples" / f"{kind}_{i:02d}.png")
    draw(tmp_path / "run/checkpoint/samples/worst_00.png", (1400, 1200), noise=True)
    page, _ = read_report(tmp_path / "run")
    owners = [(image["alt"] or "").partition(":")[0] for image in page.images]
    assert (owners.count("checkpoint"), owners.count("second")) == (16, 6)
    content, picture = _decode(page.images[0])
    assert len(content) <= 256 * 2**10
    assert picture.width / picture.height == pytest.approx(1400 / 1200, rel=0.01)


def test_an_image_bomb_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", make_result())
    (folder / "samples").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "samples" / "worst_00_huge.png")
    page, _ = read_report(tmp_path / "run")
    assert "worst_00_huge.png is too large" in " ".join(page.sections["Problems"])
    assert not page.images


def _write_log(run: Path, epochs: int = 12) -> None:
    lines = [
        {"epoch": e, "loss": 1.0, "lr": 0.1, "mean_iou": 0.5 - abs(e - 8) / 100, "images_s": 7.0,
         "pixel_accuracy": 0.9, "seconds": 60}
        for e in range(epochs)
    ]  # fmt: skip
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_training_shows_curves_steps_and_the_same_samples_over_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, make_result())
    _write_log(run)
    steps = [{"epoch": 0, "step": s, "loss": 2 - s / 5000, "grad_norm": 1.5} for s in range(5000)]
    (run / "steps.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    for epoch in range(2, 12):
        draw(run / "val" / f"epoch_{epoch:04d}.png", (64, 200))
    page, raw = read_report(run)
    words = page.sections["Training"]
    titles = {"Training loss", "Validation", "Learning rate", "Training speed", "Loss by step"}
    assert titles | {"Gradient norm"} <= set(words)
    assert "12 epochs, 12.0 minutes; best mIoU 0.5000 after epoch 8." in words
    assert [image["alt"] for image in page.images] == [
        "epoch 2, mIoU 0.440", "epoch 7, mIoU 0.490", "epoch 8, mIoU 0.500 (best)",
        "epoch 11, mIoU 0.470",
    ]  # fmt: skip
    for points in re.findall(r'<polyline class="[^"]*" points="([^"]*)"', raw):
        assert len(points.split()) <= 1000


def test_damaged_step_lines_and_strips_are_named_briefly(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, make_result())
    (run / "steps.jsonl").write_bytes(b'{"step": 0, "loss": 1}\n' + b"\xff{\n" * 500)
    draw(run / "val" / "epoch_0003.png")
    (run / "val" / "epoch_0004.png").write_bytes(b"no picture")
    page, _ = read_report(run)
    said = page.sections["Problems"]
    assert "steps.jsonl, line 2 is damaged." in said
    assert "more problems." in said[-1]
    assert len(said) < 60
    assert [image["alt"] for image in page.images] == ["epoch 3"]


def test_smoothing_is_a_centred_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.random(400)
    points, means = smoothed([(float(i), float(y)) for i, y in enumerate(values)])
    assert [y for _, y in points] == pytest.approx(values)
    expected = [values[max(0, i - 4) : i + 5].mean() for i in range(400)]
    assert [y for _, y in means] == pytest.approx(expected)


def test_thinning_keeps_the_mean_and_passes_over_what_is_missing() -> None:
    values: NDArray[np.float64] = np.arange(3000.0)
    known = [(float(x), None if x % 3 == 0 else float(x)) for x in values]
    points, means = smoothed(known)
    assert len(points) == len(means) == 1000
    assert points[0] == (1.5, 1.5)
    assert smoothed([(0.0, None)]) == ([], [])
