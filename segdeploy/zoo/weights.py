"""Reading weights from elsewhere: a checkpoint folder, safetensors, or a pickled state dict.

`.pth` files are read with `weights_only=True`, so that a malicious pickle cannot run anything. The
one class that is let through, `argparse.Namespace`, holds the settings of many training scripts
and does nothing when it is loaded.
"""

from __future__ import annotations

import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segdeploy.core.errors import CheckpointError
from segdeploy.core.folder import WEIGHTS, load_checkpoint
from segdeploy.zoo.checkpoint import read_safetensors
from segdeploy.zoo.keys import few


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
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What is wrong is said once, by the error.
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The edge to torch and pickle: damaged files raise nearly anything.
        raise CheckpointError(
            f"Cannot read weights {path}: {_reason(error)}",
            hint="Only tensors are read from .pth files, since a pickle can run any code. If you "
            "trust the file, load it yourself and save its state_dict with safetensors.",
        ) from error


def _reason(error: Exception) -> str:
    """The line that says what is wrong: torch puts two paragraphs about its own API before it."""
    if isinstance(error, KeyError | EOFError) or "operand" in str(error):
        return "it is damaged, or torch.save did not write it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "unsupported" in line.lower()]
    if not named and any("weights_only" in line for line in lines):
        return "it is not a file of tensors"
    return (named or lines or [type(error).__name__])[0].split(". Please")[0]


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    places = ("model", "state_dict", "model_state_dict")
    inner = [loaded.get(key) for key in places] if isinstance(loaded, dict) else []
    tensors = next(filter(None, map(_tensors, (*inner, loaded))), None)
    if tensors is None:
        raise CheckpointError(f"{path} holds no state dict.")
    odd = [key for key, tensor in tensors.items() if not _is_plain(tensor)]
    if odd:
        raise CheckpointError(
            f"{path} holds quantized, sparse or complex tensors, or such without content: "
            f"{few(odd)}.",
            hint="Save the state_dict of the plain floating-point model.",
        )
    return _unwrapped({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors of a dict; {} of anything else, and of a dict of settings."""
    items = found.items() if isinstance(found, dict) else ()
    return {str(k): v for k, v in items if isinstance(v, Tensor)}


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized
    return is_dense and not tensor.is_complex() and not tensor.is_meta


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel, torch.compile and torch's AveragedModel add to the keys."""
    kept = {k: v for k, v in tensors.items() if k != "n_averaged"}
    return {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in kept.items()}


def _notes(loaded: dict[str, Any], path: Path) -> tuple[str, ...]:
    if not any(isinstance(value, Namespace) for value in loaded.values()):
        return ()
    return (f"{path} also holds the arguments of its training script; they were left out.",)
