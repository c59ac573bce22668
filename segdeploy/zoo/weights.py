"""Starting weights from elsewhere: a checkpoint folder, safetensors, or a plain state dict.

`.pth` files are read with `weights_only=True`, so that a malicious pickle cannot run anything.
Tensors whose shape differs (a head of another class count) are re-made, that is, keep their
fresh initialisation; what was loaded, re-made and skipped is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import CheckpointError
from segdeploy.core.folder import WEIGHTS, load_checkpoint
from segdeploy.zoo.checkpoint import read_safetensors


@dataclass(frozen=True)
class InitReport:
    """Which keys of the model were loaded, which re-made, and which of the file were skipped."""

    loaded: list[str]
    remade: list[str]
    skipped: list[str]

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors"]
        if self.remade:
            parts.append(f"re-made {_few(self.remade)}")
        if self.skipped:
            parts.append(f"skipped of the file {_few(self.skipped)}")
        return "; ".join(parts)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a state dict from a checkpoint folder, `.safetensors`, or `.pth`/`.pt` file.

    Raises:
        CheckpointError: If it is missing, damaged, unsafe, or holds no tensors.
    """
    if path.is_dir():
        return read_safetensors(load_checkpoint(path).path / WEIGHTS)
    if not path.is_file():
        raise CheckpointError(f"There are no weights at {path}.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return _state_dict(_load_pickle(path), path)


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The edge to torch and pickle: damaged files raise nearly anything.
        raise CheckpointError(
            f"Cannot read weights {path}: {_reason(error)}",
            hint="Only tensors are read from .pth files, since a pickle can run any code. If you "
            "trust the file, load it yourself and save its state_dict with safetensors.",
        ) from error


def _reason(error: Exception) -> str:
    """The line that says what is wrong: torch puts two paragraphs about its own API before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "unsupported" in line.lower()]
    if not named and any("weights_only" in line for line in lines):
        return "it is not a file of tensors"
    return (named or lines or [type(error).__name__])[0].split(". Please")[0]


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    tensors = (
        {str(k).removeprefix("module."): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if isinstance(loaded, dict)
        else {}
    )
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict.")
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def load_initial_weights(module: nn.Module, weights: dict[str, Tensor], source: Path) -> InitReport:
    """Copy every tensor that fits into `module` and tell what did not.

    Raises:
        CheckpointError: If not a single tensor fits: these are weights of another model.
    """
    own = module.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
    if not fitting:
        raise CheckpointError(
            f"No tensor of {source} fits the model.",
            hint=f"The model has keys such as {next(iter(own))}; the file has "
            f"{next(iter(weights), 'none')}.",
        )
    module.load_state_dict(fitting, strict=False)
    return InitReport(
        loaded=list(fitting),
        remade=[k for k in own if k not in fitting],
        skipped=[k for k in weights if k not in own],
    )
