"""Trained weights of another library become a checkpoint folder.

The class count K is read from the weights: the model is built for two class counts, without
memory, and the tensors whose shapes differ between these tell K. Everything must fit but what no
prediction depends on: auxiliary heads, which run in training only. torchvision leaves them out of
a model that was made with aux_loss=None; they are then made afresh, and that is noted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segdeploy.core.errors import CheckpointError, ConfigError
from segdeploy.core.files import sha256_file
from segdeploy.core.folder import Checkpoint, load_checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task, num_logits
from segdeploy.zoo import MODELS, create_model
from segdeploy.zoo.checkpoint import save_checkpoint
from segdeploy.zoo.keys import (
    WRAPPERS,
    Difference,
    Match,
    Shapes,
    difference,
    few,
    layout_hint,
    match_keys,
    shapes_of,
)
from segdeploy.zoo.shapes import create_shapes
from segdeploy.zoo.weights import Weights, read_weights

_PROBES = (2, 3)
_OFFICIAL_U2NET = {"u2net", "u2net_lite"}


def import_weights(
    path: Path,
    *,
    model: str,
    out: Path,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    preprocess: PreprocessSpec | None = None,
    note: str = "",
    force: bool = False,
) -> Checkpoint:
    """Write the weights of a file as a checkpoint folder of `model` and return it.

    The manifest's `options["imported"]` keeps the file's name, its sha256 and the notes that
    people should read.

    Args:
        path: `.pth`, `.pt` or `.safetensors` of torchvision, segmentation-models-pytorch, the
            official U-2-Net or a plain state dict; or a checkpoint folder.
        model: A name of the zoo, or `package.module:callable`.
        out: The folder to write.
        classes: K label names; default: those of a checkpoint folder, else class_0, class_1, ...
        task: What the logits mean; default: the folder's, else binary for K = 1 and multiclass.
        preprocess: What the model was trained with; default: the folder's, else ImageNet's mean
            and std.
        note: Kept in the manifest, e.g. the licence of the weights.
        force: Replace a checkpoint that stands at `out`.

    Raises:
        CheckpointError: If the file cannot be read or does not fit the model.
        ConfigError: If the class names do not fit K, or `out` exists.
        UnknownNameError: If there is no such model.
    """
    if model not in MODELS:
        raise MODELS.unknown(model)
    if not force and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists.", hint="Choose another --out, or give --force.")
    weights = _in_our_layout(read_weights(path), model)
    if path.is_dir():
        known = load_checkpoint(path).manifest
        classes, task = classes or known.classes, task or known.task
        preprocess = preprocess or known.preprocess
    channels = _read_class_count(model, weights.tensors, path)
    task = task or (Task.BINARY if channels == 1 else Task.MULTICLASS)
    names = tuple(classes or (f"class_{i}" for i in range(channels)))
    if num_logits(task, len(names)) != channels:
        raise ConfigError(
            f"{path} has {channels} logit channels, which does not fit {len(names)} class names "
            f"of a {task} task.",
            hint="A binary task has one channel and one name: the foreground's.",
        )
    module, notes = _load(model, channels, weights.tensors, path)
    imported = {"file": path.name, "notes": [*weights.notes, *notes]}
    if path.is_file():
        imported["sha256"] = sha256_file(path)
    return save_checkpoint(
        out,
        module,
        model=model,
        task=task,
        classes=names,
        preprocess=preprocess or PreprocessSpec(),
        design_size=MODELS.get(model).input_size,
        note=note,
        options={"imported": imported},
    )


def _in_our_layout(weights: Weights, model: str) -> Weights:
    if model not in _OFFICIAL_U2NET:
        return weights
    from segdeploy.zoo.architectures.u2net import is_official_u2net, official_u2net_state

    if not is_official_u2net(weights.tensors):
        return weights
    note = "The layout of the official U-2-Net was converted."
    return Weights(official_u2net_state(weights.tensors), (*weights.notes, note))


def _read_class_count(model: str, tensors: Mapping[str, Tensor], path: Path) -> int:
    """Return K: what most tensors that depend on it say; the model's first ones if they differ."""
    small, large = (shapes_of(create_shapes(model, k).state_dict()) for k in _PROBES)
    found = shapes_of(tensors)
    match = match_keys(large, found, stripped=WRAPPERS, added=("",))
    depending = [k for k in large if small[k] != large[k]]
    votes: Counter[int] = Counter()
    for key in depending:
        if key in match.keys:
            votes[_class_count(small[key], large[key], found[match.keys[key]])] += 1
    votes.pop(0, None)
    if not votes:
        wanted = few(depending) or "none depends on it"
        raise CheckpointError(
            f"{path} does not fit {model}: {match.num_fitting} of {len(large)} tensors fit, and "
            f"none of those that tell the class count ({wanted}).",
            hint=layout_hint(tensors) or _example(large, found),
        )
    return votes.most_common(1)[0][0]


def _class_count(small: torch.Size, large: torch.Size, found: torch.Size) -> int:
    """K of a tensor from its shapes at two class counts and its own; 0 if there is none."""
    if len(found) != len(large):
        return 0
    low, high, own = next((a, b, c) for a, b, c in zip(small, large, found, strict=True) if a != b)
    count, rest = divmod((own - low) * (_PROBES[1] - _PROBES[0]), high - low)
    return count + _PROBES[0] if rest == 0 and count + _PROBES[0] >= 1 else 0


def _example(wanted: Shapes, found: Shapes) -> str:
    return f"The model has keys such as {few(list(wanted))}; the file has {few(list(found))}."


def _load(
    model: str, channels: int, tensors: Mapping[str, Tensor], path: Path
) -> tuple[nn.Module, list[str]]:
    """Return the model with its weights, and what was noted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # What is made afresh is the same every time.
        module = create_model(model, channels)
    own = shapes_of(module.state_dict())
    match = match_keys(own, shapes_of(tensors), stripped=WRAPPERS, added=("",))
    state, notes = _without_wrapper(tensors, match)
    found = difference(own, shapes_of(state))
    _check_kinds(module.state_dict(), state, path)
    serious = _without_auxiliary(found)
    if serious:
        raise CheckpointError(f"{path} does not fit {model}: {serious}.", hint=layout_hint(tensors))
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)
    if found.missing:
        notes.append(
            f"The file has no auxiliary head ({few(found.missing)}): it was made afresh; it "
            "matters in training only."
        )
    if found.unexpected:
        notes.append(f"Left out: the auxiliary head of the file ({few(found.unexpected)}).")
    return module, notes


def _check_kinds(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Whole numbers in place of weights are those of a quantized model, without their scales."""
    shared = [k for k in own if k in state]
    odd = [k for k in shared if own[k].is_floating_point() != state[k].is_floating_point()]
    if odd:
        raise CheckpointError(
            f"{path} has other kinds of numbers than the model: {few(odd)}.",
            hint="Save the state_dict of the plain floating-point model.",
        )


def _without_wrapper(
    tensors: Mapping[str, Tensor], match: Match
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict below the prefix of a training loop, under the model's keys."""
    names = {key: own for own, key in match.keys.items()}
    inside = {k: v for k, v in tensors.items() if k.startswith(match.stripped)}
    state = {names.get(k, k.removeprefix(match.stripped)): v for k, v in inside.items()}
    outside = [k for k in tensors if k not in inside]
    note = f"Left out: what is not the model's ({few(outside)})."
    return state, [note] if outside else []


def _without_auxiliary(found: Difference) -> Difference:
    return Difference(
        missing=[k for k in found.missing if not k.startswith("aux")],
        unexpected=[k for k in found.unexpected if not k.startswith("aux")],
        misshaped=found.misshaped,
    )


def import_notes(checkpoint: Checkpoint) -> list[str]:
    """Return what people should know of an imported checkpoint."""
    imported: dict[str, Any] = checkpoint.manifest.options.get("imported", {})
    return list(imported.get("notes", []))
