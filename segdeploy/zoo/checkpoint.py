"""Checkpoint folders: weights of a zoo model with everything needed to use them.

Weights are safetensors, so that loading never runs foreign code. `half_storage` keeps convolution
and linear weights in fp16 (half the size, upcast at load); norms and biases stay fp32, since a
running variance may overflow fp16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import CheckpointError
from segdeploy.core.files import write_errors
from segdeploy.core.folder import WEIGHTS, Checkpoint, ModelFolder, save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task, num_logits
from segdeploy.core.trust import check_trusted
from segdeploy.zoo import create_model
from segdeploy.zoo.keys import difference, shapes_of


def save_checkpoint(
    path: Path,
    module: nn.Module | Mapping[str, Tensor],
    *,
    model: str,
    task: Task,
    classes: Sequence[str],
    preprocess: PreprocessSpec,
    design_size: tuple[int, int] | None = None,
    trained: bool = True,
    note: str = "",
    options: dict[str, Any] | None = None,
    companions: Mapping[str, bytes] | None = None,
    half_storage: bool = False,
) -> Checkpoint:
    """Write a checkpoint folder atomically and return it.

    Args:
        path: The folder; an older one there is replaced as a whole.
        module: The module, or its state dict.
        model: A name of the zoo, whose K fits `task` and `classes`.
        task: What the logits mean.
        classes: K label names.
        preprocess: What the model was trained with.
        design_size: (H, W) it was trained for, the default of bench and verify.
        trained: False for weights that were only initialised.
        note: For people, e.g. on what data it was trained and what that allows.
        options: Kept in the manifest.
        companions: Further files (bare name to content) that are not part of the identity.
        half_storage: Store weights of two or more dimensions as fp16.

    Raises:
        ArtifactError: If it cannot be written; an older folder is kept.
    """
    state = module.state_dict() if isinstance(module, nn.Module) else module
    tensors = {k: _stored(v, half_storage) for k, v in state.items()}
    inputs, outputs = contract_tensors(IoContract(), task, len(classes), None)
    manifest = Manifest(
        kind="checkpoint",
        model=model,
        task=task,
        classes=tuple(classes),
        preprocess=preprocess,
        inputs=inputs,
        outputs=outputs,
        files={WEIGHTS: ""},
        design_size=design_size,
        trained=trained,
        note=note,
        options=options or {},
    )

    def write(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(save(tensors))
        for name, content in (companions or {}).items():
            (folder / name).write_bytes(content)

    with write_errors(path):
        saved = save_folder(path, manifest, write)
    return Checkpoint(saved.path, saved.manifest)


def _stored(tensor: Tensor, half_storage: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous().clone()
    if not half_storage or not tensor.is_floating_point() or tensor.dim() < 2:
        return tensor
    half = tensor.half()
    fits = bool(torch.isfinite(half).all())  # A weight beyond 65504 would become infinite.
    return half if fits else tensor


def load_module(checkpoint: ModelFolder, device: str = "cpu") -> nn.Module:
    """Return the checkpoint's module in evaluation mode, fp32, with its weights.

    Raises:
        CheckpointError: If the weights are damaged or do not fit the model, or if it is code that
            may not be imported.
        UnknownNameError: If the manifest names a model that is not in the zoo.
    """
    manifest = checkpoint.manifest
    check_trusted(manifest.model, checkpoint.path)
    module = create_model(manifest.model, num_logits(manifest.task, len(manifest.classes)))
    state = read_safetensors(checkpoint.path / WEIGHTS)
    if found := difference(shapes_of(module.state_dict()), shapes_of(state)):
        raise CheckpointError(f"{checkpoint.path} does not fit {manifest.model}: {found}.")
    module.load_state_dict(state, strict=False)
    return module.eval().to(device)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, floating-point ones as fp32.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    try:
        state = load_file(path)
        return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    except (OSError, SafetensorError, NotImplementedError) as error:  # The last: of 4-bit floats.
        raise CheckpointError(f"Cannot read weights {path}: {error}") from error


def num_parameters(module: nn.Module) -> int:
    """Return the number of trainable and frozen parameters (buffers do not count)."""
    return sum(p.numel() for p in module.parameters())


__all__ = ["load_module", "num_parameters", "read_safetensors", "save_checkpoint"]
