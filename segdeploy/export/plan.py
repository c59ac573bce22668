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
from segdeploy.core.contract import IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import (
    ArtifactError,
    ConfigError,
    ManifestError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import MANIFEST, Checkpoint
from segdeploy.core.foreign import is_foreign
from segdeploy.core.manifest import decode_manifest
from segdeploy.core.session import Limits
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.core.task import Task
from segdeploy.zoo import MODELS

MIN_SIZE = 32
MAX_SIZE = 16384
MAX_BATCH = 4096
PLAIN = ExportTarget("onnx", Precision.FP32)


@dataclass(frozen=True)
class Step:
    """One artifact to have: built, or reused where it is already there.

    `parent` is None where it is made from the checkpoint. `size` is None for dynamic sizes, within
    `bounds` where the format needs them; `batch` is None where N is dynamic.
    """

    target: ExportTarget
    io: IoContract
    size: tuple[int, int] | None
    folder: Path
    parent: Step | None = None
    requested: bool = False
    bounds: SizeBounds | None = None
    batch: int | None = None

    @property
    def label(self) -> str:
        """Name for people: the folder's."""
        return self.folder.name


Size = tuple[int, int] | SizeBounds | None
"""What an export is asked for: one size (H, W), sizes within bounds, or any."""


def default_name(target: ExportTarget, io: IoContract, size: Size, max_batch: int = 1) -> str:
    """Return the folder name: the target and every option that is not default."""
    text = "" if size is None else f"+{size}" if isinstance(size, SizeBounds) else ""
    if isinstance(size, tuple):
        text = f"+{size[0]}x{size[1]}"
    return f"{target}{io.suffix}{text}" + (f"+batch{max_batch}" if max_batch > 1 else "")


def plan_export(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    out: Path,
    *,
    io: IoContract,
    size: Size,
    name: str | None,
    max_batch: int = 1,
) -> list[Step]:
    """Return the steps: a parent before its children, else in the order asked for.

    Raises:
        ConfigError: If a target is unknown or options contradict each other.
        UnsupportedTargetError: If a backend does not offer the precision, the contract or the size.
        ArtifactError: If a destination holds something that is not an artifact, or is not writable.
    """
    wanted = list(dict.fromkeys(ExportTarget.parse(text) for text in targets))
    _check_options(wanted, size, name, max_batch)
    own_batch, own_size = _own_sizes(checkpoint)
    size = _fit_size(checkpoint, own_batch, own_size, size, max_batch)
    static = size if isinstance(size, tuple) else None
    check_model_size(checkpoint.manifest.model, static)
    for target in wanted:
        _check_source(target, checkpoint)
        _check_target(target, io, checkpoint.manifest.task, size)
    shown = None if static == own_size else static
    plain_folder = out / default_name(PLAIN, IoContract(), shown)
    plain = Step(PLAIN, IoContract(), static, plain_folder, batch=own_batch)
    if plain.target in wanted and io == plain.io:
        plain = replace(plain, requested=True, folder=out / (name or plain.folder.name))
    steps = [] if not plain.requested else [plain]
    for target in wanted:
        if target == PLAIN and plain.requested:
            continue
        step = _plan_step(target, io, size, max_batch, out, name, own_size)
        step = replace(step, batch=step.batch or own_batch)
        steps.append(replace(step, parent=plain if _needs_plain(target, io) else None))
    if plain not in steps and any(step.parent for step in steps):
        steps.insert(0, plain)
    _check_folders(steps, checkpoint, out)
    return steps


def _own_sizes(checkpoint: Checkpoint) -> tuple[int | None, tuple[int, int] | None]:
    """Return the N and (H, W) that a foreign model was written for; None is any."""
    shapes = [taken.shape for taken in checkpoint.manifest.inputs]
    if [len(shape) for shape in shapes] != [4]:
        raise ManifestError(
            f"{checkpoint.path} takes {shapes}, not one batch of images.",
            hint="Its manifest is not one of a checkpoint.",
        )
    batch, _, height, width = shapes[0]
    return batch, (height, width) if height and width else None


def _fit_size(
    checkpoint: Checkpoint,
    own_batch: int | None,
    own_size: tuple[int, int] | None,
    size: Size,
    max_batch: int,
) -> Size:
    """Return the size to export at: the model's own where it has one.

    Raises:
        ConfigError: If another one is asked for.
    """
    if own_batch is not None and max_batch > own_batch:
        raise ConfigError(
            f"{checkpoint.manifest.model} takes {own_batch} image a call, and --max-batch is "
            f"{max_batch}.",
            hint="Export the original again with a dynamic batch.",
        )
    if own_size is None or size is None or size == own_size:
        return size or own_size
    shown = size if isinstance(size, SizeBounds) else "x".join(map(str, size))
    height, width = own_size
    raise ConfigError(
        f"{checkpoint.manifest.model} takes {height}x{width} only, and --size is {shown}.",
        hint="Leave --size out, or export the original again with dynamic sizes.",
    )


def _check_source(target: ExportTarget, checkpoint: Checkpoint) -> None:
    """Refuse a target that is converted from a module, of which a foreign model has none."""
    backend = BACKENDS.get(target.backend)
    if not is_foreign(checkpoint) or backend.source == "onnx" or target.backend == PLAIN.backend:
        return
    offered = [n for n in BACKENDS if n == PLAIN.backend or BACKENDS.get(n).source == "onnx"]
    raise UnsupportedTargetError(
        f"{target} is made from a PyTorch module, and {checkpoint.manifest.model} came as ONNX.",
        hint=f"Targets that are made from ONNX: {', '.join(offered)}.",
    )


def _plan_step(
    target: ExportTarget,
    io: IoContract,
    size: Size,
    max_batch: int,
    out: Path,
    name: str | None,
    own_size: tuple[int, int] | None,
) -> Step:
    """Return the step of one target, with what its format makes of size and batch.

    A model's only size is no option, so it is not part of the name.
    """
    limits = BACKENDS.get(target.backend).limits
    static = size if isinstance(size, tuple) else None
    bounds = None
    if limits.bounded and isinstance(size, SizeBounds):
        bounds = replace(size, max_batch=max_batch)
    elif limits.bounded and static and max_batch > 1:
        bounds = SizeBounds(static, static, static, max_batch)
    if max_batch > 1 and not limits.batches:
        raise UnsupportedTargetError(
            f"{target.backend} takes one image a call, and --max-batch is {max_batch}.",
            hint="Leave --max-batch out for this target.",
        )
    is_single = not limits.batches or (limits.bounded and max_batch == 1)
    shown: Size = bounds if isinstance(size, SizeBounds) else static
    shown = None if shown == own_size else shown
    usual = default_name(target, io, shown, max_batch if bounds else 1)
    folder = out / (name or usual)
    return Step(
        target, io, static, folder, requested=True, bounds=bounds, batch=1 if is_single else None
    )


def _needs_plain(target: ExportTarget, io: IoContract) -> bool:
    backend = BACKENDS.get(target.backend)
    if backend.source == "onnx":
        return True
    return target.backend == PLAIN.backend and (target, io) != (PLAIN, IoContract())


def _check_options(
    wanted: Sequence[ExportTarget], size: Size, name: str | None, max_batch: int
) -> None:
    if not wanted:
        raise ConfigError("An export needs at least one target.", hint="E.g. --target onnx-fp32.")
    sides = (*size.least, *size.largest) if isinstance(size, SizeBounds) else size or ()
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in sides):
        shown = size if isinstance(size, SizeBounds) else "x".join(map(str, sides))
        raise ConfigError(
            f"The size {shown} is outside {MIN_SIZE}..{MAX_SIZE}.",
            hint="Give H x W as in --size 360x480, or --size dynamic.",
        )
    if not 1 <= max_batch <= MAX_BATCH:
        raise ConfigError(f"The largest batch must be in 1..{MAX_BATCH}, found {max_batch}.")
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


def _check_target(target: ExportTarget, io: IoContract, task: Task, size: Size) -> None:
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
    _check_limits(target.backend, backend.limits, io, size)


def _check_limits(name: str, limits: Limits, io: IoContract, size: Size) -> None:
    for flag, asked, offered in (
        ("input", io.input, limits.inputs), ("output", io.output, limits.outputs),
    ):  # fmt: skip
        if asked not in offered:
            raise UnsupportedTargetError(
                f"{name} cannot express --{flag} {asked}.",
                hint=f"It offers {', '.join(offered)}.",
            )
    if isinstance(size, tuple) or limits.dynamic:
        return
    if limits.bounded and size is None:
        raise UnsupportedTargetError(
            f"{name} is built for a range of sizes, and --size is dynamic.",
            hint="Give --size LEAST..LARGEST, e.g. 256x256..1024x1024, or one size, e.g. 360x480.",
        )
    if not limits.bounded:
        raise UnsupportedTargetError(
            f"{name} is built for one size, and --size is {size or 'dynamic'}.",
            hint="Give --size HxW, e.g. 360x480.",
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
