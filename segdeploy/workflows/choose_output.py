"""`export --output auto`: which output contract is the fastest way to a label map, by measuring.

For each target the forms that it and the model can express (logits, labels, low-resolution logits)
are built, measured in one interleaved run from a decoded image to the label map, and the fastest
becomes the artifact. What was measured is written into its manifest and read from there: the same
export again takes the choice as it stands. It is made anew where the checkpoint, the settings, a
version or the machine is another (`_Maker.key`): what was fastest then need not be so now.

Forms are built beside the artifact under names that nobody else has (`form_folders`), so that what
is removed at the end is nobody else's; the artifact's own name, and all else that can be refused,
is checked before, as by an export without a choice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    SegDeployError,
    UnsupportedTargetError,
)
from segdeploy.core.files import replacing_directory
from segdeploy.core.folder import (
    Checkpoint,
    add_options,
    load_artifact,
    load_checkpoint,
    load_folder,
)
from segdeploy.core.lock import run_lock
from segdeploy.core.results import BenchResult
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.export import ExportOutcome, ForeignOptions, Int8Options, Size
from segdeploy.export.foreign import plan_import
from segdeploy.export.plan import PLAIN, Step, default_name, plan_export
from segdeploy.frameworks.torch import require_onnx
from segdeploy.graph.policy import DEFAULT, load_policy
from segdeploy.report.cost import latency_interval
from segdeploy.workflows.export_verified import VerifiedExport, export_and_verify
from segdeploy.workflows.form_folders import FORMS, own_names, remove_left_forms
from segdeploy.workflows.run_keys import machine_key, stage_key

AUTO = "auto"
CHOICE = "output_auto"
THREADS = 2
Report = Callable[[str], object]


@dataclass(frozen=True)
class Measuring:
    """How the forms are timed."""

    threads: int = THREADS
    seconds: float = 3.0
    warmup_s: float = 1.0


def export_fastest(
    checkpoint: Path,
    targets: Sequence[str],
    out: Path,
    *,
    input_kind: InputKind = InputKind.TENSOR,
    size: Size = None,
    max_batch: int = 1,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    measuring: Measuring | None = None,
    report: Report | None = None,
    **options: Any,
) -> list[VerifiedExport]:
    """Export each target with the output that is fastest here, and verify it.

    Args:
        checkpoint: As for `export_and_verify`, which takes all other options as well.
        targets: One after the other; each has its own choice.
        out: The run folder.
        input_kind: The other end of the contract.
        size: Of images; dynamic artifacts are measured at the model's design size.
        max_batch: Largest batch.
        name: Folder name, for one target.
        force: Measure again what was chosen before.
        dry_run: Show the forms that would be built, or the one that was chosen.
        measuring: Threads and times.
        report: Called with a line for people.
        options: Of `export_and_verify`.

    Raises:
        SegDeployError: As `export_and_verify`; and if no form can be built or measured.
    """
    source = _open_source(checkpoint, out, options.get("foreign"), size)
    shared = {**options, "size": size, "max_batch": max_batch, "report": report}
    makers = [
        _Maker(source, checkpoint, str(target), out, input_kind, shared)
        for target in dict.fromkeys(ExportTarget.parse(text) for text in targets)
    ]
    if name is not None or not makers:  # Two targets of one name, or a name that is none.
        io = IoContract(input_kind)
        plan_export(source, targets, out, io=io, size=size, name=name, max_batch=max_batch)
    if not dry_run:
        remove_left_forms(out)
    found: list[VerifiedExport] = []
    for maker in makers:
        usual = default_name(
            ExportTarget.parse(maker.target), IoContract(input_kind), size, max_batch
        )
        folder = out / (name or f"{usual}+{AUTO}")
        times = measuring or Measuring()
        try:
            found += _export_one(maker, folder, times, force=force, dry_run=dry_run)
        except SegDeployError as error:
            if len(makers) == 1:
                raise
            found.append(_failed(maker.target, folder, source, error))
    return found


def _failed(target: str, folder: Path, source: Checkpoint, error: SegDeployError) -> VerifiedExport:
    """Return the outcome of a target that failed, of several: the others go on."""
    outcome = ExportOutcome(
        target=target, path=folder, parent=source.path.name, artifact=None, reused=False,
        seconds=0.0, requested=True, error=error,
    )  # fmt: skip
    return VerifiedExport(outcome, None)


def _export_one(
    maker: _Maker, folder: Path, measuring: Measuring, *, force: bool, dry_run: bool
) -> list[VerifiedExport]:
    """Export one target as `folder`, with the form that was chosen before or is chosen now."""
    left_out = maker.check(folder.name)
    key = maker.key(measuring)
    choice = None if force else _known_choice(folder, key)
    if choice is None:
        maker.check_inputs(left_out)
    if choice is None and dry_run:
        return [each for form in FORMS for each in maker.plan(form)]
    if choice is None:
        choice = {**_choose(maker, folder, left_out, measuring), "key": key}
    made = maker.make(OutputKind(choice["chosen"]), name=folder.name, dry_run=dry_run)
    if not dry_run:
        artifact = load_artifact(folder)
        if artifact.manifest.options.get(CHOICE) != choice:
            add_options(artifact, **{CHOICE: choice})
    return made


def _open_source(path: Path, out: Path, foreign: ForeignOptions | None, size: Size) -> Checkpoint:
    """Return what is exported, for planning; of a foreign file, the checkpoint that it becomes."""
    if not path.is_file():
        return load_checkpoint(path)
    require_onnx()
    static = size if isinstance(size, tuple) else None
    return plan_import(path, out, foreign or ForeignOptions(), static).checkpoint


@dataclass(frozen=True)
class _Maker:
    """Exports one target with one output after another."""

    source: Checkpoint
    checkpoint: Path
    target: str
    out: Path
    input_kind: InputKind
    options: dict[str, Any]

    def make(self, form: OutputKind, **more: Any) -> list[VerifiedExport]:
        """Return the outcomes of this target, then of parents that it needed."""
        io = IoContract(self.input_kind, form)
        return export_and_verify(
            self.checkpoint, [self.target], self.out, io=io, **{**self.options, **more}
        )

    def plan(self, form: OutputKind, **more: Any) -> list[VerifiedExport]:
        """Return what would be built; nothing where the form is impossible."""
        try:
            return self.make(form, dry_run=True, **more)
        except SegDeployError:
            return []

    def steps(self, form: OutputKind, name: str | None = None) -> list[Step]:
        """Return the plan of a form: all that can be refused before any work is."""
        size, max_batch = self.options["size"], self.options["max_batch"]
        io = IoContract(self.input_kind, form)
        return plan_export(
            self.source, [self.target], self.out, io=io, size=size, name=name, max_batch=max_batch
        )

    def check(self, name: str) -> dict[str, str]:
        """Check that any form may take this name; return why others are impossible.

        Raises:
            SegDeployError: As an export of that name, and if no form is possible.
        """
        errors = {}
        for form in FORMS:
            try:
                self.steps(form, name)
            except UnsupportedTargetError as error:
                errors[form] = error
        if len(errors) == len(FORMS):
            raise errors[FORMS[0]]
        return {str(form): error.message for form, error in errors.items()}

    def check_inputs(self, left_out: Collection[str]) -> None:
        """Refuse what an export with a verdict refuses before it builds, say of the images.

        Raises:
            SegDeployError: As that export; what is wrong with one form alone is told later.
        """
        form = next(form for form in FORMS if form not in left_out)
        with suppress(UnsupportedTargetError, BuildError):
            self.make(form, force=True, dry_run=True, report=None)

    def key(self, measuring: Measuring) -> str:
        """Return the digest of what the choice depends on."""
        target = ExportTarget.parse(self.target)
        int8: tuple[Any, ...] = ()
        if target.precision is Precision.INT8:
            policy = load_policy(self.options.get("int8_policy", DEFAULT), target.backend)
            options = self.options.get("int8_options") or Int8Options()
            images = [self.options.get(k) for k in ("calibration", "num_calibration_images")]
            int8 = (policy.digest, options.to_dict(), images)
        form = (str(target), self.input_kind, self.options["size"], self.options["max_batch"])
        return stage_key(
            "output", self.source.manifest.digest, form, int8, measuring.threads, machine_key()
        )

    def is_parent(self, form: OutputKind) -> bool:
        """Return whether a form is what the others are made from."""
        io = IoContract(self.input_kind, form)
        return (self.target, io) == (str(PLAIN), IoContract())

    def is_there(self, form: OutputKind) -> bool:
        """Return whether a form stands under its usual name, by the same work."""
        usual = next(step.folder for step in self.steps(form) if step.requested)
        planned = self.plan(form, report=None) if usual.exists() else []
        return bool(planned) and planned[0].outcome.reused


def _known_choice(folder: Path, key: str) -> dict[str, Any] | None:
    """Return what was chosen before under this key, or None.

    A damaged payload is built again as it was.
    """
    try:
        choice = load_folder(folder, check_files=False).manifest.options.get(CHOICE)
    except ArtifactError:
        return None
    if not isinstance(choice, dict) or choice.get("key") != key:
        return None
    return choice if choice.get("chosen") in set(FORMS) else None


def _choose(
    maker: _Maker, folder: Path, left_out: dict[str, str], measuring: Measuring
) -> dict[str, Any]:
    """Build all forms, time them, keep the fastest as `folder`; return what the manifest says."""
    with own_names(folder) as own:
        built = _build_forms(maker, own, left_out)
        results = _measure(built, measuring, left_out)
        choice = describe_choice(results, left_out, measuring)
        choice["why"] = describe(choice)
        _take(maker, OutputKind(choice["chosen"]), built, folder)
    if (report := maker.options["report"]) is not None:
        report(f"{folder.name}: {choice['why']}")
    return choice


def _build_forms(
    maker: _Maker, own: dict[OutputKind, str], left_out: dict[str, str]
) -> dict[OutputKind, Path]:
    """Return the folder of each form, and say in `left_out` why others are not there.

    One that was there before is taken as it stands. The others get names of our `own`, except for
    the parent: it has its usual name in every export, and stays.
    """
    built: dict[OutputKind, Path] = {}
    errors = []
    for form in (form for form in FORMS if form not in left_out):
        try:
            is_usual = maker.is_parent(form) or maker.is_there(form)
            made = maker.make(form, verify=False, name=None if is_usual else own[form])
            built[form] = made[0].outcome.path
        except (UnsupportedTargetError, BuildError) as error:
            left_out[form] = error.message
            errors.append(error)
    if not built:
        raise errors[0]
    return built


def _measure(
    built: dict[OutputKind, Path], measuring: Measuring, left_out: dict[str, str]
) -> dict[OutputKind, BenchResult]:
    plan = BenchPlan(
        threads=measuring.threads,
        seconds=measuring.seconds,
        warmup_s=measuring.warmup_s,
        end_to_end=True,
    )
    outcome = measure_interleaved(list(built.values()), plan, save=False)
    paths = {str(path): form for form, path in built.items()}
    results = {paths[result.path]: result for result in outcome.results}
    missing = [error for error in outcome.failures if isinstance(error, BackendUnavailableError)]
    if not results:
        error = (missing or outcome.failures)[0]
        raise type(error)(
            f"--output auto needs to run the target here: {error.message}",
            hint="Choose an --output by hand.",
        )
    for form in built:
        if form not in results:
            left_out[form] = "it could not be run"
    return results


def describe_choice(
    results: dict[OutputKind, BenchResult], left_out: dict[str, str], measuring: Measuring
) -> dict[str, Any]:
    """Return what the manifest says of the choice; times in ms, from image to label map.

    `interval_ms` is that of the median at 95 %, of calls and of blocks whichever is wider; null
    where there were too few.
    """
    times = {form: float(result.latency_ms["p50"] or 0.0) for form, result in results.items()}
    order = sorted(times, key=lambda form: times[form])
    first = results[order[0]]
    return {
        "chosen": str(order[0]),
        "p50_ms": {str(form): round(times[form], 4) for form in order},
        "interval_ms": {str(form): _interval(results[form]) for form in order},
        "num_samples": {str(form): len(results[form].samples_ms) for form in order},
        "ratio_to_next": round(times[order[1]] / times[order[0]], 4) if len(order) > 1 else None,
        "left_out": left_out,
        "threads": measuring.threads,
        "input_shape": list(first.input_shape),
        "cpu": first.environment.get("cpu"),
    }


def _interval(result: BenchResult) -> list[float] | None:
    sizes = result.environment.get("block_sizes") or ()
    found = latency_interval(result.samples_ms, [size for size in sizes if size])
    return None if found is None else [round(end, 4) for end in found]


def describe(choice: dict[str, Any]) -> str:
    """Return a sentence for people; it names the forms that may be as fast (intervals overlap)."""
    times = ", ".join(f"{form} {value:.1f} ms" for form, value in choice["p50_ms"].items())
    intervals = choice.get("interval_ms") or {}  # Older manifests have none.
    own = intervals.get(choice["chosen"])
    near = [
        form
        for form, other in intervals.items()
        if form != choice["chosen"] and own and other and other[0] <= own[1]
    ]
    noise = f", within noise as fast as {' and '.join(near)}" if near else ""
    return f"{choice['chosen']} is the fastest way to a label map here{noise} ({times})"


def _take(maker: _Maker, form: OutputKind, built: dict[OutputKind, Path], folder: Path) -> None:
    """Put a form under the artifact's name, in one step; what stands there is checked again.

    Raises:
        SegDeployError: If something that is no artifact has come there meanwhile, or it cannot be
            written; what was there is kept.
    """
    if built[form] == folder:
        return
    with run_lock(folder.parent):
        maker.steps(form, folder.name)
        with replacing_directory(folder) as temporary:
            shutil.copytree(built[form], temporary, dirs_exist_ok=True)


__all__ = ["AUTO", "CHOICE", "FORMS", "Measuring", "describe", "describe_choice", "export_fastest"]
