"""The page about a calibration: numbers that agree with calibration.json, and what is enough."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.export import export
from segdeploy.export.calibration import open_calibration
from segdeploy.export.calibration_report import (
    CalibrationReport,
    find_enough,
    halvings,
    report_calibration,
)
from segdeploy.graph.clipping import Histogram, TensorRange, choose_clip, signal_to_noise
from segdeploy.graph.placement import place_qdq

DATA = "synthetic:64x96"


def test_the_flag_writes_a_page_with_the_ranges_of_calibration_json(
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
    ranges = json.loads((folder / "calibration.json").read_text())["ranges"]
    assert {row["tensor"]: row["clip"] for row in numbers["rows"]} == {
        name: found["clip"] for name, found in ranges.items()
    }
    assert list(numbers["close"]) == ["1", "2", "4", "5"]
    page = (folder / "calibration.html").read_text()
    HTMLParser().feed(page)
    assert all(name in page for name in ranges)
    assert numbers["sentence"] in page.replace("&#x27;", "'")
    assert numbers["sentence"] in err
    load_artifact(folder)  # The artifact is what it was.


def test_an_image_artifact_has_its_page_too(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(
        checkpoint.path, ["onnx-int8"], tmp_path, calibration=DATA, num_calibration_images=2,
        io=IoContract(InputKind.IMAGE),
    )  # fmt: skip
    found = report_calibration(load_artifact(done[0].path), open_calibration(DATA, 2))
    told = json.loads((done[0].path / "calibration.json").read_text())["ranges"]
    assert {row.tensor: row.clip for row in found.rows} == {n: r["clip"] for n, r in told.items()}


def test_the_clip_by_the_answer_is_told(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page tells the range that the artifact has, not one that is chosen again."""

    def halve(_: object, ranges: dict[str, TensorRange], __: object) -> dict[str, TensorRange]:
        return {name: replace(found, clip=found.clip / 2) for name, found in ranges.items()}

    def maps(model: onnx.ModelProto) -> list[str]:
        return list(place_qdq(model).observed)

    monkeypatch.setattr("segdeploy.export.graphs.stem_maps", maps)
    monkeypatch.setattr("segdeploy.export.graphs.narrow_by_answer", halve)
    done = export(
        checkpoint.path, ["onnx-int8"], tmp_path, calibration=DATA, num_calibration_images=2
    )
    found = report_calibration(load_artifact(done[0].path), open_calibration(DATA, 2))
    told = json.loads((done[0].path / "calibration.json").read_text())["ranges"]
    assert {row.tensor: row.clip for row in found.rows} == {n: r["clip"] for n, r in told.items()}
    assert any(row.clip < 0.6 * row.abs_max for row in found.rows)


def test_an_artifact_without_ranges_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    done = export(checkpoint.path, ["onnx-fp32"], tmp_path)
    with pytest.raises(ConfigError, match="no ranges"):
        report_calibration(load_artifact(done[0].path), open_calibration(DATA, 2))


@pytest.mark.parametrize(
    ("num_left", "cure"),
    [(0, "There are no more."), (2, "--calibration-images 7."), (90, "--calibration-images 10.")],
)
def test_no_more_images_are_advised_than_there_are(num_left: int, cure: str) -> None:
    assert CalibrationReport([], {5: 1.0}, None, num_left).sentence.endswith(cure)


def test_enough_is_where_scales_have_settled() -> None:
    steps = halvings(9)
    assert steps == [1, 2, 4, 8, 9]
    assert halvings(1) == [1]
    assert halvings(8) == [1, 2, 4, 8]
    moving = [{"a": s, "b": 1.0} for s in (0.5, 1.0, 0.8, 0.99, 1.0)]
    close, enough = find_enough(moving, steps)
    assert close == {1: 0.5, 2: 1.0, 4: 0.5, 8: 1.0, 9: 1.0}
    assert enough == 8  # 2 agreed by chance: 4 did not.
    assert find_enough([{"a": 0.5}, {"a": 1.0}], [1, 2])[1] is None
    assert find_enough([{"a": 1.0}], [1])[1] is None


@pytest.mark.parametrize(("change", "moving", "enough"), [
    (1.049, 20, 1), (0.951, 20, 1), (1.051, 1, 1), (0.949, 1, 1), (1.051, 2, None),
    (0.949, 2, None),
])  # fmt: skip
def test_enough_is_19_of_20_scales_within_5_percent(
    change: float, moving: int, enough: int | None
) -> None:
    final = {str(n): 2.0 for n in range(20)}
    first = {name: 2 * change if int(name) < moving else 2.0 for name in final}
    assert find_enough([first, final], [1, 2])[1] == enough


def test_signal_to_noise_is_that_of_rounding() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    found = Histogram()
    found.add(values)
    clip = choose_clip(found).clip
    rounded = np.clip(np.rint(values / clip * 127), -127, 127) * clip / 127
    slow = 10 * np.log10(np.mean(values**2) / np.mean((values - rounded) ** 2))
    assert signal_to_noise(found, clip) == pytest.approx(slow, abs=0.3)
