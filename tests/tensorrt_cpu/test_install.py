"""Where something is missing, one line says what."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def program() -> ModuleType:
    path = Path(__file__).with_name("install.py")
    spec = importlib.util.spec_from_file_location("tensorrt_cpu_install", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_wheel_is_named(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent-1.0-py3-none-any.whl")
    monkeypatch.setattr(program, "WHEELS", (absent,))
    with pytest.raises(program.MissingError, match=r"pip cannot install .*absent-1\.0") as caught:
        program.install(tmp_path / "made")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made" / "done").exists()


def test_a_missing_compiler_is_named(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program.shutil, "which", lambda _name: None)
    monkeypatch.setattr(program, "_fetch", lambda folder: folder.mkdir())
    with pytest.raises(program.MissingError, match="no C compiler"):
        program.install(tmp_path / "made")
