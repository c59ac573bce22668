"""Checkpoint folders keep weights exactly, and damaged or foreign ones are refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from segdeploy.core.errors import (
    ArtifactError,
    CheckpointError,
    ConfigError,
    DigestMismatchError,
    UnknownNameError,
)
from segdeploy.core.folder import Checkpoint, load_checkpoint, load_folder
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.core.trust import ALLOW_CODE
from segdeploy.zoo import create_model, main_logits
from segdeploy.zoo.checkpoint import load_module, read_safetensors, save_checkpoint

NAME = "lraspp_mobilenet_v3_small"


def _save(path: Path, module: nn.Module, *, half_storage: bool = False) -> Checkpoint:
    return save_checkpoint(
        path,
        module,
        model=NAME,
        task=Task.MULTICLASS,
        classes=("a", "b", "c"),
        preprocess=PreprocessSpec(),
        design_size=(64, 96),
        note="for tests",
        options={"epochs": 3},
        companions={"train.toml": b"seed = 1\n"},
        half_storage=half_storage,
    )


@pytest.fixture
def module() -> nn.Module:
    """A seeded model of three classes, in training mode."""
    torch.manual_seed(0)
    return create_model(NAME, 3)


def test_weights_come_back_exactly_in_eval_mode(tmp_path: Path, module: nn.Module) -> None:
    weight = next(p for p in module.parameters() if p.dim() == 4 and p.shape[1] > 1)
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    saved = _save(tmp_path / "c", module)
    opened = load_checkpoint(tmp_path / "c")
    assert opened == saved
    assert opened.manifest.note == "for tests"
    assert opened.manifest.options == {"epochs": 3}
    assert opened.manifest.design_size == (64, 96)
    assert (opened.path / "train.toml").read_bytes() == b"seed = 1\n"
    loaded = load_module(opened)
    assert not loaded.training
    for key, tensor in module.state_dict().items():
        found = loaded.state_dict()[key]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), key


def test_equal_weights_have_equal_identity_wherever_they_lie(
    tmp_path: Path, module: nn.Module
) -> None:
    first, second = _save(tmp_path / "a", module), _save(tmp_path / "b" / "c", module)
    assert first.manifest.digest == second.manifest.digest
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    assert _save(tmp_path / "d", module).manifest.digest != first.manifest.digest


def test_half_storage_halves_weights_only_and_loads_as_fp32(
    tmp_path: Path, module: nn.Module
) -> None:
    whole = _save(tmp_path / "whole", module)
    half = _save(tmp_path / "half", module, half_storage=True)
    assert half.size_mib < 0.56 * whole.size_mib
    stored = load_file(half.payload)
    for key, tensor in module.state_dict().items():
        wide = tensor.dim() < 2
        assert stored[key].dtype == (tensor.dtype if wide else torch.float16), key
    loaded = load_module(half)
    for key, tensor in module.state_dict().items():
        found = loaded.state_dict()[key]
        assert found.dtype == tensor.dtype
        if tensor.dim() < 2:
            assert torch.equal(found, tensor), key
        else:
            assert torch.equal(found, tensor.half().float()), key


def test_half_storage_keeps_what_fp16_cannot_hold(tmp_path: Path, module: nn.Module) -> None:
    weight = next(p for p in module.parameters() if p.dim() >= 2)
    with torch.no_grad():
        weight.view(-1)[0] = 1e6
    loaded = load_module(_save(tmp_path / "c", module, half_storage=True))
    assert torch.equal(next(p for p in loaded.parameters() if p.dim() >= 2), weight)


def test_a_loaded_module_computes_the_same_logits(tmp_path: Path, module: nn.Module) -> None:
    loaded = load_module(_save(tmp_path / "c", module))
    image = torch.randn(1, 3, 45, 67)
    with torch.inference_mode():
        assert torch.equal(main_logits(loaded(image)), main_logits(module.eval()(image)))


@pytest.mark.parametrize("where", [0, 100, -1])
def test_one_flipped_byte_of_the_weights_is_found(
    tmp_path: Path, module: nn.Module, where: int
) -> None:
    payload = _save(tmp_path / "c", module).payload
    damaged = bytearray(payload.read_bytes())
    damaged[where] ^= 1
    payload.write_bytes(damaged)
    with pytest.raises(DigestMismatchError):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"text", bytes(100)])
def test_what_is_no_safetensors_file_is_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        read_safetensors(tmp_path / "w.safetensors")


def test_truncated_and_missing_safetensors_are_checkpoint_errors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    content = path.read_bytes()
    for length in (8, 40, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_safetensors(path)
    for lost in (tmp_path / "lost.safetensors", tmp_path):
        with pytest.raises(CheckpointError):
            read_safetensors(lost)


def test_weights_of_another_model_or_class_count_are_refused(tiny_checkpoint: Checkpoint) -> None:
    manifest = tiny_checkpoint.manifest
    for wrong in (
        manifest.replace(model="unet"),
        manifest.replace(model="lraspp_mobilenet_v3_large"),
        manifest.replace(classes=("a", "b")),
        manifest.replace(task=Task.BINARY, classes=("a",)),
    ):
        with pytest.raises(CheckpointError, match=f"does not fit {wrong.model}"):
            load_module(dataclasses.replace(tiny_checkpoint, manifest=wrong))


@pytest.mark.parametrize("model", ["unett", "", "/etc/passwd", "..", "unet_"])
def test_a_manifest_may_name_registered_models_only(
    tiny_checkpoint: Checkpoint, model: str
) -> None:
    manifest = tiny_checkpoint.manifest.replace(model=model)
    with pytest.raises(UnknownNameError):
        load_module(dataclasses.replace(tiny_checkpoint, manifest=manifest))


def test_code_that_a_manifest_names_is_not_imported_without_permission(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_nets.py").write_text("import os\nos.mkdir('owned')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(ALLOW_CODE, "")
    manifest = tiny_checkpoint.manifest.replace(model="evil_nets:build")
    checkpoint = dataclasses.replace(tiny_checkpoint, manifest=manifest)
    with pytest.raises(CheckpointError, match="evil_nets:build") as caught:
        load_module(checkpoint)
    assert "--allow-code" in caught.value.hint
    assert not (tmp_path / "owned").exists()
    monkeypatch.setenv(ALLOW_CODE, "1")
    with pytest.raises(ConfigError, match="no attribute 'build'"):
        load_module(checkpoint)
    assert (tmp_path / "owned").exists()


def test_a_mismatch_names_missing_unexpected_and_misshaped_tensors(
    tmp_path: Path, module: nn.Module
) -> None:
    state = dict(module.state_dict())
    state["stray"] = torch.zeros(2)
    del state["backbone.0.0.weight"]
    state["backbone.0.1.weight"] = torch.zeros(3)
    saved = save_checkpoint(
        tmp_path / "c", state, model=NAME, task=Task.MULTICLASS, classes=("a", "b", "c"),
        preprocess=PreprocessSpec(),
    )  # fmt: skip
    with pytest.raises(CheckpointError) as caught:
        load_module(saved)
    for said in (
        "1 missing: backbone.0.0.weight",
        "1 unexpected: stray",
        "1 of another shape: backbone.0.1.weight (found 3, wanted 16)",
    ):
        assert said in caught.value.message


def test_a_checkpoint_is_replaced_as_a_whole_and_nothing_else_is(
    tmp_path: Path, module: nn.Module
) -> None:
    _save(tmp_path / "c", module)
    (tmp_path / "c" / "stray.txt").write_text("of an older version")
    _save(tmp_path / "c", module)
    assert {p.name for p in (tmp_path / "c").iterdir()} == {
        "manifest.json", "weights.safetensors", "train.toml",
    }  # fmt: skip
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="will not be replaced"):
        _save(tmp_path / "notes", module)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_binary_checkpoint_has_one_logit_channel(tmp_path: Path) -> None:
    module = create_model(NAME, 1)
    saved = save_checkpoint(
        tmp_path / "c",
        module.state_dict(),
        model=NAME,
        task=Task.BINARY,
        classes=("cell",),
        preprocess=PreprocessSpec(),
        trained=False,
    )
    assert load_folder(saved.path).manifest.trained is False
    assert saved.manifest.outputs[0].shape == (None, 1, None, None)
    with torch.inference_mode():
        assert main_logits(load_module(saved)(torch.zeros(1, 3, 32, 32))).shape == (1, 1, 32, 32)
