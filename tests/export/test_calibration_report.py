"""The page about a calibration: what the artifact has, what it does, and what is enough."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.export import Int8Options, export
from segdeploy.export.calibration import open_calibration
from segdeploy.export.calibration_report import (
    CalibrationReport,
    describe_tensor,
    find_enough,
    halvings,
    render_report,
    report_calibration,
    share_close,
)
from segdeploy.graph.calibrate import run_all, select_outputs
from segdeploy.graph.clipping import Histogram
from segdeploy.graph.placement import place_qdq

DATA = "synthetic:64x96:40"
GRIDS = {"default": "asymmetric", "tensorrt": "symmetric"}


@pytest.fixture
def make(checkpoint: Checkpoint, plain_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Export to onnx-int8 with so many images, into a folder of its own."""

    def work(count: int, **options: Any) -> Path:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        shutil.copytree(plain_run, run)
        return export(
            checkpoint.path, ["onnx-int8"], run, calibration=DATA, num_calibration_images=count,
            **options,
        )[0].path  # fmt: skip

    return work


def ranges_of(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "calibration.json").read_text())[
        "ranges"
    ]
    return found


def test_the_flag_writes_a_page_with_the_grids_of_calibration_json(
    cli: Callable[..., tuple[int, str, str]], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    code, _, err = cli(
        "export", str(checkpoint.path), "--target", "onnx-int8", "--out", str(tmp_path),
        "--calibration", DATA, "--calibration-images", "5", "--calibration-report",
        "--no-verify", "--equalize",
    )  # fmt: skip
    assert code == 0, err
    folder = tmp_path / "onnx-int8"
    numbers = json.loads((folder / "calibration_report.json").read_text())
    ranges = ranges_of(folder)
    keys = ("low", "high", "scale", "zero_point", "clipped_share")
    assert {row["tensor"]: {key: row[key] for key in keys} for row in numbers["rows"]} == {
        name: found["asymmetric"] for name, found in ranges.items()
    }
    assert numbers["grid"] == "asymmetric"
    assert {row["tensor"]: row["abs_max"] for row in numbers["rows"]} == {
        name: found["abs_max"] for name, found in ranges.items()
    }
    assert list(numbers["close"]) == ["1", "2", "4", "5"]
    page = (folder / "calibration.html").read_text()
    HTMLParser().feed(page)
    assert all(name in page for name in ranges)
    assert numbers["sentence"] in page.replace("&#x27;", "'")
    assert numbers["sentence"] in err
    load_artifact(folder)  # The artifact is what it was.


@pytest.mark.parametrize("policy", GRIDS)
@pytest.mark.parametrize("equalize", [False, True])
def test_a_row_of_fewer_images_is_a_real_export_with_so_many(
    make: Callable[..., Path], policy: str, equalize: bool
) -> None:
    options = {"int8_policy": policy, "int8_options": Int8Options(equalize=equalize)}
    folder = make(5, **options)
    images = open_calibration(DATA, 5, Int8Options(equalize=equalize))
    found = report_calibration(load_artifact(folder), images)

    def scales(path: Path) -> NDArray[np.float64]:
        told = ranges_of(path).values()
        symmetric = GRIDS[policy] == "symmetric"
        return np.array([(r if symmetric else r["asymmetric"])["scale"] for r in told])

    final = scales(folder)
    for count in (1, 2, 4):
        off = np.abs(scales(make(count, **options)) / final - 1)
        assert found.close[count] == np.mean(off <= 0.05)
    assert found.close[5] == 1
    assert not set(images.smaller(2).indices) <= set(images.indices)  # Else any subset would do.


def test_fewer_images_are_those_that_the_flag_takes_and_no_label_is_read_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = open_calibration(DATA, 10)  # Looks at all 40.

    def fail(*_: object) -> None:
        raise AssertionError("a label was read again")

    monkeypatch.setattr("segdeploy.export.coverage.count_classes", fail)
    smaller = {count: images.smaller(count) for count in (1, 2, 4, 8)}
    monkeypatch.undo()
    for count, found in smaller.items():
        assert found.indices == open_calibration(DATA, count).indices
        assert found.chosen_by == images.chosen_by


@pytest.mark.parametrize("policy", GRIDS)
def test_what_a_grid_clips_and_keeps_is_that_of_rounding_the_recorded_activations(
    make: Callable[..., Path], plain_run: Path, policy: str
) -> None:
    folder = make(3, int8_policy=policy)
    images = open_calibration(DATA, 3)
    found = report_calibration(load_artifact(folder), images)
    assert found.grid == GRIDS[policy]
    ranges = ranges_of(folder)
    model = onnx.load(str(plain_run / "onnx-fp32" / "model.onnx"))
    session = open_plain(select_outputs(model, list(ranges)))
    parts = list(run_all(session, lambda: images.batches(PreprocessSpec(), None, "")))
    for row in found.rows:
        values = np.concatenate([part[row.tensor].ravel() for part in parts]).astype(np.float64)
        told = ranges[row.tensor]
        if policy == "default":
            step, zero = told["asymmetric"]["scale"], told["asymmetric"]["zero_point"]
            ends = (0, 255)
        else:
            step, zero, ends = told["scale"], 0, (-127, 127)
        whole = np.rint(values / step) + zero
        kept = (np.clip(whole, *ends) - zero) * step
        slow = 10 * np.log10(np.sum(values**2) / np.sum((kept - values) ** 2))
        assert row.snr_db == pytest.approx(slow, abs=0.1)
        few, many = (  # A histogram's bins are 0.1 % wide: that is how well it knows a value.
            np.mean((whole < ends[0]) | (whole > ends[1]))
            for whole in (np.rint(values * wider / step) + zero for wider in (0.999, 1.001))
        )
        assert few <= row.clipped_share <= many
        shown = told if policy == "tensorrt" else told["asymmetric"]
        assert row.clipped_share == pytest.approx(shown["clipped_share"])
        lowest, highest = min(values.min(), 0.0), max(values.max(), 0.0)
        assert (row.lowest, row.highest) == pytest.approx((lowest, highest))
        grid = [(end - zero) * step for end in ends]
        assert [row.low, row.high] == pytest.approx(grid)
        assert (row.scale, row.zero_point) == (step, zero)


def open_plain(model: onnx.ModelProto) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_an_image_artifact_has_its_page_too(make: Callable[..., Path]) -> None:
    folder = make(2, io=IoContract(InputKind.IMAGE))
    found = report_calibration(load_artifact(folder), open_calibration(DATA, 2))
    assert {row.tensor: row.scale for row in found.rows} == {
        name: told["asymmetric"]["scale"] for name, told in ranges_of(folder).items()
    }


def test_the_clip_by_the_answer_is_told_with_facts_of_all_images(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = ranges_of(make(5))

    def maps(model: onnx.ModelProto) -> list[str]:
        return [name for name in place_qdq(model).observed if name in usual][:1]

    monkeypatch.setattr("segdeploy.export.graphs.stem_maps", maps)
    monkeypatch.setattr("segdeploy.export.graphs.NUM_ASKED", 2)
    monkeypatch.setattr("segdeploy.export.graphs._known", {})
    folder = make(5)
    ranges = ranges_of(folder)
    (name,) = (each for each, told in ranges.items() if "by_answer" in told)
    told = ranges[name]
    assert told["abs_max"] == usual[name]["abs_max"]  # Of all images.
    how = told["by_answer"]
    assert told["clip"] == pytest.approx(how["share"] * usual[name]["clip"])
    assert how["tried"] == [1.0, 0.85, 0.72, 0.6, 0.5, 0.42]
    assert how["num_images"] == 2
    assert "outputs" in how["method"]
    found = report_calibration(load_artifact(folder), open_calibration(DATA, 5))
    rows = {row.tensor: row for row in found.rows}
    assert {each for each, row in rows.items() if row.answer_share is not None} == {name}
    assert rows[name].clipped_share == told["asymmetric"]["clipped_share"]
    page = (folder / "calibration.html").read_text()
    assert f"{how['share']:g} of that with the least squared error" in page


def test_an_artifact_without_ranges_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(checkpoint.path, ["onnx-fp32"], tmp_path)
    with pytest.raises(ConfigError, match="no ranges"):
        report_calibration(load_artifact(done[0].path), open_calibration(DATA, 2))


@pytest.mark.parametrize(
    ("num_left", "cure"),
    [(0, "There are no more."), (2, "--calibration-images 7."), (90, "--calibration-images 10.")],
)
def test_no_more_images_are_advised_than_there_are(num_left: int, cure: str) -> None:
    for close in ({5: 1.0}, {4: 0.5, 5: 1.0}):
        assert CalibrationReport([], close, None, num_left).sentence.endswith(cure)


def test_the_sentence_says_no_more_than_what_was_found() -> None:
    def say(**close: float) -> str:
        found = {int(number[1:]): share for number, share in close.items()}
        return CalibrationReport([], found, find_enough(found), 9).sentence

    assert say(_1=0.2, _2=0.58, _4=1.0).startswith(
        "2 images give 58 % of the scales of 4 images within 5 %: images beyond 4 may still matter."
    )
    assert say(_1=0.2, _2=0.96, _4=1.0) == (
        "2 images are enough: they give 96 % of the scales of 4 images within 5 %."
    )
    assert say(_1=0.95, _2=1.0, _4=1.0) == (
        "1 image is enough: so many, and more, give at least 95 % of the scales of 4 images "
        "within 5 %."
    )
    assert "nothing can be said" in say(_1=1.0)


def test_enough_is_where_scales_have_settled() -> None:
    assert halvings(9) == [1, 2, 4, 8, 9]
    assert halvings(1) == [1]
    assert halvings(8) == [1, 2, 4, 8]
    assert find_enough({1: 0.5, 2: 1.0, 4: 0.5, 8: 1.0, 9: 1.0}) == 8  # 2 agreed by chance.
    assert find_enough({1: 0.5, 2: 1.0}) is None
    assert find_enough({1: 1.0}) is None


@pytest.mark.parametrize(("change", "moving", "enough"), [
    (1.049, 20, 1), (0.951, 20, 1), (1.051, 1, 1), (0.949, 1, 1), (1.051, 2, None),
    (0.949, 2, None),
])  # fmt: skip
def test_enough_is_19_of_20_scales_within_5_percent(
    change: float, moving: int, enough: int | None
) -> None:
    final = {str(n): 2.0 for n in range(20)}
    first = {name: 2 * change if int(name) < moving else 2.0 for name in final}
    assert find_enough({1: share_close(first, final), 2: 1.0}) == enough


def row_of(values: NDArray[np.float32], floor: float | None = None, **told: Any) -> Any:
    found = Histogram(floor)
    assert found.add(values)
    return describe_tensor("t", found, {"scale": 0.05, **told}, is_symmetric=True)


def test_harmless_clipping_is_told_from_what_readers_see() -> None:
    values = np.random.default_rng(0).normal(-3, 3, 50_000).astype(np.float32)
    row = row_of(values, -3.0)
    assert row.clipped_share == pytest.approx(np.mean(np.abs(values) > 127.5 * 0.05), abs=1e-3)
    assert row.clipped_share > 0.1
    raised = np.maximum(values, -3).astype(np.float64)
    kept = np.clip(np.rint(raised / 0.05), -127, 127) * 0.05
    slow = 10 * np.log10(np.sum(raised**2) / np.sum((kept - raised) ** 2))
    assert row.snr_read_db == pytest.approx(slow, abs=0.2)
    assert row.snr_read_db > row.snr_db + 10
    assert row_of(np.ones(9, np.float32), -3.0).floor is None  # No value lies below it.


def test_the_page_has_words_for_all_it_shows() -> None:
    good = row_of(np.linspace(-3, 3, 999, dtype=np.float32))
    poor = row_of(np.array([-1e4, 1e4], np.float32), by_answer={"share": 0.6})
    rows = [good, poor.__class__(**{**vars(poor), "tensor": "<poor>"})]
    report = CalibrationReport(rows, {1: 0.3, 2: 0.58, 4: 1.0}, None, 9, "asymmetric", "entropy")
    page = render_report(report, "a&b")
    assert "<html lang='en'>" in page
    assert "uint8 with a zero point" in page
    assert "method entropy" in page
    assert "4 images of the train split" in page
    assert "0.6 of that with the least squared error" in page
    assert "a&amp;b" in page
    assert page.index("&lt;poor&gt;") < page.index("<td>t<td>")  # Of which the grid keeps least.
    assert ">share of scales, %</text>" in page
    assert ">images</text>" in page
    assert ">Scales within 5 % of those of 4 images</text>" in page
    assert ">58 %</text>" in page
    for row in rows:
        assert f"<td>{row.low:.4g}<td>{row.high:.4g}<td>0.05<td>0<td>" in page
    assert page.count("width='160.0'") == len(rows)  # Each has its own scale, and fills it.
