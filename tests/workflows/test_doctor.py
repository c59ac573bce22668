from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

import segdeploy.cli.doctor
from segdeploy.backends import BACKENDS
from segdeploy.cli.app import run_app
from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.target import Precision
from segdeploy.workflows import doctor
from segdeploy.workflows.doctor import diagnose

assert segdeploy.cli.doctor  # Registers the command.


def test_every_target_of_every_backend_is_judged() -> None:
    found = {finding.name for finding in diagnose().targets}
    wanted = {f"{name}-{p}" for name in BACKENDS for p in BACKENDS.get(name).precisions}
    assert found == wanted
    assert "onnx-int8" in found


class _Missing:
    precisions = (Precision.FP32, Precision.INT8)
    environment = None

    def require(self) -> None:
        raise BackendUnavailableError("no runtime", hint="pip install it")


class _Table:
    def __iter__(self) -> object:
        return iter(["broken", "missing"])

    def get(self, name: str) -> _Missing:
        if name == "broken":
            raise ImportError("libfoo.so.1: cannot open")
        return _Missing()


def test_missing_and_broken_backends_are_findings_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "BACKENDS", _Table())
    broken, *missing = diagnose().targets
    assert [(f.name, f.available, f.hint) for f in missing] == [
        ("missing-fp32", False, "pip install it"),
        ("missing-int8", False, "pip install it"),
    ]
    assert (broken.name, broken.available) == ("broken-*", False)
    assert "libfoo" in broken.detail


def test_a_second_environment_is_told_once_with_the_commands_that_make_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SEGDEPLOY_PYTHON_LITERT", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    found = diagnose()
    (environment,) = [each for each in found.environments if each.name == "litert"]
    assert not environment.available
    assert f"-m venv {tmp_path}" in environment.hint
    assert "[litert]" in environment.hint
    targets = [each for each in found.targets if each.name.startswith("litert-")]
    assert {each.hint for each in targets} == {"See the environment litert."}
    monkeypatch.setenv("SEGDEPLOY_PYTHON_LITERT", sys.executable)
    (environment,) = [each for each in diagnose().environments if each.name == "litert"]
    assert "ai-edge-litert" in environment.detail


def test_both_onnxruntime_packages_at_once_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [text for text in diagnose().warnings if "onnxruntime-gpu" in text]
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "1.0" if name == "onnxruntime-gpu" else real(name)
    )
    assert [text for text in diagnose().warnings if "onnxruntime-gpu" in text]


def test_a_package_that_cannot_be_imported_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so is damaged')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    found = diagnose()
    assert found.torch_threads is None
    assert any("libtorch.so is damaged" in text for text in found.warnings)


def test_the_command_exits_0_and_prints_one_json_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["segdeploy", "doctor", "--json"])
    assert run_app() == 0
    found = json.loads(capsys.readouterr().out)
    assert {"targets", "devices", "packages", "warnings", "disk_free_mib"} <= set(found)
    assert {"name", "available", "hint"} <= set(found["targets"][0])
