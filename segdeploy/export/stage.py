"""The stage: from a checkpoint to one artifact folder per target.

Everything that can be refused is refused before the first converter runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.backends import BACKENDS, require_backend
from segdeploy.backends.isolation import BUILD_LIMIT_S, Builder
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    ConfigError,
    SegDeployError,
)
from segdeploy.core.folder import Artifact, Checkpoint, ModelFolder, load_checkpoint
from segdeploy.core.foreign import is_foreign
from segdeploy.core.lock import run_lock
from segdeploy.core.preprocess import fixed_preprocess
from segdeploy.core.target import Precision
from segdeploy.data.apart import Judges, names_by_digest
from segdeploy.export.build import (
    BuildContext,
    build_artifact,
    describe_artifact,
    reusable_artifact,
)
from segdeploy.export.calibration import (
    CalibrationSet,
    Int8Options,
    Progress,
    open_calibration,
)
from segdeploy.export.foreign import ForeignOptions, plan_import
from segdeploy.export.plan import Size, Step, plan_export
from segdeploy.export.upsampling import Upsampled, find_in_module
from segdeploy.frameworks.torch import require_onnx, require_torch
from segdeploy.graph.policy import DEFAULT, Policy, load_policy

NUM_CALIBRATION_IMAGES = 32


@dataclass(frozen=True)
class ExportOutcome:
    """What became of one step.

    `artifact` is None under `dry_run` where it would have to be built; `reused` says that it was
    (or would be) taken as it stood. `seconds` is what the step took. `requested` is False for a
    parent that another target needs. `error` is why a step of a sweep failed.
    """

    target: str
    path: Path
    parent: str
    artifact: Artifact | None
    reused: bool
    seconds: float
    requested: bool
    error: SegDeployError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `export`."""
        return {
            "target": self.target,
            "path": str(self.path),
            "parent": self.parent,
            "seconds": round(self.seconds, 3),
            "reused": self.reused,
            "requested": self.requested,
            "size_mib": round(self.artifact.size_mib, 4) if self.artifact else None,
            "error": str(self.error) if self.error else None,
        }


def export(
    checkpoint: Path,
    targets: Sequence[str],
    out: Path,
    *,
    calibration: str | None = None,
    num_calibration_images: int = NUM_CALIBRATION_IMAGES,
    int8_options: Int8Options | None = None,
    int8_policy: str = DEFAULT,
    io: IoContract | None = None,
    size: Size = None,
    max_batch: int = 1,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    keep_going: bool = False,
    build_limit_s: float = BUILD_LIMIT_S,
    build_memory_mib: float | None = None,
    progress: Progress | None = None,
    report: Callable[[str], object] | None = None,
    foreign: ForeignOptions | None = None,
    judges: Sequence[Judges] = (),
) -> list[ExportOutcome]:
    """Build an artifact per target into the run folder `out`, reusing what has not changed.

    Args:
        checkpoint: Folder of the trained model, or a foreign ONNX file.
        targets: E.g. `["onnx-fp32", "onnx-int8"]`.
        out: The run folder.
        calibration: `name:root` of the data set whose train split chooses int8 ranges, and shows
            what overflows in fp16.
        num_calibration_images: How many of them, chosen by class coverage.
        int8_options: How ranges are chosen and the graph is prepared for int8.
        int8_policy: Which nodes of an int8 graph are quantised: `default` (the backend's own),
            `all`, or a TOML file.
        io: Input and output contract of every target.
        size: Fixed (H, W), bounds of sizes, or None for dynamic shapes.
        max_batch: Largest batch of a format that is built for a range.
        name: Folder name in place of the usual one, for one target.
        force: Build again even what has not changed.
        dry_run: Only plan: nothing is written.
        keep_going: Return what failed in the outcomes and go on, instead of raising it.
        build_limit_s: Longest time of one converter, in seconds.
        build_memory_mib: Most memory of a converter; default: most of what this process may use.
        progress: Called with (what, done, total) while calibration images are read.
        report: Called with a line for people before each step.
        foreign: What a foreign ONNX file does not say of itself.
        judges: Images that the artifacts will be judged by: none of them may calibrate int8.

    Returns:
        Outcomes of the targets in the order asked for, then of parents that they needed.

    Raises:
        ConfigError: If a target is unknown, options contradict, or int8 has no calibration.
        UnsupportedTargetError: If a backend does not offer what is asked.
        CheckpointError, ArtifactError: If the checkpoint is damaged or `out` not writable.
        BackendUnavailableError: If a package is missing.
        DataError: If calibration images are missing or damaged, or are among the judges.
        RunLockedError: If another process works in `out`.
        BuildError: If a converter fails; what was finished before stays.
    """
    _check_limits(build_limit_s, build_memory_mib)
    source, take = _open_source(checkpoint, out, foreign, size, report)
    steps = plan_export(
        source, targets, out, io=io or IoContract(), size=size, name=name, max_batch=max_batch
    )
    versions, missing = _require(steps, has_module=not is_foreign(source), keep_going=keep_going)
    images = _open_calibration(steps, calibration, num_calibration_images, int8_options)
    builder = Builder(build_limit_s, build_memory_mib)
    policies = _load_policies(steps, int8_policy)
    context = BuildContext(
        source, images, progress, builder, versions, missing, policies, _upsampling(source, steps)
    )
    if images is not None and judges and _builds_int8(steps, context, force=force):
        for each in judges:
            each.check_apart(names_by_digest(images.images))
    _say_resized(source, size, report)
    if dry_run:
        done = _run(steps, context, _Choices(force, dry_run=True, keep_going=False))
    else:
        with run_lock(out):
            take(force)
            choices = _Choices(force, dry_run=False, keep_going=keep_going)
            done = _run(steps, context, choices, report)
    asked = [str(text) for text in dict.fromkeys(targets)]
    return sorted(done, key=lambda o: asked.index(o.target) if o.requested else len(asked))


def _open_source(
    path: Path,
    out: Path,
    foreign: ForeignOptions | None,
    size: Size,
    report: Callable[[str], object] | None,
) -> tuple[Checkpoint, Callable[[bool], object]]:
    """Return the checkpoint to export, and what puts it into the run folder (force: bool).

    A foreign file is only read here: what it becomes is written once all else is checked.
    """
    if path.suffix == ".onnx" and not path.exists():
        raise ArtifactError(
            f"{path}: no such file.",
            hint="Give a foreign ONNX file, or a checkpoint folder, e.g. RUN/checkpoint.",
        )
    if not path.is_file():
        found = load_checkpoint(path)
        if foreign is not None:
            raise ConfigError(
                f"{path} is no file: flags for a foreign ONNX file mean nothing here.",
                hint="A checkpoint folder says all of it in its manifest.",
            )
        return found, lambda _: None
    require_onnx()
    static = size if isinstance(size, tuple) else None
    planned = plan_import(path, out, foreign or ForeignOptions(), static)
    for line in planned.describe():
        _say(report, line)
    return planned.checkpoint, lambda force: planned.write(force=force)


def _check_limits(seconds: float, memory_mib: float | None) -> None:
    for value, what in ((seconds, "time in s"), (memory_mib, "memory in MiB")):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"The limit of a build ({what}) must be positive, found {value}.")


def _say_resized(source: Checkpoint, size: Size, report: Callable[[str], object] | None) -> None:
    """Say that the artifacts will bring images to another size than the checkpoint does."""
    spec = source.manifest.preprocess
    static = size if isinstance(size, tuple) else None
    if fixed_preprocess(spec, static).size not in (None, spec.size) and spec.size is not None:
        height, width = spec.size
        shown = "x".join(map(str, static or ()))
        _say(report, f"note: images will be resized to {shown}, not to {height}x{width} as before")


def _require(
    steps: Sequence[Step], *, has_module: bool, keep_going: bool
) -> tuple[dict[str, dict[str, str]], dict[str, BackendUnavailableError]]:
    """Return the versions of packages by backend, and of a sweep the backends that are missing.

    A sweep needs one backend at least: else the first error is raised as for a single target.
    """
    if has_module:
        require_torch("onnx", "onnxscript", "safetensors")
    else:
        require_onnx()
    versions, missing = {}, {}
    for name in dict.fromkeys(step.target.backend for step in steps):
        try:
            versions[name] = require_backend(BACKENDS.get(name))
        except BackendUnavailableError as error:
            missing[name] = error
    asked = {step.target.backend for step in steps if step.requested}
    if missing and (not keep_going or asked <= set(missing)):
        raise next(iter(missing.values()))
    return versions, missing


def _open_calibration(
    steps: Sequence[Step],
    calibration: str | None,
    num_images: int,
    options: Int8Options | None,
) -> CalibrationSet | None:
    taking = [s for s in steps if s.target.precision is Precision.FP16 and s.parent is not None]
    int8 = [s for s in steps if s.target.precision is Precision.INT8]
    untouched = [s for s in int8 if s.parent is None] or ([] if int8 else steps)
    if options not in (None, Int8Options()) and untouched:
        shown = ", ".join(str(s.target) for s in untouched if s.requested)
        raise ConfigError(
            f"Method, equalisation and bias correction change nothing for {shown}.",
            hint="They are for int8 graphs: onnx-int8, openvino-int8, tensorrt-int8. Export others "
            "by themselves.",
        )
    if not int8 and (not taking or calibration is None):
        return None
    if calibration is None:
        raise ConfigError(
            f"The target {int8[0].target} needs images to choose its ranges from.",
            hint="Give --calibration NAME[:ROOT], e.g. camvid:data/camvid (its train split).",
        )
    images = open_calibration(calibration, num_images, options)
    _ = images.digest  # Reads every image once: a damaged one is found before any work.
    return images


def _load_policies(steps: Sequence[Step], text: str) -> dict[str, Policy]:
    """Return the policy of each backend whose int8 is nodes of a graph."""
    int8 = [step for step in steps if step.target.precision is Precision.INT8]
    backends = [step.target.backend for step in int8 if step.parent is not None]
    if text != DEFAULT and len(backends) < len(int8 or steps):
        raise ConfigError(
            f"--int8-policy {text} fits int8 targets that are made from ONNX, not "
            f"{next(s.target for s in int8 or steps if s.target.backend not in backends)}.",
            hint="Leave it out, or export that target by itself.",
        )
    policies = {name: load_policy(text, name) for name in backends}
    for name, policy in policies.items():
        if BACKENDS.get(name).is_symmetric and policy.activations != "symmetric":
            raise ConfigError(
                f"{name} takes symmetric int8 only, and the policy '{policy.name}' is "
                f"{policy.activations}.",
                hint='Set activations = "symmetric" in it, or leave --int8-policy out.',
            )
    return policies


def _upsampling(source: Checkpoint, steps: Sequence[Step]) -> Upsampled | None:
    """Return how the module upsamples, where its low-resolution logits are asked for."""
    for step in steps:
        if step.io.output is OutputKind.LOW_LOGITS and not is_foreign(source):
            return find_in_module(source, step.size)
    return None


@dataclass(frozen=True)
class _Choices:
    force: bool
    dry_run: bool
    keep_going: bool


def _builds_int8(steps: Sequence[Step], context: BuildContext, *, force: bool) -> bool:
    """Return whether there is int8 to build: what is reused was judged when it was built."""
    planned = _run(steps, context, _Choices(force, dry_run=True, keep_going=True))
    reused = {outcome.path for outcome in planned if outcome.reused}
    return any(s.target.precision is Precision.INT8 and s.folder not in reused for s in steps)


def _run(
    steps: Sequence[Step],
    context: BuildContext,
    choices: _Choices,
    report: Callable[[str], object] | None = None,
) -> list[ExportOutcome]:
    outcomes: list[ExportOutcome] = []
    made: dict[Path, Artifact | None] = {}
    failed: dict[Path, SegDeployError] = {}
    for step in steps:
        start = time.perf_counter()
        artifact, reused = None, False
        try:
            if step.parent is not None and step.parent.folder in failed:
                raise BuildError(f"{step.label} needs {step.parent.label}, which failed.")
            if step.target.backend in context.missing:
                raise context.missing[step.target.backend]
            parent = context.checkpoint if step.parent is None else made[step.parent.folder]
            artifact, reused = _take_or_build(step, parent, context, choices, report)
        except SegDeployError as error:
            if not choices.keep_going:
                raise
            failed[step.folder] = error
            _say(report, f"{step.label}: failed: {error.message}")
        made[step.folder] = artifact
        outcomes.append(
            ExportOutcome(
                target=str(step.target),
                path=step.folder,
                parent=step.parent.label if step.parent else context.checkpoint.path.name,
                artifact=artifact,
                reused=reused,
                seconds=time.perf_counter() - start,
                requested=step.requested,
                error=failed.get(step.folder),
            )
        )
    return outcomes


def _take_or_build(
    step: Step,
    parent: ModelFolder | None,
    context: BuildContext,
    choices: _Choices,
    report: Callable[[str], object] | None,
) -> tuple[Artifact | None, bool]:
    """Return (artifact, whether it was reused); under dry_run None stands for one to build."""
    if parent is None:
        return None, False  # Planned only: the parent itself would have to be built.
    wanted = describe_artifact(step, parent, context)
    found = None if choices.force else reusable_artifact(step, wanted)
    if found is not None:
        _say(report, f"{step.label}: reused")
        return found, True
    if choices.dry_run:
        return None, False
    _say(report, f"{step.label}: building from {parent.path.name}")
    return build_artifact(step, wanted, parent, context), False


def _say(report: Callable[[str], object] | None, message: str) -> None:
    if report is not None:
        report(message)
