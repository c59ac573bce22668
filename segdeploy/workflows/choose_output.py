"""`export --output auto`: which output contract is the fastest way to a label map, by measuring.

For each target the forms that it and the model can express (logits, labels, low-resolution logits)
are built, measured in one interleaved run from a decoded image to the label map, and the fastest
becomes the artifact. What was measured is written into its manifest and read from there: the same
export again, or that of other weights under the same name, takes the choice as it stands.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.backends import BACKENDS
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, SegDeployError
from segdeploy.core.folder import add_options, load_artifact, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.results import BenchResult
from segdeploy.core.target import ExportTarget
from segdeploy.export import Size
from segdeploy.export.plan import default_name
from segdeploy.workflows.export_verified import VerifiedExport, export_and_verify

AUTO = "auto"
FORMS = (OutputKind.LOGITS, OutputKind.LABELS, OutputKind.LOW_LOGITS)
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
    found: list[VerifiedExport] = []
    for text in dict.fromkeys(targets):
        target = ExportTarget.parse(text)
        usual = default_name(target, IoContract(input_kind), size, max_batch)
        folder = out / (name or f"{usual}+{AUTO}")
        shared = {**options, "size": size, "max_batch": max_batch, "report": report}
        maker = _Maker(checkpoint, text, out, input_kind, shared)
        choice = None if force else _known_choice(folder)
        if choice is None and dry_run:
            found += [each for form in FORMS for each in maker.plan(form)]
            continue
        if choice is None:
            choice = _choose(maker, folder, measuring or Measuring(), report)
        form = OutputKind(choice["chosen"])
        made = maker.make(form, name=folder.name, dry_run=dry_run)
        if not dry_run:
            artifact = load_artifact(folder)
            if artifact.manifest.options.get(CHOICE) != choice:
                add_options(artifact, **{CHOICE: choice})
        found += made
    return found


@dataclass(frozen=True)
class _Maker:
    """Exports one target with one output after another."""

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

    def plan(self, form: OutputKind) -> list[VerifiedExport]:
        """Return what would be built; nothing where the form is impossible."""
        try:
            return self.make(form, dry_run=True)
        except SegDeployError:
            return []


def _known_choice(folder: Path) -> dict[str, Any] | None:
    """Return what was chosen before, or None; a damaged payload is built again as it was."""
    try:
        choice = load_folder(folder, check_files=False).manifest.options.get(CHOICE)
    except ArtifactError:
        return None
    return choice if isinstance(choice, dict) and choice.get("chosen") in set(FORMS) else None


def _choose(
    maker: _Maker, folder: Path, measuring: Measuring, report: Report | None
) -> dict[str, Any]:
    """Build all forms, time them, keep the fastest as `folder`; return what the manifest says."""
    before = {path.name for path in maker.out.iterdir()} if maker.out.is_dir() else set()
    built, left_out = _build_forms(maker)
    new = [path for path in built.values() if path.name not in before]
    try:
        results = _measure(built, measuring, left_out)
        choice = describe_choice(results, left_out, measuring)
        choice["why"] = describe(choice)
        _take(built[OutputKind(choice["chosen"])], folder, new)
    finally:
        for path in new:
            shutil.rmtree(path, ignore_errors=True)
    if report is not None:
        report(f"{folder.name}: {choice['why']}")
    return choice


def _build_forms(maker: _Maker) -> tuple[dict[OutputKind, Path], dict[str, str]]:
    """Return the folder of each form, and why the others are not there."""
    built: dict[OutputKind, Path] = {}
    left_out: dict[str, str] = {}
    errors = []
    offered = BACKENDS.get(ExportTarget.parse(maker.target).backend).limits.outputs
    for form in FORMS:
        if form not in offered:
            left_out[form] = "the format cannot express it"
            continue
        try:
            built[form] = maker.make(form, verify=False)[0].outcome.path
        except SegDeployError as error:
            left_out[form] = error.message
            errors.append(error)
    if not built:
        raise errors[0]
    return built, left_out


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
    """Return what the manifest says of the choice; times in ms, from image to label map."""
    times = {form: float(result.latency_ms["p50"] or 0.0) for form, result in results.items()}
    order = sorted(times, key=lambda form: times[form])
    first = results[order[0]]
    return {
        "chosen": str(order[0]),
        "p50_ms": {str(form): round(times[form], 4) for form in order},
        "ratio_to_next": round(times[order[1]] / times[order[0]], 4) if len(order) > 1 else None,
        "left_out": left_out,
        "threads": measuring.threads,
        "input_shape": list(first.input_shape),
        "cpu": first.environment.get("cpu"),
    }


def describe(choice: dict[str, Any]) -> str:
    """Return a sentence for people."""
    times = ", ".join(f"{form} {value:.1f} ms" for form, value in choice["p50_ms"].items())
    return f"{choice['chosen']} is the fastest way to a label map here ({times})"


def _take(winner: Path, folder: Path, new: list[Path]) -> None:
    """Put a form under the artifact's name; one that was there before stays under its own too."""
    with run_lock(folder.parent):
        shutil.rmtree(folder, ignore_errors=True)
        if winner in new:
            winner.rename(folder)
        else:
            shutil.copytree(winner, folder)


__all__ = ["AUTO", "CHOICE", "FORMS", "Measuring", "describe", "describe_choice", "export_fastest"]
