"""Checkpoints and own models that lie, break or cannot be traced: exit codes, clean runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.files import sha256_file
from segdeploy.core.folder import Checkpoint, load_folder
from segdeploy.core.manifest import decode_manifest, encode_manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.export import ForeignOptions, export
from segdeploy.zoo import save_checkpoint

Cli = Callable[..., tuple[int, str, str]]
UNIT = ForeignOptions(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

OWN_MODELS = """
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3, padding=1)

class Dictionary(Base):
    def forward(self, x):
        return {"out": self.conv(x), "aux": self.conv(x)}

class Sequence(Base):
    def forward(self, x):
        return self.conv(x), self.conv(x)[:, :, ::2, ::2]

class Vector(Base):
    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))

class OtherK(Base):
    def forward(self, x):
        return self.conv(x)[:, :1]

class Nothing(Base):
    def forward(self, x):
        return None

class EmptyTuple(Base):
    def forward(self, x):
        return ()

class Text(Base):
    def forward(self, x):
        return "logits"

class Branches(Base):
    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else -self.conv(x)

class Counts(Base):
    def forward(self, x):
        return self.conv(x) * len(torch.nonzero(x > 0.5))

class Exits(Base):
    def forward(self, x):
        raise SystemExit("done here")

class Deep(Base):
    def forward(self, x):
        return self.forward(x)

class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient

class Custom(Base):
    def forward(self, x):
        return Round.apply(self.conv(x))

class NotANumber(Base):
    def forward(self, x):
        return self.conv(x) / (x[:, :1] * 0)
"""


def export_line(source: Path, run: Path, *more: str) -> list[str]:
    return ["export", str(source), "--target", "onnx-fp32", "--out", str(run), "--json", *more]


def assert_whole(run: Path) -> None:
    """Check that a run folder, if it is there, holds complete model folders only."""
    for found in run.iterdir() if run.exists() else ():
        assert load_folder(found).manifest.files, found


OWN = {
    "Sequence": (0,), "Vector": (2,), "OtherK": (2,),
    "Nothing": (2,), "EmptyTuple": (2,), "Text": (2,), "Branches": (2,),
    "Exits": (2,), "Deep": (2,), "NotANumber": (1, 2), "Absent": (2,),
}  # fmt: skip
OWN_SLOW = {"Dictionary": (0,), "Custom": (0, 2), "Counts": (0, 2)}  # Traced to the end.


@pytest.mark.parametrize(
    "name", [*OWN, *(pytest.param(name, marks=pytest.mark.slow) for name in OWN_SLOW)]
)
def test_model_of_ones_own(
    name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_broken_models.py").write_text(OWN_MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_broken_models", raising=False)
    module = torch.nn.Module()
    module.conv = torch.nn.Conv2d(3, 2, 3, padding=1)
    source = save_checkpoint(
        tmp_path / "checkpoint", module, model=f"own_broken_models:{name}", task=Task.MULTICLASS,
        classes=("a", "b"), preprocess=PreprocessSpec(), design_size=(64, 64),
    ).path  # fmt: skip
    monkeypatch.delenv("SEGDEPLOY_ALLOW_CODE", raising=False)
    code, _, err = cli(*export_line(source, tmp_path / "run"))
    assert code == 2
    assert "--allow-code" in err  # A name that a file brought is not imported unasked.
    monkeypatch.setenv("SEGDEPLOY_ALLOW_CODE", "1")
    code, _, err = cli(*export_line(source, tmp_path / "run"))
    assert "Traceback" not in err, err
    expected = (OWN | OWN_SLOW)[name]
    assert code in expected, err
    assert "error: " in err or code == 0, err
    assert_whole(tmp_path / "run")
    if code == 2:
        assert not list((tmp_path / "run").glob("onnx-*"))


def resigned(folder: Path, **changes: Any) -> Path:
    """Sign a folder's manifest again, as somebody who wants to be believed would."""
    path = folder / "manifest.json"
    manifest = decode_manifest(path.read_bytes(), "test")
    files = {name: sha256_file(folder / name) for name in manifest.files}
    path.write_bytes(encode_manifest(manifest.replace(**{"files": files, **changes})))
    return folder


def cut_weights(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def spoil_weights(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    state = load_file(path)
    state["head.weight"][0, 0] = float("nan")
    path.write_bytes(save(state))
    return resigned(folder)


def widen_weights(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    state = load_file(path)
    state["head.weight"] = torch.zeros(5, 9, 1, 1)
    path.write_bytes(save(state))
    return resigned(folder)


def empty_weights(folder: Path) -> Path:
    (folder / "weights.safetensors").write_bytes(b"")
    return resigned(folder)


LIES: dict[str, tuple[Callable[[Path], Path], int, str]] = {
    "weights cut short": (cut_weights, 2, "is damaged"),
    "weights cut short, signed": (lambda f: resigned(cut_weights(f)), 2, "Cannot read weights"),
    "empty weights, signed": (empty_weights, 2, "Cannot read weights"),
    "NaN weights": (spoil_weights, 1, "failed verification"),
    "weights of another shape": (widen_weights, 2, "does not fit tiny"),
    "more classes than weights": (
        lambda f: resigned(f, classes=tuple("abcdefgh")), 2, "does not fit tiny",
    ),
    "huge K": (
        lambda f: resigned(f, classes=tuple(map(str, range(70_000)))), 2, "1 to 65535 classes",
    ),
    "another task": (
        lambda f: resigned(f, task=Task.BINARY, classes=("a",)), 2, "does not fit tiny",
    ),
    "unknown model": (lambda f: resigned(f, model="resnet9000"), 2, "resnet9000"),
    "no classes": (lambda f: _edit(f, classes=[]), 2, "Class names"),
    "file outside": (lambda f: _edit(f, files={"../../etc/passwd": "0"}), 2, "not a bare file"),
    "future schema": (lambda f: _edit(f, schema_version=99), 2, "newer segdeploy"),
    "no inputs": (lambda f: _edit(f, inputs=[]), 2, "not one batch of images"),
    "pretends to be foreign": (
        lambda f: _edit(f, files={"weights.safetensors": None, "source.json": "0"}), 2, "",
    ),
}  # fmt: skip


def _edit(folder: Path, **changes: Any) -> Path:
    """Change fields that the manifest's own class would not take, and sign."""
    from segdeploy.core.manifest import _checksum

    path = folder / "manifest.json"
    plain = json.loads(path.read_text())
    plain.pop("checksum")
    for name, digest in changes.get("files", {}).items():
        changes["files"][name] = digest or plain["files"][name]
    plain.update(changes)
    path.write_text(json.dumps({**plain, "checksum": _checksum(plain)}))
    return folder


@pytest.mark.parametrize("name", LIES)
def test_checkpoint_that_lies(name: str, cli: Cli, tmp_path: Path, checkpoint: Checkpoint) -> None:
    change, expected, words = LIES[name]
    folder = change(Path(shutil.copytree(checkpoint.path, tmp_path / "checkpoint")))
    code, _, err = cli(*export_line(folder, tmp_path / "run"))
    assert "Traceback" not in err
    assert code == expected, err
    assert words in err
    assert_whole(tmp_path / "run")


@pytest.fixture(scope="module")
def foreign_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a foreign model: source and onnx-fp32."""
    folder = tmp_path_factory.mktemp("foreign")
    values = np.random.default_rng(1).normal(size=(3, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(folder / "theirs.onnx"))
    export(folder / "theirs.onnx", ["onnx-fp32"], folder / "run", foreign=UNIT)
    return folder / "run"


def no_source_facts(source: Path) -> None:
    (source / "source.json").write_text("{}")
    resigned(source)


def another_output(source: Path) -> None:
    facts = json.loads((source / "source.json").read_text())
    (source / "source.json").write_text(json.dumps({**facts, "output": "elsewhere"}))
    resigned(source)


def garbage_model(source: Path) -> None:
    (source / "model.onnx").write_bytes(b"garbage" * 100)
    resigned(source)


def another_size(source: Path) -> None:
    manifest = decode_manifest((source / "manifest.json").read_bytes(), "test")
    taken = manifest.inputs[0]
    resigned(source, inputs=(type(taken)("tensor", "float32", (1, 3, 64, 64)),))


@pytest.mark.parametrize("change", [no_source_facts, another_output, garbage_model, another_size])
@pytest.mark.parametrize("is_isolated", [False, True])
def test_foreign_source_that_lies(
    change: Callable[[Path], None], is_isolated: bool, cli: Cli, foreign_run: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = Path(shutil.copytree(foreign_run, tmp_path / "run"))
    change(run / "source")
    monkeypatch.setenv("SEGDEPLOY_IN_PROCESS", "0" if is_isolated else "1")
    for line in (
        export_line(run / "source", tmp_path / "other"),
        ["verify", str(run / "onnx-fp32"), "--against", str(run / "source")],
    ):
        code, _, err = cli(*line)
        assert "Traceback" not in err or "log" in err
        assert code in (1, 2), err
    assert_whole(tmp_path / "other")
