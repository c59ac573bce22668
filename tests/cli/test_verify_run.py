"""`segdeploy verify RUN` from the command line: table, JSON and exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segdeploy.cli.app import run_app
from segdeploy.core.folder import Checkpoint


def _verify(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["segdeploy", "verify", *arguments])
    code = run_app()
    out, err = capsys.readouterr()
    return code, out, err


def test_a_run_is_whole_until_a_byte_changes(
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "checkpoint")
    code, out, _ = _verify(monkeypatch, capsys, str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True
    code, _, err = _verify(monkeypatch, capsys, str(tmp_path), "--data", "synthetic")
    assert code == 2
    assert "nothing is compared" in err
    with (tmp_path / "checkpoint" / "weights.safetensors").open("ab") as weights:
        weights.write(b"x")
    code, out, err = _verify(monkeypatch, capsys, str(tmp_path))
    assert code == 1
    assert "damaged" in out
    assert "is not whole: checkpoint" in err
