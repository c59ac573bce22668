"""The first stages of `run`: an artifact folder per target and size, each with its verdict.

Each target is an export of its own, so that one that fails stops no other; what they share (the
plain onnx-fp32 graph) is reused by digest. Ready artifacts are copied into the run: what later
stages write belongs there, not into somebody's repository.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from segdeploy.backends import find_backend
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    ConfigError,
    SegDeployError,
    UnsupportedTargetError,
)
from segdeploy.core.files import replacing_directory
from segdeploy.core.folder import MANIFEST, Artifact, load_artifact, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.sizes import parse_sizes
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.data import TRAIN, VAL, open_dataset
from segdeploy.data.apart import Judges
from segdeploy.export import ExportOutcome, ForeignOptions, export
from segdeploy.export.foreign import plan_import
from segdeploy.graph.policy import DEFAULT
from segdeploy.workflows.run_config import RunConfig
from segdeploy.workflows.run_keys import data_key, stage_key
from segdeploy.workflows.run_memory import Memory
from segdeploy.workflows.run_result import StageOutcome, Status
from segdeploy.workflows.run_tables import ModelTable, Stage, folder_name

PARITY = "parity.json"
Progress = Callable[[str, float, float | None], None]


@dataclass(frozen=True)
class Work:
    """What every stage of a run needs at hand."""

    config: RunConfig
    out: Path
    memory: Memory
    force: bool
    say: Callable[[str], object]
    progress: Progress
    _data_keys: dict[tuple[str | None, str], str] = field(default_factory=dict)

    def folder(self, model: ModelTable) -> Path:
        """Return the run folder of one model."""
        return self.out / model.label

    def data_key(self, spec: str | None, split: str) -> str:
        """Return what changes when the data do; they are looked at once in a run."""
        if (spec, split) not in self._data_keys:
            self._data_keys[spec, split] = data_key(spec, split)
        return self._data_keys[spec, split]


def export_model(work: Work, model: ModelTable) -> list[Path]:
    """Export and verify (or copy, or only find) artifacts; return those that are there."""
    is_asked = Stage.EXPORT in work.config.stages_of(model)
    found: list[Path] = []
    if is_asked:
        _take_foreign(work, model)
    makers = _copies(work, model) if model.artifacts else _exports(work, model, is_asked=is_asked)
    for name, make in makers:
        start = time.perf_counter()
        try:
            outcome = make()
            if outcome.path in found:
                raise ConfigError(
                    f"{outcome.path} is that of another target or size as well.",
                    hint="A model of one size has one artifact for all sizes: leave one out.",
                )
        except SegDeployError as error:
            seconds = time.perf_counter() - start
            work.say(f"{model.label}/{name}: {error.message}")
            told = in_words_of_the_file(error)
            kept = StageOutcome.of_error(model.label, name, "export", told, seconds)
            work.memory.keep(kept)
            continue
        found.append(outcome.path)
        if is_asked:
            work.memory.keep(_exported(model, outcome))
            _verify(work, model, outcome.path)
    return found


def in_words_of_the_file(error: SegDeployError) -> SegDeployError:
    """Return an error that names flags with a hint at where segdeploy.toml says the same."""
    is_of_settings = isinstance(error, (ConfigError, UnsupportedTargetError))
    if not is_of_settings or "--" not in str(error):
        return error
    hint = (
        "In segdeploy.toml these are keys: calibration of [run]; sizes, input, output, int8_policy "
        "of [[model]]; size, batch_size, threads of [bench]; allow_different_machine of [gate]; "
        'those of a foreign file stand in its onnx = { task = "multilabel", ... }.'
    )
    return type(error)(error.message, hint=f"{error.hint}\n{hint}".strip())


_Maker = tuple[str, Callable[[], ExportOutcome]]


def _exports(work: Work, model: ModelTable, *, is_asked: bool) -> Iterator[_Maker]:
    for size in model.sizes:
        for target in model.targets:

            def make(target: str = target, size: str = size) -> ExportOutcome:
                outcome = plan_or_export(
                    work.config, model, target, size, work if is_asked else None
                )
                if outcome.artifact is None:
                    raise _not_taken(outcome)
                return outcome

            yield target if size == "dynamic" else f"{target}+{size}", make


def _not_taken(outcome: ExportOutcome) -> SegDeployError:
    """Return why what stands in an artifact's place would have to be built (again)."""
    hint = "Run the stage export first."
    if not outcome.path.is_dir():
        return ArtifactError(f"{outcome.path} is not there.", hint=hint)
    parent = outcome.path.parent / outcome.parent
    try:
        load_artifact(outcome.path)
        if (parent / MANIFEST).is_file():
            load_folder(parent)
    except SegDeployError as error:
        return type(error)(f"{outcome.path} cannot be taken: {error.message}", hint=hint)
    return ArtifactError(
        f"{outcome.path} was made of other settings, or from another {outcome.parent}.", hint=hint
    )


def plan_or_export(
    config: RunConfig,
    model: ModelTable,
    target: str,
    size: str,
    work: Work | None,
    *,
    force: bool = False,
) -> ExportOutcome:
    """Return the outcome of one target; without `work`, planned only.

    Planning refuses int8 that its own calibration images would judge (`run` plans before it
    builds, and does not read them again). `force` is for planning: as if nothing was there.
    """
    is_foreign = Path(model.checkpoint or "").is_file()
    return export(
        Path(model.checkpoint or ""),
        [target],
        Path(config.run.out) / model.label,
        calibration=config.calibration_of(model),
        num_calibration_images=config.run.calibration_images,
        int8_policy=model.int8_policy if is_int8(target) else DEFAULT,
        io=model.io,
        size=parse_sizes(size),
        force=force if work is None else work.force,
        dry_run=work is None,
        progress=None if work is None else work.progress,
        report=None if work is None else work.say,
        foreign=model.onnx if is_foreign else None,
        judges=_judges(config, model) if work is None and is_int8(target) else (),
    )[0]


def _judges(config: RunConfig, model: ModelTable) -> list[Judges]:
    """Return the images by which verify and evaluate will judge a model's artifacts."""
    from segdeploy.verify import find_judges

    data = config.data_of(model)
    compared_on = data or config.calibration_of(model)
    found = [find_judges(compared_on)] if compared_on else []
    table, is_scored = config.evaluate, Stage.EVALUATE in config.stages_of(model)
    if data is not None and is_scored and table.split != TRAIN:  # Who asks for it knows.
        dataset = open_dataset(data, table.split)
        found.append(Judges(dataset, range(min(len(dataset), table.limit or len(dataset)))))
    return found


def is_int8(target: str) -> bool:
    """Return whether a target has ranges to choose."""
    return ExportTarget.parse(target).precision is Precision.INT8


def _take_foreign(work: Work, model: ModelTable) -> None:
    """Put a foreign ONNX file into the run, in the place of the one that stands there.

    An export refuses that, as a slip; here the head commit's model is meant to take its place.
    """
    source = Path(model.checkpoint or "")
    if source.is_file():
        size = parse_sizes(model.sizes[0])
        static = size if isinstance(size, tuple) else None
        planned = plan_import(source, work.folder(model), model.onnx or ForeignOptions(), static)
        with run_lock(work.folder(model)):
            planned.write(force=True)


def _copies(work: Work, model: ModelTable) -> Iterator[_Maker]:
    for text in model.artifacts:

        def make(source: Path = Path(text)) -> ExportOutcome:
            place = work.folder(model) / folder_name(str(source))
            return _copy(source, place, force=work.force)

        yield folder_name(text), make


def _copy(source: Path, place: Path, *, force: bool) -> ExportOutcome:
    """Put an artifact into the run, unless the same one stands there, with the same verdict."""
    start = time.perf_counter()
    artifact = load_artifact(source)
    try:
        is_same = not force and load_folder(place).manifest == artifact.manifest
    except SegDeployError:
        is_same = False
    if not is_same:
        names = [MANIFEST, *artifact.manifest.files, *artifact.manifest.companions]
        with run_lock(place.parent), replacing_directory(place) as temporary:
            for name in filter(lambda name: (source / name).is_file(), names):
                shutil.copyfile(source / name, temporary / name)
    return ExportOutcome(
        target=artifact.name, path=place, parent=str(source), artifact=load_artifact(place),
        reused=is_same, seconds=time.perf_counter() - start, requested=True,
    )  # fmt: skip


def _exported(model: ModelTable, outcome: ExportOutcome) -> StageOutcome:
    made = "copied" if model.artifacts else "built"
    return StageOutcome(
        model=model.label, artifact=outcome.path.name, stage="export", status=Status.PASSED,
        reason="reused" if outcome.reused else f"{made} from {outcome.parent}",
        seconds=0.0 if outcome.reused else outcome.seconds, reused=outcome.reused,
        values={"size_mib": outcome.artifact.size_mib if outcome.artifact else None},
    )  # fmt: skip


def _verify(work: Work, model: ModelTable, path: Path) -> None:
    """Judge an artifact against its checkpoint; a ready one keeps the verdict it came with."""
    artifact = load_artifact(path)
    outcome = StageOutcome(
        model=model.label, artifact=path.name, stage="verify", status=Status.SKIPPED,
        reason="The artifact came without a verdict of verify.",
    )  # fmt: skip
    if model.artifacts:
        if artifact.manifest.passed is not None:
            outcome = _verdict(outcome, passed=artifact.manifest.passed, reason="when it was built")
        work.memory.keep(replace(outcome, reused=True))
        return
    data = work.config.data_of(model) or work.config.calibration_of(model)
    key = stage_key("verify", artifact.manifest.digest, work.data_key(data, VAL))
    work.memory.settle(
        outcome.place, key, path / PARITY, lambda: _judge(work, outcome, artifact, data)
    )


def _judge(work: Work, outcome: StageOutcome, artifact: Artifact, data: str | None) -> StageOutcome:
    from segdeploy.verify import verify

    work.say(f"{outcome.model}/{outcome.artifact}: verifying")
    start = time.perf_counter()
    try:
        backend = find_backend(artifact)
        device = backend.home if backend else "cpu"
        report = verify(artifact.path, data=data, device=device)
    except BackendUnavailableError as error:  # Built here for a machine that is not this one.
        return replace(outcome, reason=f"not run here: {error.message}")
    except SegDeployError as error:
        seconds = time.perf_counter() - start
        return StageOutcome.of_error(outcome.model, outcome.artifact, "verify", error, seconds)
    rules = ", ".join(f"{f.rule} {f.value:.3g} (limit {f.limit:g})" for f in report.failures)
    flips = f"{100 * report.flip_rate:.2g} % of the pixels flip"
    reason = rules or (flips if report.flip_rate else "no pixel flips")
    judged = _verdict(outcome, passed=report.passed, reason=reason)
    return replace(
        judged, seconds=time.perf_counter() - start, values={"flip_rate": report.flip_rate}
    )


def _verdict(outcome: StageOutcome, *, passed: bool, reason: str) -> StageOutcome:
    if passed:
        return replace(outcome, status=Status.PASSED, reason=f"passed: {reason}")
    return replace(
        outcome, status=Status.FAILED, kind="ParityError", exit_code=1, reason=f"failed: {reason}"
    )
