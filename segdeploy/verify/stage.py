"""The stage: find the reference, run both, judge, write `parity.json` and the manifest's verdict.

Beside the reference, the parent is compared too (artifact against parent, parent against
reference), so that a bad number names the guilty hop. These hops inform; only the comparison with
the reference is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from segdeploy.core.contract import OutputKind
from segdeploy.core.errors import ConfigError, DataError, SegDeployError
from segdeploy.core.files import write_json
from segdeploy.core.folder import (
    Artifact,
    ModelFolder,
    check_companion,
    find_linked,
    load_artifact,
    load_folder,
    mark_passed,
)
from segdeploy.core.lock import run_lock
from segdeploy.core.results import Failure, ParityReport, read_result
from segdeploy.core.session import Session
from segdeploy.core.target import Precision
from segdeploy.metrics import FlipCount
from segdeploy.metrics.flips import decision_names
from segdeploy.verify.cases import DEFAULT_IMAGES, Case, plan_cases
from segdeploy.verify.compare import CaseCount, compare_cases, has_sound_logits
from segdeploy.verify.cure import find_cure
from segdeploy.verify.judge import find_tolerance, judge
from segdeploy.verify.lineage import differing_facts
from segdeploy.verify.reference import (
    Runner,
    check_comparable,
    create_count,
    find_reference,
    measure_median_margin,
    measure_noise_floor,
    precision_of,
)

PARITY, CALIBRATION = "parity.json", "calibration.json"
_COARSENESS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)


def verify(
    artifact: Path,
    *,
    against: Path | None = None,
    data: str | None = None,
    num_images: int = DEFAULT_IMAGES,
    device: str = "cpu",
    progress: Callable[[], object] | None = None,
) -> ParityReport:
    """Compare an artifact with its reference and write the verdict into its folder.

    The verdict is written only where the reference is the one that the artifact was made from.

    Args:
        artifact: Its folder.
        against: Another reference: a checkpoint, or an artifact that gives logits.
        data: `name:root` whose validation images are used; int8 needs it, unless the artifact's
            `calibration.json` names the data set it was calibrated on.
        num_images: How many of them, spread over the split.
        device: Of the artifact; its reference and its parent run on the CPU.
        progress: Called after each batch.

    Raises:
        ArtifactError: If a folder is missing or damaged, or the reference is not found.
        ConfigError: If int8 has no data, or the two folders are not the same problem.
        RunLockedError: If another process works in the run folder.
    """
    folder = load_artifact(artifact.resolve())
    with run_lock(folder.path.parent):
        reference = find_reference(folder) if against is None else load_folder(against.resolve())
        report = compare_folders(
            folder, reference, data=data, num_images=num_images, device=device, progress=progress
        )
        link = folder.manifest.reference
        if link is None or link.digest == reference.manifest.digest:
            write_json(folder.path / PARITY, report.to_dict())
            mark_passed(folder, report.passed)
    return report


def compare_folders(
    folder: Artifact,
    reference: ModelFolder,
    *,
    data: str | None = None,
    num_images: int = DEFAULT_IMAGES,
    device: str = "cpu",
    progress: Callable[[], object] | None = None,
    session: Session | None = None,
) -> ParityReport:
    """Return the report without locking or writing anything; else as `verify`.

    `session` is the artifact's, if it is open already; it is closed. The parent is left out then:
    whoever guards the artifact's runtime (a gate) wants no other of its lineage to run unguarded.
    """
    check_comparable(folder, reference)
    cases = _plan(folder, data, num_images)
    # The device is the candidate's: what it is judged by runs on the CPU, where fp32 is exact and
    # no second GPU runtime is needed.
    candidate, right = Runner(folder, device, session), Runner(reference, "cpu")
    try:
        noise_floor = measure_noise_floor(right, cases)
        margin = measure_median_margin(right, cases[0].batches())
        precision = max(precision_of(folder), precision_of(reference), key=_COARSENESS.index)
        tolerance = find_tolerance(precision, noise_floor, margin)
        counts = compare_cases(candidate, right, cases, tolerance, progress)
        parent, hops = (
            _measure_hops(candidate, right, cases[0], tolerance) if session is None else (None, {})
        )
    finally:
        candidate.session.close()
        right.session.close()
    manifest = folder.manifest
    names = decision_names(manifest.task, manifest.classes)
    total = _total(counts, reference, tolerance)
    failures = judge(total, counts, precision, noise_floor, names, trained=_is_trained(reference))
    link = manifest.reference
    if link is not None and link.digest == reference.manifest.digest:
        failures += [Failure(what, 0, 1) for what in differing_facts(manifest, reference.manifest)]
    sound = has_sound_logits(total)
    return ParityReport(
        target=folder.name,
        reference=_identify(reference),
        parent=parent,
        num_pixels=total.num_pixels,
        flip_rate=total.flip_rate,
        hard_flip_rate=total.hard_flip_rate,
        excusable_flip_rate=total.flip_rate - total.hard_flip_rate,
        certified_rate=total.certified_rate,
        class_flip_rate=dict(zip(names, total.class_flip_rate, strict=True)),
        max_abs=total.max_abs if sound else None,
        max_deviation=total.max_deviation if sound else None,
        snr_db=total.snr_db,
        cosine=total.cosine,
        noise_floor=noise_floor,
        margin_tolerance=tolerance,
        failures=failures,
        cases=[c.to_dict() for c in counts],
        hops=hops,
        hint=find_cure(manifest, failures),
    )


def _plan(folder: Artifact, data: str | None, num_images: int) -> list[Case]:
    found = find_data(folder, data)
    try:
        return plan_cases(folder, found, num_images)
    except DataError as error:
        if data is not None or found is None:
            raise
        raise ConfigError(
            f"{folder.path} was calibrated on {found}, which is not here: {error.message}",
            hint="Add --data NAME:ROOT; its validation images are used.",
        ) from error


def find_data(folder: Artifact, data: str | None) -> str | None:
    """Return the data set to verify on; None means seeded scenes.

    Raises:
        ConfigError: If an int8 artifact has none: its ranges only hold on such images.
    """
    if data is not None or precision_of(folder) is not Precision.INT8:
        return data
    check_companion(folder, CALIBRATION)
    calibration = read_result(folder.path / CALIBRATION) or {}
    found = calibration.get("data")
    if isinstance(found, str) and found:
        return found
    raise ConfigError(
        f"{folder.path} is int8, which is verified on data only, and nothing says on which.",
        hint="Add --data NAME:ROOT; its validation images are used.",
    )


def _is_trained(reference: ModelFolder) -> bool:
    return reference.manifest.trained


def _identify(folder: ModelFolder) -> str:
    """Return name and identity of a folder, e.g. `pytorch-fp32@0123456789ab`."""
    return f"{folder.name}@{folder.manifest.digest[:12]}"


def _total(counts: Sequence[CaseCount], reference: ModelFolder, tolerance: float) -> FlipCount:
    total = create_count(reference.manifest, tolerance)
    for counted in counts:
        total.add(counted.count)
    return total


def _measure_hops(
    candidate: Runner, reference: Runner, case: Case, tolerance: float
) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Return the parent's identity, and the two hops over it, on the first images."""
    link = candidate.manifest.parent
    parent = find_linked(candidate.folder, link)
    if parent is None:
        return (f"sha256 {link.digest[:12]}, not found" if link else None), {}
    if parent.manifest.digest == reference.manifest.digest:
        return _identify(parent), {}
    few = Case(case.name, case.source, lambda: islice(case.batches(), 4))
    try:
        between = Runner(parent, "cpu")
    except SegDeployError as error:
        return _identify(parent), {"parent": {"error": error.message}}
    try:
        hops = {"parent_to_reference": _summarise(between, reference, few, tolerance)}
        if between.manifest.io.output is OutputKind.LOGITS:
            hops["parent"] = _summarise(candidate, between, few, tolerance)
    finally:
        between.session.close()
    return _identify(parent), hops


def _summarise(
    candidate: Runner, reference: Runner, case: Case, tolerance: float
) -> dict[str, Any]:
    """Return one hop: how far `candidate` is from `reference`."""
    try:
        count = compare_cases(candidate, reference, [case], tolerance)[0].count
    except SegDeployError as error:
        return {"error": error.message}
    sound = has_sound_logits(count)
    return {
        "target": candidate.folder.name,
        "reference": _identify(reference.folder),
        "flip_rate": count.flip_rate,
        "hard_flip_rate": count.hard_flip_rate,
        "max_abs": count.max_abs if sound else None,
        "max_deviation": count.max_deviation if sound else None,
        "snr_db": count.snr_db,
    }
