"""`segdeploy compare` on runs as the stages leave them: groups, front, budget, page, exit codes."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.cli.app import run_app
from segdeploy.core.contract import InputKind, IoContract, OutputKind, Upsampling, contract_tensors
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import Checkpoint, save_folder
from segdeploy.core.manifest import Link, Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import BenchResult, EvalResult
from segdeploy.core.task import Task
from segdeploy.evaluate import evaluate
from segdeploy.report.budget import Budget
from segdeploy.report.compared import Comparison
from segdeploy.workflows import export_and_verify
from segdeploy.workflows.compare import compare

TENSOR = IoContract()
FAST = IoContract(InputKind.IMAGE, OutputKind.LOW_LOGITS)
LABELS = IoContract(InputKind.IMAGE, OutputKind.LABELS)
END_TO_END = "image to label map"
MACHINE = {
    "bench_run": "r1", "threads": 2, "device": "cpu", "cpu": "CPU A", "num_cores": 2,
    "affinity": [0, 1], "os": "Linux-6.1.0-x", "warnings": [],
}  # fmt: skip


def put(
    run: Path, name: str, ms: float | None, wrong: int | None = None, *, mib: float = 1.0,
    io: IoContract = TENSOR, passed: bool | None = True, options: Any = None,
    data: str = "camvid/val", side: int = 64, **environment: Any,
) -> Path:  # fmt: skip
    """Write an artifact (or the checkpoint) with the results that its stages would leave."""
    is_checkpoint = name == "checkpoint"
    payload = "weights.safetensors" if is_checkpoint else "model.onnx"
    inputs, outputs = contract_tensors(io, Task.MULTICLASS, 2, (64, 64), low_size=(8, 8))
    manifest = Manifest(
        kind="checkpoint" if is_checkpoint else "artifact", model="unet", task=Task.MULTICLASS,
        classes=("a", "b"), preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, io=io,
        files={payload: ""}, target=None if is_checkpoint else name.partition("+")[0],
        passed=None if is_checkpoint else passed, options=options or {},
        reference=None if is_checkpoint else Link("abc", "../checkpoint"),
        upsampling=Upsampling(False) if io.output is OutputKind.LOW_LOGITS else None,
    )  # fmt: skip

    def fill(folder: Path) -> None:
        (folder / payload).write_bytes(bytes(int(mib * 2**20)))

    folder = run / name
    save_folder(folder, manifest, fill)
    if ms is not None:
        told = MACHINE | {"measured": f"{io.input} to {io.output}"} | environment
        shape = (1, 3, side, side) if io.input is InputKind.TENSOR else (1, side, side, 3)
        bench = BenchResult(
            target=name, path=str(folder), batch_size=1, input_shape=shape,
            samples_ms=[ms * (1 + 1e-4 * (i % 9 - 4)) for i in range(90)], peak_memory_mib=100.0,
            environment=told,
        )  # fmt: skip
        (folder / "bench.json").write_text(json.dumps(bench.to_dict()))
    if wrong is not None:
        confusion = np.array([[1000 - wrong, wrong], [wrong, 1000 - wrong]])
        score = EvalResult(
            target=name, data=data, classes=("a", "b"), confusion=confusion, num_images=9
        )
        (folder / "eval.json").write_text(json.dumps(score.to_dict()))
    return folder


INT8_FACTS = {"int8": {"borders": 14, "float_activations": {"HardSwish": 9}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """mIoU is (1000 - wrong) / (1000 + wrong)."""
    run = tmp_path / "lraspp"
    put(run, "checkpoint", 45.0, 100, mib=4.0)
    put(run, "onnx-fp32", 17.0, 100, mib=4.0)
    put(run, "onnx-int8", 20.06, 102, mib=1.0, options=INT8_FACTS)
    put(run, "openvino-int8", 9.8, 101, mib=1.0)
    return run


def standings(found: Comparison) -> dict[str, str]:
    return {name: str(one.standing) for name, one in found.worth.items()}


def test_a_dominated_artifact_says_by_whom_and_why(run: Path) -> None:
    found = compare([run])
    assert standings(found) == {
        "onnx-fp32": "front", "onnx-int8": "dominated", "openvino-int8": "front",
    }  # fmt: skip
    assert found.worth["onnx-int8"].dominated_by == ("openvino-int8",)
    assert (
        "it is 18 % slower than onnx-fp32 here: 14 Q/DQ borders, 9 unfused HardSwish"
        in found.worth["onnx-int8"].advice
    )
    assert len(found.groups) == 1
    assert found.notes == []


def test_unverified_and_failed_artifacts_are_never_recommended(run: Path) -> None:
    put(run, "ncnn-fp32", 1.0, 100, mib=0.5, passed=None)
    put(run, "ncnn-fp16", 1.0, 100, mib=0.5, passed=False)
    found = compare([run], budget=Budget.parse("latency=1s"))
    assert found.choice is not None
    assert found.choice.name == "openvino-int8"
    assert standings(found)["ncnn-fp32"] == "not verified"
    assert standings(found)["ncnn-fp16"] == "failed"
    assert all(
        not set(one.dominated_by) & {"ncnn-fp32", "ncnn-fp16"} for one in found.worth.values()
    )
    for name in ("ncnn-fp32", "ncnn-fp16"):
        assert found.worth[name].advice.startswith("Not to be used")
        assert all(name not in one.advice for one in found.worth.values() if one.name != name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threads": 1}, "threads: 2 against 1"),
        ({"cpu": "CPU B"}, "cpu: CPU A against CPU B"),
        ({"side": 32}, "input: 1x64x64 against 1x32x32"),
        ({"io": LABELS}, "measured: tensor to logits against image to labels"),
        ({"cpu_limit_cores": 1.0}, "cpu_limit_cores: unknown against 1.0"),
        ({"variables": {"MALLOC_TRIM_THRESHOLD_": "1"}}, "MALLOC_TRIM_THRESHOLD_=1"),
        ({"device": "cuda"}, "device: cpu against cuda"),
    ],
)
def test_latencies_of_other_conditions_are_grouped_apart_and_it_is_said(
    run: Path, change: dict[str, Any], said: str
) -> None:
    put(run, "openvino-int8", 0.1, 100, mib=0.1, **change)
    found = compare([run])
    assert standings(found)["onnx-int8"] == "front"  # Nothing of its group is better in all.
    assert [[row.name for row in group.rows] for group in found.groups] == [
        ["checkpoint", "onnx-fp32", "onnx-int8"],
        ["openvino-int8"],
    ]
    assert found.worth["openvino-int8"].dominated_by == ()
    assert any(said in note and "not compared" in note for note in found.notes)


def test_from_image_to_label_map_contracts_are_compared(tmp_path: Path) -> None:
    put(tmp_path, "onnx-fp32", 30.0, 100, mib=2.0, measured=END_TO_END)
    put(tmp_path, "openvino-fp32+image+low-logits", 20.0, 100, io=FAST, measured=END_TO_END)
    found = compare([tmp_path])
    assert len(found.groups) == 1
    assert found.worth["onnx-fp32"].dominated_by == ("openvino-fp32+image+low-logits",)


def test_low_resolution_logits_are_timed_up_to_the_labels(tmp_path: Path) -> None:
    put(tmp_path, "a", 30.0, 100, mib=2.0, io=LABELS, measured="image to labels")
    put(tmp_path, "b", 20.0, 100, io=FAST, measured="image to labels by way of low-logits")
    found = compare([tmp_path])
    assert found.worth["a"].dominated_by == ("b",)


def test_another_version_of_the_same_runtime_is_another_machine(tmp_path: Path) -> None:
    put(tmp_path, "onnx-fp32", 30.0, 100, runtime={"versions": {"onnxruntime": "1"}})
    put(tmp_path, "openvino-fp32", 20.0, 100, runtime={"versions": {"openvino": "2"}})
    put(tmp_path, "onnx-int8", 10.0, 100, runtime={"versions": {"onnxruntime": "2"}})
    names = [[row.name for row in group.rows] for group in compare([tmp_path]).groups]
    assert names == [["onnx-fp32", "openvino-fp32"], ["onnx-int8"]]


def test_runs_and_artifacts_are_compared_under_names_of_their_own(
    run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "unet"
    put(other, "onnx-fp32", 100.0, 10, mib=8.0, bench_run="r2")
    put(other, "onnx-int8", 50.0, 10, mib=8.0, bench_run="r2")
    found = compare([run, other / "onnx-fp32"])
    assert list(found.worth) == [
        "lraspp/onnx-fp32", "lraspp/onnx-int8", "lraspp/openvino-int8", "unet/onnx-fp32",
    ]  # fmt: skip
    assert "unet/onnx-fp32" not in found.worth["lraspp/onnx-int8"].dominated_by
    assert "18 % slower than lraspp/onnx-fp32" in found.worth["lraspp/onnx-int8"].advice
    assert any("2 bench runs" in note for note in found.notes)
    twin = tmp_path / "elsewhere" / "lraspp"
    put(twin, "onnx-fp32", 17.0, 100)
    assert f"{twin}/onnx-fp32" in compare([run, twin]).worth


def test_one_artifact_brings_its_checkpoint_as_reference(run: Path) -> None:
    found = compare([run / "onnx-int8"], budget=Budget.parse("miou=-0.5"))
    assert [row.name for row in found.rows] == ["checkpoint", "onnx-int8"]
    assert found.choice is not None
    assert found.choice.name == "onnx-int8"
    (run / "checkpoint" / "eval.json").unlink()
    alone = compare([run / "onnx-int8"], budget=Budget.parse("miou=-0.5"))
    assert not alone.choice


def test_an_artifact_without_any_result_is_said_to_be_so(tmp_path: Path) -> None:
    put(tmp_path, "coreml-fp16", None)
    found = compare([tmp_path], budget=Budget.parse("size=9MiB"))
    assert standings(found) == {"coreml-fp16": "not measured"}
    assert found.to_dict()["groups"][0]["conditions"] is None
    assert not found.choice


def test_what_cannot_be_compared_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        compare([])
    with pytest.raises(ArtifactError, match="no run folder"):
        compare([tmp_path / "absent"])
    (run / "onnx-int8" / "model.onnx").write_bytes(b"damaged")
    assert any("onnx-int8 is left out" in text for text in compare([run]).problems)
    with pytest.raises(ArtifactError, match="onnx-int8 cannot be compared"):
        compare([run / "onnx-int8"])


Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    importlib.import_module("segdeploy.cli.compare")

    def start(*arguments: object) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["segdeploy", "compare", *map(str, arguments), "--json"])
        code = run_app()
        return code, json.loads(capsys.readouterr().out)

    return start


def test_a_budget_picks_one_or_exits_1(run: Path, command: Command) -> None:
    code, document = command(run, "--budget", "latency=15ms,miou=-1,size=5MiB,memory=200MiB")
    assert (code, document["choice"]["name"]) == (0, "openvino-int8")
    assert set(document["choice"]["misses"]) == {"onnx-fp32", "onnx-int8"}
    code, document = command(run, "--budget", "latency=8ms,miou=-0.05")
    assert (code, document["choice"]["name"]) == (1, None)
    misses = {m["limit"]: m["by"] for m in document["choice"]["misses"]["openvino-int8"]}
    # 100 * (899 / 1101 - 900 / 1100) = -0.165 points; 0.05 of them are allowed.
    assert misses == pytest.approx({"latency": 1.8, "miou": 0.1151}, rel=1e-3)


def test_a_budget_over_two_groups_exits_2_with_the_whole_document(
    run: Path, command: Command
) -> None:
    put(run, "openvino-int8", 0.1, 100, threads=1)
    code, document = command(run, "--budget", "size=5MiB")
    assert code == 2
    assert document["choice"]["is_decidable"] is False
    assert len(document["groups"]) == 2


def test_a_bad_budget_exits_2(run: Path, command: Command) -> None:
    code, document = command(run, "--budget", "latency=8")
    assert (code, document["error"]["kind"]) == (2, "ConfigError")


def test_the_document_has_every_figure(run: Path, command: Command) -> None:
    code, document = command(run)
    assert code == 0
    assert document["choice"] is None
    assert document["groups"][0]["front"] == ["onnx-fp32", "openvino-int8"]
    found = {one["name"]: one for one in document["artifacts"]}
    assert found["checkpoint"]["standing"] == "reference"
    int8 = found["onnx-int8"]
    assert int8["latency_ms"] == pytest.approx(20.06)
    assert int8["latency_interval_ms"][0] <= 20.06 <= int8["latency_interval_ms"][1]
    assert int8["mean_iou"] == pytest.approx(898 / 1102)
    assert int8["delta_points"] == pytest.approx(100 * (898 / 1102 - 900 / 1100))
    assert (int8["contract"], int8["group"], int8["verdict"]) == ("tensor to logits", 1, "passed")


def test_the_text_says_the_same(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("segdeploy.cli.compare")
    arguments = ["segdeploy", "compare", str(run), "--budget", "latency=8ms"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert run_app() == 1
    said = capsys.readouterr().out
    assert "openvino-int8 misses it: latency: 9.8 ms, 1.8 ms over 8 ms" in said
    assert "-> None of the 3 artifacts meets the budget." in said
    assert "onnx-int8: Not worth it here: openvino-int8: 51 % faster" in said


def test_the_page_is_whole_and_loads_nothing(run: Path, tmp_path: Path) -> None:
    put(run, "ncnn-fp32", 200.0, 100, mib=4.0)
    put(run, "onnx-fp16", 300.0, 100, threads=1, options={"x": "<script>alert(1)</script>"})
    page = tmp_path / "compare.html"
    compare([run], budget=Budget.parse("latency=8ms"), page=page)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<script|https?://|@import|url\(|<link|<img", text)
    plots = [ET.fromstring(plot) for plot in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]  # noqa: S314
    assert len(plots) == 2  # Quality and size of group 1; group 2 has one dot.
    for plot in plots:
        _, _, width, height = map(float, plot.attrib["viewBox"].split())
        for dot in plot.iter("circle"):
            assert 0 <= float(dot.attrib["cx"]) <= width
            assert 0 <= float(dot.attrib["cy"]) <= height
    hints = [title.text or "" for title in plots[0].iter("title")]
    assert any(hint.startswith("openvino-int8\n9.8 ms (") for hint in hints)
    assert len(list(plots[0].iter("polyline"))) == 1  # The front.
    # 9.8 to 200 ms is more than a decade: logarithmic, so equal factors are equal distances.
    place = {
        (title.text or "").partition("\n")[0]: float(dot.attrib["cx"])
        for dot in plots[0].iter("circle")
        for title in dot.iter("title")
    }
    per_factor = (place["ncnn-fp32"] - place["openvino-int8"]) / np.log(200 / 9.8)
    assert place["checkpoint"] - place["onnx-fp32"] == pytest.approx(
        per_factor * np.log(45 / 17), abs=0.3
    )
    assert "None of the 5 artifacts meets the budget" in text
    assert "threads: 2 against 1" in text


def test_a_page_that_cannot_be_written_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Cannot write"):
        compare([run], page=tmp_path / "absent" / "compare.html")


def test_equal_bytes_and_two_runs_22_percent_apart_condemn_nobody(tmp_path: Path) -> None:
    for name, ms, memory in (("base", 10.0, 1.0), ("head", 15.0, 1.0), ("near", 12.2, 2.0)):
        put(tmp_path / name, "onnx-fp32", ms, 100, mib=memory, bench_run=name)
    same = compare([tmp_path / "base", tmp_path / "head"])
    assert set(standings(same).values()) == {"front"}
    assert "within noise as fast as" in same.worth["head/onnx-fp32"].advice
    put(tmp_path / "near", "onnx-fp32", 12.2, 100, mib=1.001, bench_run="near")  # Other bytes.
    other = compare([tmp_path / "base", tmp_path / "near"])
    assert set(standings(other).values()) == {"front"}
    assert any("below 25 %" in note for note in other.notes)


@pytest.mark.parametrize(
    "change",
    [{"latency_ms": {"p50": -1}}, {"latency_ms": {"p50": 0}}, {"latency_ms": {"p50": "1"}},
     {"environment": "x"}, {"input_shape": "x"}, {"samples_ms": [1.0, -1.0]},
     {"peak_memory_mib": -5}],
)  # fmt: skip
def test_impossible_numbers_are_not_measured(
    run: Path, command: Command, change: dict[str, Any]
) -> None:
    file = run / "openvino-int8" / "bench.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    code, document = command(run, "--budget", "latency=30ms")
    assert (code, document["choice"]["name"]) == (0, "onnx-fp32")
    assert any("openvino-int8/bench.json is damaged" in text for text in document["problems"])
    standing = {one["name"]: one["standing"] for one in document["artifacts"]}
    assert standing["openvino-int8"] == "not measured"


def test_the_out_of_a_run_stands_for_its_models(run: Path, tmp_path: Path, cli: Any) -> None:
    out = run.parent
    put(out / "unet", "onnx-fp32", 10.0, 100)
    names = {f"lraspp/{n}" for n in ("onnx-fp32", "onnx-int8", "openvino-int8")}
    assert set(compare([out]).worth) == names | {"unet/onnx-fp32"}
    assert compare([out]).to_dict() == compare([run, out / "unet"]).to_dict()
    code, text, _ = cli("report", str(out), "--json")
    pages = [out / name / "report.html" for name in ("lraspp", "unet")]
    assert (code, [each["report"] for each in json.loads(text)]) == (0, [str(p) for p in pages])
    assert all(page.is_file() for page in pages)
    assert isinstance(json.loads(cli("report", str(run), "--json")[1]), dict)
    (tmp_path / "empty").mkdir()
    for stage in ("report", "compare"):
        assert cli(stage, str(tmp_path / "empty"))[0] == 2


@pytest.mark.slow
def test_what_the_stages_leave_is_compared(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint.path, run / "checkpoint")
    for io in (TENSOR, LABELS):
        outcomes = export_and_verify(
            run / "checkpoint", ["onnx-fp32"], run, io=io, size=(64, 64), data="synthetic"
        )
        assert all(outcome.passed for outcome in outcomes)
    folders = sorted(path.parent for path in run.glob("*/model.onnx"))
    evaluate(run / "checkpoint", data="synthetic")
    for folder in folders:
        evaluate(folder, data="synthetic")
    plan = BenchPlan(seconds=0.2, warmup_s=0.1, threads=1, end_to_end=True)
    assert not measure_interleaved(folders, plan).failures
    found = compare([run], budget=Budget.parse("latency=60s,miou=-0.1,memory=64GiB"))
    assert found.problems == []
    artifacts = {folder.name for folder in folders}
    assert len(artifacts) == 2
    assert {row.name for row in found.groups[0].rows} == artifacts
    assert found.choice is not None
    assert set(found.choice.fitting) == artifacts
