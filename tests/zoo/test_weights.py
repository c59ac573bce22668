"""Starting weights from elsewhere: every usual file form, no foreign code, and what was loaded."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segdeploy.core.errors import CheckpointError
from segdeploy.core.folder import Checkpoint
from segdeploy.zoo import create_model
from segdeploy.zoo.weights import load_initial_weights, read_weights

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
        {"model": {f"module.{k}": v for k, v in STATE.items()}},
        {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
        STATE | {"version": 2, "name": "net"},
    ],
)
def test_usual_forms_of_a_pth_file_give_the_state_dict(tmp_path: Path, saved: Any) -> None:
    torch.save(saved, tmp_path / "w.pth")
    _assert_is_state(read_weights(tmp_path / "w.pth"))


def test_the_old_file_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    _assert_is_state(read_weights(tmp_path / "w.pt"))


def test_safetensors_and_checkpoint_folders_are_read(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    _assert_is_state(read_weights(tmp_path / "w.safetensors"))
    assert set(read_weights(tiny_checkpoint.path)) == set(
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


def test_a_checkpoint_with_its_arguments_says_what_is_in_the_way(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace") as caught:
        read_weights(tmp_path / "w.pth")
    assert "state_dict" in caught.value.hint


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


def test_a_missing_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights at"):
        read_weights(tmp_path / "lost.pth")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (
            "lraspp_mobilenet_v3_small",
            {f"classifier.{s}_classifier.{p}" for s in ("low", "high") for p in ("weight", "bias")},
        ),
        (
            "deeplabv3_mobilenet_v3_large",
            {f"{s}.4.{p}" for s in ("classifier", "aux_classifier") for p in ("weight", "bias")},
        ),
        ("unet", {"out_conv.weight", "out_conv.bias"}),
    ],
)
def test_with_another_class_count_the_heads_are_remade_and_named(
    name: str, heads: set[str]
) -> None:
    source, target = create_model(name, 21), create_model(name, 4)
    fresh = {k: v.clone() for k, v in target.state_dict().items()}
    report = load_initial_weights(target, source.state_dict(), Path("w.pth"))
    assert set(report.remade) == heads
    assert report.skipped == []
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, fresh[key] if key in heads else source.state_dict()[key]), key
    assert all(head in str(report) for head in heads)


def test_keys_that_the_model_lacks_are_told_and_long_lists_are_short() -> None:
    net = nn.Conv2d(3, 4, 1)
    weights = dict(net.state_dict()) | {f"fc{i}.weight": torch.zeros(2) for i in range(30)}
    report = load_initial_weights(net, weights, Path("w.pth"))
    assert len(report.skipped) == 30
    assert "fc0.weight" in str(report)
    assert "22 more" in str(report)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="No tensor of") as caught:
        load_initial_weights(
            create_model("unet", 2), create_model("lraspp_mobilenet_v3_small", 2).state_dict(),
            Path("w.pth"),
        )  # fmt: skip
    assert "in_conv" in caught.value.hint
