"""README and docs say what is true: commands parse, figures are generated, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _commands() -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("segdeploy ")]


@pytest.mark.parametrize("command", _commands())
def test_commands_in_the_pages_use_flags_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segdeploy.cli import commands  # noqa: F401
    from segdeploy.cli.app import run_app

    words = shlex.split(command, comments=True)[1:]
    monkeypatch.setenv("COLUMNS", "200")
    name = words[:2] if words[0] in {"zoo", "data"} else words[:1]
    monkeypatch.setattr(sys, "argv", ["segdeploy", *name, "--help"])
    assert run_app() == 0
    text = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in text, f"{' '.join(name)} has no {flag}"


def test_readme_is_short_and_its_figures_come_from_result_files() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 150
    script = ROOT / "benchmarks" / "render_docs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_files_named_in_the_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:docs|benchmarks|segdeploy|tests)/[\w./-]+)`", page.read_text()
        ):
            if "NAME" not in name:
                assert (ROOT / name).exists(), f"{page.name} names {name}"
