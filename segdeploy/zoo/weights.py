"""Reading weights from elsewhere: a checkpoint folder, safetensors, or a pickled state dict.

`.pth` files are read with `weights_only=True`, so that a malicious pickle cannot run anything. The
one class that is let through, `argparse.Namespace`, holds the settings of many training scripts
and does nothing when it is loaded.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdeploy.core.errors import CheckpointError
from segdeploy.core.folder import WEIGHTS, load_checkpoint
from segdeploy.zoo.checkpoint import read_safetensors


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, floating-point ones as fp32, and what people should know of it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights(path: Path) -> Weights:
    """Return a state dict from a checkpoint folder, `.safetensors`, or `.pth`/`.pt` file.

    What training loops wrap around it is taken off: the keys `model`, `state_dict` and
    `model_state_dict`, and the prefixes of DataParallel and torch.compile.

    Raises:
        CheckpointError: If it is missing, damaged, unsafe, or holds no tensors.
    """
    if path.is_dir():
        return Weights(read_safetensors(load_checkpoint(path).path / WEIGHTS))
    if not path.is_file():
        raise CheckpointError(f"There are no weights at {path}.")
    if path.suffix == ".safetensors":
        return Weights(_unwrapped(read_safetensors(path)))
    loaded = _load_pickle(path)
    tensors = _state_dict(loaded, path)
    return Weights(tensors, _notes(loaded, path))


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([Namespace]):
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
    found = loaded if isinstance(loaded, dict) else {}
    tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict.")
    return _unwrapped({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of DataParallel (`module.`) and of torch.compile (`_orig_mod.`)."""
    return {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in tensors.items()}


def _notes(loaded: dict[str, Any], path: Path) -> tuple[str, ...]:
    if not any(isinstance(value, Namespace) for value in loaded.values()):
        return ()
    return (f"{path} also holds the arguments of its training script; they were left out.",)
