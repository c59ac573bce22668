"""What an export will do, decided and checked before any work starts.

A plan is a small graph of steps: the plain onnx-fp32 artifact is the parent of every other ONNX
artifact of the same size, so that a bad number can be traced to one hop. A parent that was not
asked for is a step as well; its folder has its usual name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segdeploy.backends import BACKENDS
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import ArtifactError, ConfigError, UnsupportedTargetError
from segdeploy.core.folder import MANIFEST, Checkpoint
from segdeploy.core.manifest import decode_manifest
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.core.task import Task
from segdeploy.zoo import MODELS

MIN_SIZE = 32
MAX_SIZE = 16384
PLAIN = ExportTarget("onnx", Precision.FP32)


@dataclass(frozen=True)
class Step:
    """One artifact to have: built, or reused where it is already there.

    `parent` is None where it is made from the checkpoint.
    """

    target: ExportTarget
    io: IoContract
    size: tuple[int, int] | None
    folder: Path
    parent: Step | None = None
    requested: bool = False

    @property
    def label(self) -> str:
        """Name for people: the folder's."""
        return self.folder.name


def default_name(target: ExportTarget, io: IoContract, size: tuple[int, int] | None) -> str:
    """Return the folder name: the target and every option that is not default."""
    return f"{target}{io.suffix}" + (f"+{size[0]}x{size[1]}" if size else "")


def plan_export(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    out: Path,
    *,
    io: IoContract,
    size: tuple[int, int] | None,
    name: str | None,
) -> list[Step]:
    """Return the steps: a parent before its children, else in the order asked for.

    Raises:
        ConfigError: If a target is unknown or options contradict each other.
        UnsupportedTargetError: If a backend does not offer the precision or the contract.
        ArtifactError: If a destination holds something that is not an artifact, or is not writable.
    """
    wanted = list(dict.fromkeys(ExportTarget.parse(text) for text in targets))
    _check_options(wanted, size, name)
    check_model_size(checkpoint.manifest.model, size)
    for target in wanted:
        _check_target(target, io, checkpoint.manifest.task)
    plain = Step(PLAIN, IoContract(), size, out / default_name(PLAIN, IoContract(), size))
    if plain.target in wanted and io == plain.io:
        plain = replace(plain, requested=True, folder=out / (name or plain.folder.name))
    steps = [] if not plain.requested else [plain]
    for target in wanted:
        if target == PLAIN and plain.requested:
            continue
        folder = out / (name or default_name(target, io, size))
        parent = plain if _needs_plain(target, io) else None
        steps.append(Step(target, io, size, folder, parent, requested=True))
    if plain not in steps and any(step.parent for step in steps):
        steps.insert(0, plain)
    _check_folders(steps, checkpoint, out)
    return steps


def _needs_plain(target: ExportTarget, io: IoContract) -> bool:
    backend = BACKENDS.get(target.backend)
    if backend.source == "onnx":
        return True
    return target.backend == PLAIN.backend and (target, io) != (PLAIN, IoContract())


def _check_options(
    wanted: Sequence[ExportTarget], size: tuple[int, int] | None, name: str | None
) -> None:
    if not wanted:
        raise ConfigError("An export needs at least one target.", hint="E.g. --target onnx-fp32.")
    if size is not None and not all(MIN_SIZE <= side <= MAX_SIZE for side in size):
        raise ConfigError(
            f"The size {size[0]}x{size[1]} is outside {MIN_SIZE}..{MAX_SIZE}.",
            hint="Give H x W as in --size 360x480, or --size dynamic.",
        )
    if name is None:
        return
    if len(wanted) > 1:
        raise ConfigError(f"--name '{name}' fits one target, but {len(wanted)} were asked for.")
    if not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise ConfigError(f"'{name}' is not a bare folder name.")


def check_model_size(model: str, size: tuple[int, int] | None) -> None:
    """Refuse dynamic sizes of a model that is exported at one size; of own code nothing is known.

    Raises:
        ConfigError: If `size` is None (dynamic) and the model needs one.
    """
    if size is not None or model not in MODELS or ":" in model:
        return
    spec = MODELS.get(model)
    if spec.is_fixed_size:
        height, width = spec.input_size
        raise ConfigError(
            f"{model} is exported at one size, and --size is dynamic.",
            hint=f"Give --size HxW, e.g. its design size: --size {height}x{width}.",
        )


def _check_target(target: ExportTarget, io: IoContract, task: Task) -> None:
    backend = BACKENDS.get(target.backend)
    if target.precision not in backend.precisions:
        offered = ", ".join(f"{target.backend}-{p}" for p in backend.precisions)
        raise UnsupportedTargetError(
            f"{target.backend} has no precision {target.precision}.", hint=f"It offers {offered}."
        )
    if task is Task.MULTILABEL and io.output is not OutputKind.LOGITS:
        raise UnsupportedTargetError(
            "A multilabel prediction is not one label map.", hint="Use --output logits."
        )


def _check_folders(steps: Sequence[Step], checkpoint: Checkpoint, out: Path) -> None:
    folders = [step.folder for step in steps]
    if len(set(folders)) < len(folders):
        raise ConfigError(
            f"The name {folders[-1].name} is that of the parent artifact.",
            hint="Use another --name.",
        )
    if (out / MANIFEST).is_file():
        raise ConfigError(
            f"{out} is one checkpoint or artifact, not a run folder.",
            hint=f"Give --out {out.resolve().parent}, or another folder.",
        )
    existing = next((p for p in (out, *out.parents) if p.exists()), out)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ArtifactError(
            f"Cannot write below {existing}.", hint="Check permissions, or choose another --out."
        )
    for folder in folders:
        if folder.resolve() == checkpoint.path.resolve() or not _may_replace(folder):
            raise ArtifactError(
                f"{folder} exists and is not an artifact; it will not be replaced.",
                hint="Use another --name or --out, or remove it yourself.",
            )


def _may_replace(folder: Path) -> bool:
    """Return whether a destination is free, empty, or an artifact (a damaged one included)."""
    if not folder.exists() and not folder.is_symlink():
        return True
    if not folder.is_dir() or folder.is_symlink():
        return False
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return not any(folder.iterdir())
    try:
        return decode_manifest(manifest.read_bytes(), str(manifest)).kind == "artifact"
    except (ArtifactError, OSError):
        return not (folder / "weights.safetensors").exists()
