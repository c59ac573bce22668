"""What `segdeploy run` does again, and what it takes as it stands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from segdeploy.data import open_dataset
from segdeploy.workflows.run import run
from segdeploy.workflows.run_config import load_run_config
from segdeploy.workflows.run_keys import data_key, runtime_versions, stage_key
from segdeploy.workflows.run_result import RunResult, Status

Cli = Callable[..., tuple[int, str, str]]
CONFIG = Path("segdeploy.toml")
MODEL = Path("runs/head/tiny")


@pytest.fixture
def data(place: Path) -> Path:
    """Six labelled images as files, `folder:ds`."""
    root = place / "ds"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    source = open_dataset("synthetic:64x96:6", "train")
    (root / "classes.txt").write_text("\n".join(source.classes))
    for index in range(6):
        sample = source[index]
        Image.fromarray(sample.image).save(root / f"images/{index}.png")
        Image.fromarray(sample.label.astype(np.uint8)).save(root / f"labels/{index}.png")
    return root


def run_stages(*stages: str, **flags: Mapping[str, object]) -> RunResult:
    own = flags.pop("run", {})
    return run(load_run_config(CONFIG, {"run": {"stages": list(stages), **own}, **flags}))


def reused(result: RunResult) -> dict[str, bool]:
    return {outcome.stage: outcome.reused for outcome in result.outcomes}


def made_again(result: RunResult) -> set[str]:
    return {stage for stage, is_reused in reused(result).items() if not is_reused}


@pytest.mark.usefixtures("place")
def test_changed_labels_are_seen_by_every_stage_that_reads_them(data: Path) -> None:
    assert run_stages("export", run={"out": "runs/base"})
    wanted = ("export", "evaluate", "gate")
    flags = {"run": {"data": "folder:ds"}, "gate": {"baseline": "runs/base"}}
    assert run_stages(*wanted, **flags)
    assert run_stages(*wanted, **flags).is_unchanged
    for label in (data / "labels").iterdir():
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(label)
    assert made_again(run_stages(*wanted, **flags)) == {"verify", "evaluate", "gate"}


def test_a_data_sets_key_is_that_of_its_files(data: Path) -> None:
    spec = f"folder:{data}"
    first = data_key(spec, "val")
    assert first == data_key(spec, "val")
    assert first != data_key(spec, "train")
    label = min((data / "labels").iterdir())
    os.utime(label, ns=(1, 1))  # The same bytes, at another time: nobody reads them to find out.
    second = data_key(spec, "val")
    assert second != first
    label.unlink()
    assert data_key(spec, "val") != second  # No error here: the stage says what is wrong.
    assert data_key("synthetic:64x96:8", "val") == data_key("synthetic:64x96:8", "val")
    assert data_key(None, "val") == ""


@pytest.mark.parametrize("package", ["onnxruntime", "torch", "openvino", "ncnn"])
def test_every_key_holds_the_runtimes_versions(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package not in runtime_versions():
        pytest.skip(f"{package} is not installed")
    first, real = stage_key("bench", 1), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == package else real(name))
    assert stage_key("bench", 1) != first


def test_every_key_holds_the_versions_of_second_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setenv("SEGDEPLOY_PYTHON_LITERT", str(python))
    told = tmp_path / "lib/python3.11/site-packages/ai_edge_litert-2.1.0.dist-info/METADATA"
    told.parent.mkdir(parents=True)
    told.write_text("Metadata-Version: 2.1\nName: ai-edge-litert\nVersion: 2.1.0\n")
    assert runtime_versions()["litert/ai-edge-litert"] == "2.1.0"
    first = stage_key("bench", 1)
    told.write_text(told.read_text().replace("Version: 2.1.0", "Version: 2.2.0"))
    assert stage_key("bench", 1) != first


@pytest.mark.usefixtures("place")
def test_another_runtime_or_device_is_measured_and_scored_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = ("export", "evaluate", "bench")
    assert run_stages(*wanted)
    assert run_stages(*wanted).is_unchanged
    again = run_stages(*wanted, run={"device": "cuda"})
    assert {"evaluate", "bench"} <= made_again(again)

    assert run_stages(*wanted)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "ncnn" else real(name))
    if "ncnn" in runtime_versions():
        assert made_again(run_stages(*wanted)) == {"verify", "evaluate", "bench"}


def test_a_report_is_written_anew_when_a_result_was_changed_by_hand(place: Path, cli: Cli) -> None:
    wanted = ("export", "report")
    assert run_stages(*wanted)
    assert run_stages(*wanted).is_unchanged
    artifact = str(place / MODEL / "onnx-fp32")
    assert cli("evaluate", artifact, "--data", "synthetic:64x96:2")[0] == 0
    assert made_again(run_stages(*wanted)) == {"report"}
    assert run_stages(*wanted).is_unchanged


@pytest.mark.usefixtures("place")
def test_an_answer_is_taken_only_with_the_file_that_it_wrote() -> None:
    assert run_stages("export", run={"out": "runs/base"})
    wanted, flags = ("export", "evaluate", "gate"), {"gate": {"baseline": "runs/base"}}
    first = run_stages(*wanted, **flags)
    assert first
    for name, stage in (("gate.json", "gate"), ("parity.json", "verify")):
        file = MODEL / "onnx-fp32" / name
        plain = json.loads(file.read_text())
        file.write_text(json.dumps({**plain, "reason": "of another gate"}))
        assert made_again(run_stages(*wanted, **flags)) == {stage}
        assert "another gate" not in file.read_text()


@pytest.mark.usefixtures("place")
def test_a_damaged_baseline_is_found_though_its_gate_is_known() -> None:
    assert run_stages("export", run={"out": "runs/base"})
    wanted, flags = ("export", "gate"), {"gate": {"baseline": "runs/base"}}
    assert run_stages(*wanted, **flags)
    payload = Path("runs/base/tiny/onnx-fp32/model.onnx")
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    result = run_stages(*wanted, **flags)
    assert (result.outcomes[-1].status, result.exit_code) == (Status.ERROR, 2)
    assert "is damaged" in result.outcomes[-1].reason


@pytest.mark.usefixtures("place")
def test_a_history_that_cannot_be_written_is_found_before_any_work(cli: Cli) -> None:
    code, _, err = cli("run", "--history", "segdeploy.toml/bench.jsonl")
    assert code == 2
    assert "Cannot write segdeploy.toml/bench.jsonl" in err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("place")
def test_a_history_that_is_lost_on_the_way_ends_no_run() -> None:
    history = Path("bench.jsonl")

    def lose(line: str) -> None:
        if "bench of" in line and history.is_file():
            history.unlink()
            history.mkdir()

    settings = load_run_config(CONFIG, {"history": {"file": str(history)}})
    result = run(settings, say=lose)
    statuses = {outcome.stage: outcome.status for outcome in result.outcomes}
    assert statuses["bench"] is Status.ERROR
    assert statuses["report"] is Status.PASSED
    history.rmdir()
    assert run(settings)  # The bench was done again, so that the line is there.
    assert len(history.read_text().splitlines()) == 1


@pytest.mark.usefixtures("place")
def test_outputs_that_cannot_be_written_are_found_before_any_work(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in ("--junit", "--summary"):
        for bad in ("segdeploy.toml/x.xml", "."):
            code, out, _ = cli("run", flag, bad, "--json")
            assert (code, json.loads(out)["error"]["kind"]) == (2, "ArtifactError")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "segdeploy.toml/step.md")
    assert cli("run", "--only", "export")[0] == 2
    assert not Path("runs").exists()
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert cli("run", "--only", "export", "--junit", "new/j.xml", "--summary", "other/s.md")[0] == 0
    assert Path("new/j.xml").is_file()
    assert Path("other/s.md").is_file()


def test_an_output_that_fails_at_the_end_hides_no_answer(
    place: Path, cli: Cli, make_model: Callable[..., onnx.ModelProto]
) -> None:
    """The file's place becomes a folder of the run, so that it is free before and not after."""
    lost = ["--junit", str(MODEL), "--summary", "s.md", "--json"]
    code, out, err = cli("run", "--only", "export", *lost)
    assert (code, json.loads(out)["verdict"]) == (2, "passed")
    assert f"Cannot write {MODEL}" in err
    assert Path("s.md").is_file()

    MODEL.parent.rename(place / "base")
    Path("model.onnx").write_bytes(make_model(extra=6).SerializeToString())  # Larger by far.
    code, out, _ = cli("run", "--only", "export,gate", "--baseline", "base", *lost)
    assert (code, json.loads(out)["verdict"]) == (1, "failed")
