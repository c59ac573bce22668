"""The command line is a contract: exit codes, one JSON document on stdout, no framework to list."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segdeploy.cli import app as app_module
from segdeploy.cli import commands
from segdeploy.cli.app import take_verbosity
from segdeploy.core import errors

Run = Callable[..., tuple[int, str, str]]


def test_every_command_of_the_contract_is_there_and_has_json(cli: Run) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    names = [
        c.name or c.callback.__name__ for c in app_module.app.registered_commands if c.callback
    ]
    assert len(names) >= len(commands.__all__) - len(app_module.app.registered_groups)
    for name in names:
        assert name in out
        code, text, _ = cli(name, "--help")
        assert code == 0
        assert "--json" in text, name


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("models", "unet"),
        ("datasets", "camvid"),
        ("targets", "onnx-int8"),
        ("losses", "cross_entropy"),
        ("metrics", "mean_iou"),
    ],
)
def test_list_prints_one_json_document(cli: Run, kind: str, known: str) -> None:
    code, out, err = cli("list", kind, "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert known in {row["name"] for row in rows}
    code, table, _ = cli("list", kind)
    assert code == 0
    assert known in table


def test_a_listed_hint_keeps_the_extra_that_it_names(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"name": "x", "available": False, "hint": "pip install 'segdeploy[gpu]'"}
    monkeypatch.setattr("segdeploy.backends.describe_targets", lambda: [row])
    assert "segdeploy[gpu]" in cli("list", "targets")[1]


def test_list_models_and_targets_have_the_promised_fields(cli: Run) -> None:
    models = json.loads(cli("list", "models", "--json")[1])
    fields = {"name", "task", "num_parameters", "output_stride", "source"}
    fields |= {"macs", "family", "input_size", "encoder"}
    assert all(fields <= set(row) for row in models)
    targets = json.loads(cli("list", "targets", "--json")[1])
    assert all({"name", "available", "hint"} <= set(row) for row in targets)
    assert {"torchscript-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8"} <= {
        row["name"] for row in targets
    }


_MISTAKES = [
    (["train", "--model", "unett", "--data", "synthetic", "--out", "OUT"], "Did you mean unet"),
    (["train", "--model", "unet", "--data", "synthetix", "--out", "OUT"], "Did you mean synthetic"),
    (["train", "--model", "unet", "--data", "camvid:nowhere", "--out", "OUT"], "CamVid"),
    (
        ["train", "--model", "unet", "--data", "synthetic", "--out", "OUT", "--epochs", "0"],
        "epochs",
    ),
    (["train", "--model", "unet", "--data", "synthetic", "--out", "OUT", "--crop", "9"], "HEIGHTx"),
    (["train", "--model", "unet", "--out", "OUT"], "--data"),
    (["train", "missing.toml"], "missing.toml"),
    (["train", "--out", "OUT", "--resume"], "nothing to resume"),
    (["export", "OUT", "--target", "onnx-fp32", "--out", "OUT"], "is not a checkpoint"),
    (["verify", "OUT"], "is not a checkpoint or artifact"),
    (["evaluate", "OUT", "--data", "synthetic"], "is not a checkpoint or artifact"),
    (["bench", "OUT"], "is not a checkpoint or artifact"),
    (["predict", "OUT", "a.png", "--out", "OUT"], "a.png"),
    (["list", "modells"], "modells"),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), _MISTAKES, ids=[" ".join(m[0])[:40] for m in _MISTAKES]
)
def test_a_users_mistake_is_exit_2_with_a_hint_and_nothing_written(
    cli: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    code, printed, err = cli(*[str(out) if a == "OUT" else a for a in arguments])
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert printed == ""
    assert not out.exists() or list(out.iterdir()) == []


def _raising(error: BaseException) -> Callable[..., Any]:
    def app(*_: Any, **__: Any) -> int:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.BackendUnavailableError("x", hint="pip install y"), 4),
        (errors.ParityError("x"), 1),
        (errors.GateError("x"), 1),
        (errors.InconclusiveError("x"), 3),
        (OSError(28, "No space left on device"), 2),
        (PermissionError(13, "Permission denied"), 2),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a bug"), 70),
    ],
)
def test_errors_become_exit_codes(
    cli: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    monkeypatch.setattr(app_module, "app", _raising(error))
    found, _, err = cli("list", "models")
    assert found == code
    assert ("Traceback" in err) == (code == 70)


def test_verbosity_flags_count_at_any_place_but_not_behind_a_double_dash(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGDEPLOY_QUIET", "")  # Recorded, so that the end of the test undoes it.
    monkeypatch.setenv("SEGDEPLOY_VERBOSE", "")
    assert take_verbosity(["list", "-q", "models", "--", "-v"]) == ["list", "models", "--", "-v"]
    import os

    assert os.environ["SEGDEPLOY_QUIET"] == "1"
    assert os.environ["SEGDEPLOY_VERBOSE"] == ""


@pytest.mark.parametrize("arguments", [["--help"], ["list", "models"], ["list", "targets"]])
def test_help_and_list_load_no_framework(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['segdeploy', *ARGS]\n"
        "from segdeploy.cli import commands\n"
        "from segdeploy.cli.app import run_app\n"
        "assert run_app() == 0\n"
        "heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    ).replace("ARGS", repr(arguments))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["bench", "nowhere"], "ArtifactError", 2),
        (["export", "nowhere", "--target", "onnx-fp32", "--out", "run"], "ArtifactError", 2),
        (["list", "sizes"], "UsageError", 2),
        (["verify"], "UsageError", 2),
        (["bench", "nowhere", "--size", "big"], "ConfigError", 2),
    ],
)
def test_an_error_is_the_json_document_of_a_command_without_a_result(
    cli: Run, arguments: list[str], kind: str, code: int
) -> None:
    found, out, err = cli(*arguments, "--json")
    document = json.loads(out)
    assert found == code
    assert document["error"]["kind"] == kind
    assert document["error"]["exit_code"] == code
    assert document["error"]["message"] in " ".join(err.split()) or kind == "UsageError"
    _, plain, _ = cli(*arguments)
    assert plain == ""
