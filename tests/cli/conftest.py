"""A command line in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.cli.app import run_app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("SEGDEPLOY_QUIET", "SEGDEPLOY_VERBOSE"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["segdeploy", *arguments])
        code = run_app()
        out, err = capsys.readouterr()
        return code, out, err

    return run
