from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import ArtifactError, RunLockedError
from segdeploy.core.folder import load_folder, save_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import BenchResult, EvalResult, Failure, ParityReport
from segdeploy.core.task import Task
from segdeploy.report import report
from segdeploy.report.plots import Series, line_plot

CLASSES = ("Sky", "Building", "Pole")
HOSTILE = "<script>alert('x')</script>"


def make_folder(run: Path, name: str, target: str | None = None, **changes: Any) -> Path:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, len(CLASSES), None)
    payload = "weights.safetensors" if target is None else "model.onnx"
    manifest = Manifest(
        kind="checkpoint" if target is None else "artifact", model="unet", task=Task.MULTICLASS,
        classes=CLASSES, preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs,
        files={payload: ""}, target=target,
    ).replace(**changes)  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / payload).write_bytes(bytes(2**20))

    save_folder(run / name, manifest, fill)
    return run / name


def write(folder: Path, name: str, document: Any) -> None:
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


def bench_document(folder: Path, scale_ms: float, **environment: Any) -> dict[str, Any]:
    told = {"bench_run": "r1", "threads": 2, "device": "cpu", "cpu": "CPU A", "warnings": []}
    return BenchResult(
        target=folder.name, path=str(folder), batch_size=1,
        samples_ms=[scale_ms * (1 + i % 3) for i in range(30)],
        input_shape=(1, 3, 360, 480), peak_memory_mib=321.0,
        environment=told | environment,
    ).to_dict()  # fmt: skip


def eval_document(folder: Path, wrong: int) -> dict[str, Any]:
    confusion = np.diag([900, 900, 0]) + np.array([[0, wrong, 0], [wrong, 0, 0], [0, 0, 0]])
    return EvalResult(
        target=folder.name, data="camvid/val", classes=CLASSES, confusion=confusion, num_images=101
    ).to_dict()


def parity_document(folder: Path, *failures: Failure) -> dict[str, Any]:
    return ParityReport(
        target=folder.name, reference="abc", parent=None, num_pixels=10, flip_rate=0.0123,
        hard_flip_rate=0.004, excusable_flip_rate=0.0, certified_rate=None, class_flip_rate={},
        max_abs=None, max_deviation=None, snr_db=None, cosine=None, noise_floor=1e-6,
        margin_tolerance=1e-3, failures=list(failures),
    ).to_dict()  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a checkpoint and two artifacts that have every result."""
    run = tmp_path / "my-run"
    checkpoint = make_folder(run, "checkpoint", note="trained on CamVid, research use")
    fp32 = make_folder(run, "onnx-fp32", "onnx-fp32", passed=True)
    int8 = make_folder(run, "onnx-int8", "onnx-int8", passed=False)
    for folder, scale, wrong in ((checkpoint, 40.0, 50), (fp32, 10.0, 50), (int8, 8.0, 80)):
        write(folder, "bench.json", bench_document(folder, scale))
        write(folder, "eval.json", eval_document(folder, wrong))
    write(fp32, "parity.json", parity_document(fp32))
    write(int8, "parity.json", parity_document(int8, Failure("hard_flip_rate", 0.001, 0.004)))
    lines = [
        {"epoch": e, "loss": 2.0 / (e + 1), "lr": 0.1, "mean_iou": None if e == 0 else 0.1 * e,
         "pixel_accuracy": 0.5, "seconds": 6.0}
        for e in range(4)
    ]  # fmt: skip
    (run / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (fp32 / "samples").mkdir()
    Image.new("RGB", (16, 8), (200, 10, 10)).save(fp32 / "samples" / "scene_01.png")
    return run


class _Page(HTMLParser):
    """Collects tags, attributes and visible text; checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read_page(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def table_rows(run: Path) -> dict[str, dict[str, str]]:
    """The Markdown table, read back by column name."""
    lines = [
        [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]
        for line in (run / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_table_shows_each_target_beside_eager(run: Path) -> None:
    report(run)
    rows = table_rows(run)
    assert list(rows) == ["checkpoint", "onnx-fp32", "onnx-int8"]
    fp32, int8 = rows["onnx-fp32"], rows["onnx-int8"]
    assert fp32["/ eager"] == "0.25"
    assert fp32["p50 ms"] == "20.0"
    assert fp32["size MiB"] == "1.0"
    assert fp32["Δ points"] == "+0.00"
    assert fp32["flips"] == "1.23 %"
    assert (rows["checkpoint"]["verdict"], fp32["verdict"], int8["verdict"]) == (
        "reference",
        "passed",
        "failed",
    )
    # IoU of both classes is 900 / (900 + 2 * wrong); Pole is absent.
    assert float(rows["checkpoint"]["mIoU"]) == pytest.approx(900 / 1000, abs=1e-4)
    assert float(int8["Δ points"]) == pytest.approx(100 * (900 / 1060 - 0.9), abs=0.006)


def test_page_names_rules_notes_classes_and_data(run: Path) -> None:
    text = read_page(report(run)).text
    for said in (
        "onnx-int8 broke hard_flip_rate: 0.004, limit 0.001", "trained on CamVid, research use",
        "camvid/val (101 images)", "Training loss", "Building", "1x360x480", "2 threads",
    ):  # fmt: skip
        assert said in text, said


def test_page_loads_nothing_and_shows_the_pictures(run: Path) -> None:
    page = read_page(report(run))
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/webp;base64,")
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object"}]
    assert not [attrs for _, attrs in page.tags if {"href", "onload", "onerror"} & set(attrs)]
    raw = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", raw)


def test_every_plot_is_well_formed_svg_inside_its_frame(run: Path) -> None:
    raw = report(run).read_text(encoding="utf-8")
    plots = re.findall(r"<svg.*?</svg>", raw, flags=re.DOTALL)
    assert raw.count('<figure class="plot"><figcaption><b>') == 5  # No images/s in this log.
    for plot in plots:
        _, _, width, height = map(float, ET.fromstring(plot).attrib["viewBox"].split())  # noqa: S314
        for line in ET.fromstring(plot).iter("polyline"):  # noqa: S314
            for pair in line.attrib["points"].split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_everything_that_comes_from_files_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = make_folder(
        run, "onnx-fp32", "onnx-fp32", note=HOSTILE, model=HOSTILE, classes=(HOSTILE, "b|c", "d")
    )
    document = bench_document(folder, 1.0, cpu=HOSTILE, warnings=[HOSTILE])
    document["environment"][HOSTILE] = {HOSTILE: [HOSTILE]}
    write(folder, "bench.json", document)
    write(folder, "eval.json", {"mean_iou": 0.5, "data": HOSTILE, "class_iou": {HOSTILE: 0.5}})
    failure = {"rule": HOSTILE, "limit": 1, "value": 2}
    write(folder, "parity.json", {"passed": False, "failures": [failure]})
    (folder / "samples").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "samples" / "<img onerror=x>.png")
    page = read_page(report(run))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.text.count(HOSTILE) >= 7
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<script", markdown)


def test_missing_results_are_dashes(tmp_path: Path) -> None:
    make_folder(tmp_path, "onnx-fp32", "onnx-fp32")
    read_page(report(tmp_path))
    row = table_rows(tmp_path)["onnx-fp32"]
    assert row.pop("verdict") == "not verified"
    assert {row.pop("target"), row.pop("size MiB")} == {"onnx-fp32", "1.0"}
    assert set(row.values()) == {"-"}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"mean_iou": "high"}', "\x00" * 20])
def test_a_damaged_result_is_named_and_does_not_stop_the_report(run: Path, content: str) -> None:
    (run / "onnx-fp32" / "eval.json").write_text(content)
    assert "onnx-fp32/eval.json" in read_page(report(run)).text
    rows = table_rows(run)
    assert rows["onnx-fp32"]["mIoU"] == "-"
    assert rows["onnx-fp32"]["/ eager"] == "0.25"
    assert rows["onnx-int8"]["mIoU"] != "-"


WRONG_VALUES: list[Any] = [None, True, "x", [], {}, [1, {}], {"p50": "x"}, -1, 1e308, 10**400, 0]


@pytest.mark.parametrize("value", WRONG_VALUES, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("name", ["bench.json", "eval.json", "parity.json"])
def test_no_value_of_a_result_file_can_break_the_report(run: Path, name: str, value: Any) -> None:
    path = run / "onnx-fp32" / name
    document = json.loads(path.read_text())
    write(path.parent, name, dict.fromkeys(document, value))
    read_page(report(run))
    assert set(table_rows(run)) == {"checkpoint", "onnx-fp32", "onnx-int8"}


def test_a_damaged_artifact_is_left_out_and_named(run: Path) -> None:
    (run / "onnx-int8" / "model.onnx").write_bytes(b"short")
    text = read_page(report(run)).text
    assert "onnx-int8 is left out" in text
    assert set(table_rows(run)) == {"checkpoint", "onnx-fp32"}


def test_damaged_log_lines_are_named_and_a_repeated_epoch_counts_once(run: Path) -> None:
    with (run / "log.jsonl").open("a") as log:
        log.write('{"epoch": 3, "loss": 9.0, "seconds": 6.0}\n{"epoch": 4, "lo')
    text = read_page(report(run)).text
    assert "log.jsonl, line 6 is damaged" in text
    assert "4 epochs, 0.4 minutes" in text


def test_a_truncated_picture_is_named_and_not_shown(run: Path) -> None:
    picture = run / "onnx-fp32" / "samples" / "scene_01.png"
    picture.write_bytes(picture.read_bytes()[:40])
    page = read_page(report(run))
    assert "scene_01.png is not a whole PNG" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


@pytest.mark.parametrize(
    ("change", "shown"),
    [({"threads": 1}, "-"), ({"cpu": "CPU B"}, "-"), ({"bench_run": "r2"}, "0.25*")],
)
def test_a_ratio_is_given_only_between_equal_conditions(
    run: Path, change: dict[str, Any], shown: str
) -> None:
    folder = run / "onnx-fp32"
    write(folder, "bench.json", bench_document(folder, 10.0, **change))
    report(run)
    assert table_rows(run)["onnx-fp32"]["/ eager"] == shown


@pytest.mark.parametrize("name", ["onnx-fp32", "checkpoint"])
def test_a_measurement_of_another_payload_is_none(run: Path, name: str) -> None:
    folder = run / name
    own = load_folder(folder).manifest.digest
    write(folder, "bench.json", bench_document(folder, 10.0, artifact=own))
    page = read_page(report(run)).text
    assert "another payload" not in page
    assert table_rows(run)["onnx-fp32"]["/ eager"] != "-"
    write(folder, "bench.json", bench_document(folder, 10.0, artifact="0123"))
    page = read_page(report(run)).text
    assert f"{name}/bench.json was measured on another payload" in page
    rows = table_rows(run)
    assert rows[name]["p50 ms"] == "-"
    assert rows["onnx-fp32"]["/ eager"] == "-"
    assert rows["onnx-int8"]["p50 ms"] != "-"


def test_a_difference_of_quality_needs_the_same_data(run: Path) -> None:
    folder = run / "onnx-fp32"
    write(folder, "eval.json", eval_document(folder, 50) | {"data": "camvid/test"})
    report(run)
    assert table_rows(run)["onnx-fp32"]["Δ points"] == "-"


def test_a_score_with_augmented_views_is_said_and_not_compared(run: Path) -> None:
    folder = run / "onnx-fp32"
    tta = {"tta": {"scales": [0.75, 1.0], "flip": True}}
    write(folder, "eval.json", eval_document(folder, 50) | tta)
    page = report(run).read_text(encoding="utf-8")
    assert table_rows(run)["onnx-fp32"]["Δ points"] == "-"
    assert "onnx-fp32: scored with test-time augmentation (scales [0.75, 1.0], flip True)" in page


def _nothing(_: Path) -> None:
    """Leave the folder as it is."""


def _one_damaged(run: Path) -> None:
    make_folder(run, "onnx-fp32", "onnx-fp32")
    (run / "onnx-fp32" / "manifest.json").write_text("{}")


@pytest.mark.parametrize("prepare", [_nothing, _one_damaged])
def test_a_folder_without_any_artifact_is_refused(
    tmp_path: Path, prepare: Callable[[Path], None]
) -> None:
    prepare(tmp_path)
    with pytest.raises(ArtifactError, match="no checkpoint and no artifact"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_missing_run_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run folder"):
        report(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_one_artifact_instead_of_a_run_names_the_run(run: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        report(run / "onnx-fp32")
    assert str(run) in caught.value.hint


def test_a_run_in_use_is_refused(run: Path) -> None:
    with run_lock(run), pytest.raises(RunLockedError):
        report(run)


def test_a_plot_without_any_point_is_left_out() -> None:
    assert not line_plot("empty", [Series("a", [(0, None), (1, None)])])


def test_a_plot_connects_the_epochs_that_were_measured() -> None:
    plot = line_plot("gap", [Series("a", [(0, 1.0), (1, None), (2, 4.0)]), Series("b", [(1, 2.0)])])
    (line,) = re.findall(r'<polyline class="l0" points="([^"]*)"', plot)
    assert len(line.split()) == 2
    assert plot.count("<circle") == 1
