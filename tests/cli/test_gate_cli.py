"""`segdeploy gate` from the command line: exit codes, JSON, where limits come from."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from segdeploy.core.folder import Checkpoint
from segdeploy.core.limits import OTHER_SETTINGS, GateLimits
from segdeploy.workflows.run_tables import GateTable

Run = Callable[..., tuple[int, str, str]]
FILES_ONLY = ("--no-parity", "--limit", "latency=off", "--limit", "size=5%")


@pytest.fixture
def folder(tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(shutil.copytree(tiny_checkpoint.path, tmp_path / "checkpoint"))


def test_files_are_compared_without_running_anything(cli: Run, folder: str) -> None:
    code, out, _ = cli("gate", folder, folder, *FILES_ONLY, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["verdict"] == "pass"
    assert document["ratio"] is None  # Latency was left out.
    assert [metric["name"] for metric in document["metrics"]] == ["size"]
    assert json.loads((Path(folder) / "gate.json").read_bytes()) == document


def test_the_table_names_every_metric(cli: Run, folder: str) -> None:
    code, out, _ = cli("gate", folder, folder, *FILES_ONLY, "--no-save")
    assert code == 0
    assert "size" in out
    assert "pass" in out
    assert not (Path(folder) / "gate.json").exists()


def test_what_a_ci_reads_is_written(
    cli: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "github.md"))
    files = ("--junit", str(tmp_path / "gate.xml"), "--summary", str(tmp_path / "gate.md"))
    assert cli("gate", folder, folder, *FILES_ONLY, *files)[0] == 0
    document = ET.parse(tmp_path / "gate.xml")  # noqa: S314  our own
    cases = document.getroot().findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["size"]
    text = (tmp_path / "gate.md").read_text()
    assert "pass" in text
    assert (tmp_path / "github.md").read_text().strip() == text.strip()


def test_limits_stand_in_the_file_that_lies_here_and_flags_win(
    cli: Run, folder: str, tmp_path: Path
) -> None:
    limits = '[gate]\nlatency = "off"\nsize = "5%"\nmean_iou = 0.5\n'
    (tmp_path / "segdeploy.toml").write_text(limits)
    code, _, err = cli("gate", folder, folder, "--no-parity")
    assert code == 2
    assert "limits of segdeploy.toml" in err
    assert "eval.json" in err
    code, out, _ = cli("gate", folder, folder, "--no-parity", "--limit", "mean_iou=off", "--json")
    assert code == 0
    assert [metric["name"] for metric in json.loads(out)["metrics"]] == ["size"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-slowdown", "much"], "no share"),
        (["--max-slowdown", "0%"], "above 0"),
        (["--max-slowdown", "2000%"], "above 0"),
        (["--limit", "speed=5%"], "no limit"),
        (["--limit", "memory"], "no limit"),
        (["--limit", "mean_iou=5%"], "points"),
        (["--limit", "latency=off"], "decides nothing"),
        (["--budget", "soon"], "no time"),
        (["--budget", "0s"], "no time"),
        (["--threads", "0"], "threads"),
        (["--size", "10"], "not a size"),
        (["--config", "none.toml"], "no none.toml"),
        (["--device", "tpu"], "Unknown device"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], said: str, cli: Run, folder: str
) -> None:
    code, out, err = cli("gate", folder, folder, *arguments, "--json")
    assert code == 2
    assert said in err
    assert json.loads(out)["error"]["exit_code"] == 2
    assert not (Path(folder) / "gate.json").exists()


def test_missing_and_damaged_folders_are_refused(cli: Run, folder: str, tmp_path: Path) -> None:
    for pair in ((folder, "none"), ("none", folder), ("none.json", folder)):
        code, _, err = cli("gate", *pair)
        assert code == 2
        assert "none" in err
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    with (damaged / "weights.safetensors").open("ab") as weights:
        weights.write(b"x")
    code, _, err = cli("gate", folder, str(damaged))
    assert code == 2
    assert "damaged" in err


def test_what_cannot_be_written_is_found_before_any_work(
    cli: Run, folder: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for option in ("--junit", "--summary"):
        code, _, err = cli(
            "gate", folder, folder, *FILES_ONLY, option, str(tmp_path / "file" / "x")
        )
        assert code == 2
        assert "file" in err
        assert not (Path(folder) / "gate.json").exists()
    new = tmp_path / "new" / "folder" / "gate.xml"
    assert cli("gate", folder, folder, *FILES_ONLY, "--junit", str(new))[0] == 0
    assert new.exists()


def test_a_full_disk_hides_no_verdict(
    cli: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "github.md"))
    files = ("--junit", str(tmp_path / "gate.xml"), "--summary", str(tmp_path / "gate.md"))
    (Path(folder) / "gate.json").write_text("{}")  # Of an earlier gate.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        code, out, err = cli("gate", folder, folder, *FILES_ONLY, *files, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    document = json.loads(out)
    assert code == 2
    assert document["verdict"] == "pass"
    assert any("gate.json" in warning for warning in document["environment"]["warnings"])
    assert "gate.xml" in err
    assert "gate.md" in err
    assert not (Path(folder) / "gate.json").exists()


def test_outputs_replace_neither_each_other_nor_what_is_read(
    cli: Run, folder: str, tmp_path: Path
) -> None:
    place = Path(folder)
    weights = (place / "weights.safetensors").read_bytes()
    (tmp_path / "segdeploy.toml").write_text("")
    for files in (
        ("--junit", "x.out", "--summary", "./x.out"),
        ("--junit", f"{folder}/weights.safetensors"),
        ("--summary", f"{folder}/gate.json"),
        ("--summary", "segdeploy.toml"),
    ):
        code, _, err = cli("gate", folder, folder, *FILES_ONLY, *files)
        assert code == 2
        assert "would be overwritten" in err
    assert (place / "weights.safetensors").read_bytes() == weights
    assert not (place / "gate.json").exists()


def test_githubs_summary_is_looked_at_before_any_work(
    cli: Run, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "none" / "github.md"))
    code, _, err = cli("gate", folder, folder, *FILES_ONLY)
    assert code == 2
    assert "github.md" in err
    assert not (Path(folder) / "gate.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "[gate",
        "gate = 3",
        '[gate]\nallow_different_machine = "streams"',
        '[gate]\nstreams = "two"\nsize = "5%"',
        '[gate]\nlatencey = "5%"',
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    content: str, cli: Run, folder: str, tmp_path: Path
) -> None:
    (tmp_path / "segdeploy.toml").write_text(content)
    code, _, err = cli("gate", folder, folder)
    assert code == 2
    assert "segdeploy.toml" in err or "streams" in err or "latencey" in err


def test_whatever_run_reads_in_the_table_may_stand_there(
    cli: Run, folder: str, tmp_path: Path
) -> None:
    names = {each.name for each in fields(GateTable)} - {each.name for each in fields(GateLimits)}
    assert names == set(OTHER_SETTINGS)
    text = '[gate]\nlatency = "off"\nsize = "5%"\nallow_different_machine = true\nstreams = 1\n'
    (tmp_path / "segdeploy.toml").write_text(f'{text}baseline = "runs/base"\nbudget = "1s"\n')
    assert cli("gate", folder, folder, "--no-parity")[0] == 0
