"""Weights from elsewhere: every usual file form, and no foreign code."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from segdeploy.core.errors import CheckpointError
from segdeploy.core.folder import Checkpoint
from segdeploy.zoo import create_model
from segdeploy.zoo.weights import read_weights

STATE = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "norm.steps": torch.tensor(7)}


def _assert_is_state(found: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(STATE)
    for key, tensor in STATE.items():
        assert torch.equal(found[key], tensor)
        assert found[key].dtype == tensor.dtype


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"model": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"state_dict": STATE},
        {"model_state_dict": STATE, "best": 0.5},
        {f"module.{k}": v for k, v in STATE.items()},
        {f"_orig_mod.{k}": v for k, v in STATE.items()},
        {f"module._orig_mod.{k}": v for k, v in STATE.items()},
        {"model": {f"module.{k}": v for k, v in STATE.items()}},
        {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
        STATE | {"version": 2, "name": "net"},
        {"model": {"name": "net", "width": 64}, "state_dict": STATE},
        {f"module.{k}": v for k, v in STATE.items()} | {"n_averaged": torch.tensor(3)},
    ],
)
def test_usual_forms_of_a_pth_file_give_the_state_dict(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "w.pth")
    _assert_is_state(read_weights(tmp_path / "w.pth").tensors)


def test_the_old_file_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    _assert_is_state(read_weights(tmp_path / "w.pt").tensors)


def test_safetensors_and_checkpoint_folders_are_read(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    _assert_is_state(read_weights(tmp_path / "w.safetensors").tensors)
    assert set(read_weights(tiny_checkpoint.path).tensors) == set(
        create_model(tiny_checkpoint.manifest.model, 5).state_dict()
    )


class _Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, new_format: bool) -> None:
    torch.save(
        {"model": STATE, "extra": _Evil(tmp_path / "owned")},
        tmp_path / "w.pth",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(CheckpointError, match=r"w\.pth") as caught:
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "owned").exists()
    assert "mkdir" in caught.value.message
    assert "safetensors" in caught.value.hint


def test_the_arguments_in_a_training_scripts_file_are_left_out_and_told(tmp_path: Path) -> None:
    """As WZMIAOMIAO's scripts write it; torch itself refuses such a file since 2.6."""
    saved = {"model": STATE, "optimizer": {"state": {}}, "epoch": 4, "args": Namespace(lr=0.1)}
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(tmp_path / "w.pth", weights_only=True)
    found = read_weights(tmp_path / "w.pth")
    _assert_is_state(found.tensors)
    assert len(found.notes) == 1
    assert "arguments" in found.notes[0]
    torch.save({"model": STATE}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").notes == ()


def test_arguments_do_not_open_the_door_to_other_classes(tmp_path: Path) -> None:
    evil = Namespace(lr=_Evil(tmp_path / "owned"))
    torch.save({"model": STATE, "args": evil}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="mkdir"):
        read_weights(tmp_path / "w.pth")
    torch.save({"model": STATE, "args": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"text\n", b"PK\x03\x04" + bytes(50), b"\x80\x02}."])
def test_files_that_hold_no_weights_are_checkpoint_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_cut_anywhere_is_a_checkpoint_error(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 30)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_weights(path)


@pytest.mark.parametrize("saved", [{}, [], torch.zeros(3), {"model": {}}, {"epoch": 3}, "text", 5])
def test_a_file_without_tensors_is_a_checkpoint_error(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(2).to_sparse(),
        torch.zeros(2, 2, device="meta"),
        torch.zeros(2, 2, dtype=torch.complex64),
    ],
)
def test_tensors_that_are_no_plain_weights_are_refused(tmp_path: Path, odd: torch.Tensor) -> None:
    torch.save(STATE | {"odd.weight": odd}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"sparse.*odd\.weight"):
        read_weights(tmp_path / "w.pth")


def test_number_formats_that_torch_cannot_convert_are_a_checkpoint_error(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        read_weights(path)


@pytest.mark.parametrize("content", [b"hello world\n" * 9, pickle.dumps([1]), b""])
def test_a_file_that_torch_did_not_write_is_called_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"torch\.save did not write it"):
        read_weights(tmp_path / "w.pth")


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        read_weights(tmp_path / "lost.pth")
