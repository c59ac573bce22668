"""Before a gate measures: does the candidate answer, and answer the right thing?

A fast wrong answer must never pass. Candidate and baseline run the same few images, each in a child
process. Where both come from the same checkpoint the baseline is the reference, and verify's rules
decide; where the weights differ (a new training) each has its own truth, and the candidate is
verified against its own checkpoint. One that was verified and failed is broken unseen.

Int8 is judged on the images it was calibrated for, if `data` or its `calibration.json` leads to
them. On drawn scenes a sound int8 artifact was seen to flip up to 31 % of the pixels (ExecuTorch,
LRASPP trained on CamVid): there only gross faults show, and one that verify has not passed before
is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import numpy as np

from segdeploy.backends.isolation import find_python, open_isolated
from segdeploy.bench.pairs import CandidateBrokenError
from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    ConfigError,
    DataError,
    SegDeployError,
)
from segdeploy.core.folder import Artifact, Checkpoint, ModelFolder, find_linked
from segdeploy.core.results import Failure
from segdeploy.core.session import Array
from segdeploy.core.target import Precision
from segdeploy.core.task import predict_labels
from segdeploy.metrics import FlipCount
from segdeploy.metrics.flips import decision_names
from segdeploy.verify import compare_folders
from segdeploy.verify.cases import Case, plan_cases
from segdeploy.verify.compare import CaseCount, compare_cases, run_candidate
from segdeploy.verify.judge import find_tolerance, judge
from segdeploy.verify.lineage import differing_facts
from segdeploy.verify.reference import (
    NOISE_ROUNDINGS,
    Runner,
    create_count,
    measure_median_margin,
    precision_of,
)
from segdeploy.verify.stage import find_data
from segdeploy.verify.tolerances import LIMITS, MIN_CLASS_PIXELS

NUM_IMAGES = 3
HANG_S = 120.0
"""Longest time of one answer: of opening, and of one image."""
SCENE_FLIPS, SCENE_SNR_DB = 0.5, 3.0
UNTRAINED_FLIPS = 0.1  # Margins of weights that were never trained are thin, even to fp16.
LEAST_KAPPA = 0.2
_COARSENESS = (Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8)


def check_candidate(
    baseline: ModelFolder | None,
    candidate: ModelFolder,
    *,
    device: str = "cpu",
    data: str | None = None,
) -> dict[str, Any]:
    """Return what was compared, for the result.

    Args:
        baseline: None where the baseline is a stored result.
        candidate: Is opened in any case.
        device: Of both.
        data: `name:root` whose validation images are used.

    Raises:
        CandidateBrokenError: If the candidate fails, or failed when it was verified.
        ConfigError: If nothing can tell whether it is right.
        SegDeployError: If the baseline fails.
    """
    if candidate.manifest.passed is False:
        raise CandidateBrokenError(
            f"{candidate.path} failed its verification.",
            hint="See its parity.json, or run segdeploy verify.",
        )
    if baseline is not None and _is_same_network(baseline, candidate):
        _check_words(candidate, baseline)
        return _compare_with_baseline(baseline, candidate, device, data)
    _check_words(candidate)
    _try_alone(candidate, device)
    return _check_by_itself(candidate, device, data)


def _is_same_network(baseline: ModelFolder, candidate: ModelFolder) -> bool:
    return _origin(baseline) == _origin(candidate)


def _origin(folder: ModelFolder) -> str:
    """Return the digest of the weights that a folder comes from."""
    link = folder.manifest.reference
    return folder.manifest.digest if link is None else link.digest


def _check_words(candidate: ModelFolder, baseline: ModelFolder | None = None) -> None:
    """Check that both say what their checkpoint says: right logits of swapped classes are wrong.

    Where the checkpoint is not here, the baseline's word has to do.

    Raises:
        ArtifactError: If the baseline differs from the checkpoint.
        CandidateBrokenError: If the candidate differs.
    """
    origin = _find_origin(candidate) or (_find_origin(baseline) if baseline else None)
    if baseline and origin and (wrong := differing_facts(baseline.manifest, origin.manifest)):
        raise ArtifactError(
            f"The baseline {baseline.path} has not the {', '.join(wrong)} of its checkpoint "
            f"{origin.path}.",
            hint="Export it anew, or give another baseline.",
        )
    truth = origin or baseline
    if truth is None:
        return
    wrong = differing_facts(candidate.manifest, truth.manifest)
    if not origin:  # Another artifact may be of another size, and prepare its images for that.
        wrong = [word for word in wrong if word != "preprocess"]
    if wrong:
        raise CandidateBrokenError(
            f"{candidate.path} has not the {', '.join(wrong)} of {truth.path}.",
            hint="Export it anew.",
        )


def _find_origin(folder: ModelFolder) -> ModelFolder | None:
    """Return the checkpoint that a folder comes from, if it is here."""
    if isinstance(folder, Checkpoint):
        return folder
    return find_linked(folder, folder.manifest.reference)


def _compare_with_baseline(
    baseline: ModelFolder, candidate: ModelFolder, device: str, data: str | None
) -> dict[str, Any]:
    case, is_scene = _plan_case(baseline, candidate, data)
    precisions = (precision_of(baseline), precision_of(candidate))
    is_rough = is_scene and Precision.INT8 in precisions  # An int8 baseline is a rough judge too.
    if is_rough and candidate.manifest.passed is not True:
        raise ConfigError(
            f"{candidate.path} never passed verify, and drawn scenes hide most faults of int8.",
            hint="Give --data NAME[:ROOT] with images of its kind, or run segdeploy verify on it.",
        )
    with ExitStack() as stack:
        right = _open(baseline, device, stack)
        found = _open_candidate(candidate, device, stack)
        if baseline.manifest.io.output is OutputKind.LOGITS:
            failures, facts = _compare_logits(right, found, case, is_scene=is_scene)
        else:
            failures, facts = _compare_labels(right, found, case, is_scene=is_scene)
    report = {"compared_with": "baseline", "images": case.source, **facts}
    if is_rough:
        report["note"] = "int8 on drawn scenes: gross faults only; verify has judged the rest"
    return _end(candidate, failures, report)


def _end(
    candidate: ModelFolder, failures: Sequence[Failure], report: dict[str, Any]
) -> dict[str, Any]:
    if not failures:
        return {**report, "passed": True}
    rules = "; ".join(f"{f.rule} {f.value:.4g} (limit {f.limit:.4g})" for f in failures[:4])
    said = "".join(f" {problem}" for problem in report.get("problems", ())[:1])
    error = CandidateBrokenError(
        f"{candidate.path} decides differently from {report['compared_with']}: {rules}.{said}",
        hint="Run segdeploy verify on it; a slower right answer is worth more than a fast wrong "
        "one.",
    )
    error.__dict__["parity"] = {
        **report, "passed": False, "failures": msgspec.to_builtins(list(failures)),
    }  # fmt: skip
    raise error


def _plan_case(
    baseline: ModelFolder, candidate: ModelFolder, data: str | None
) -> tuple[Case, bool]:
    """Return a few images at a size that both take, and whether they are drawn scenes."""
    both = sorted((candidate, baseline), key=_is_dynamic)
    for wanted in (data, _own_data(candidate), _own_data(baseline)):
        if wanted is None:
            continue
        try:
            return plan_cases(both[0], wanted, NUM_IMAGES)[0], False
        except DataError:
            if wanted == data:
                raise
    return plan_cases(both[0], None, NUM_IMAGES)[0], True


def _is_dynamic(folder: ModelFolder) -> bool:
    shape = folder.manifest.inputs[0].shape
    sides = shape[1:3] if folder.manifest.io.input is InputKind.IMAGE else shape[2:4]
    return None in sides


def _own_data(folder: ModelFolder) -> str | None:
    """Return the data set an int8 artifact was calibrated on, if it says."""
    if not isinstance(folder, Artifact):
        return None
    try:
        return find_data(folder, None)
    except SegDeployError:
        return None


def _open(folder: ModelFolder, device: str, stack: ExitStack) -> Runner:
    session = open_isolated(folder, device, find_python(folder), limit_s=HANG_S)
    stack.callback(session.close)
    return Runner(folder, device, session)


def _open_candidate(folder: ModelFolder, device: str, stack: ExitStack) -> Runner:
    try:
        return _open(folder, device, stack)
    except (BackendUnavailableError, ConfigError):
        raise
    except SegDeployError as error:
        raise CandidateBrokenError(error.message, hint=error.hint) from error


def _compare_logits(
    right: Runner, found: Runner, case: Case, *, is_scene: bool
) -> tuple[list[Failure], dict[str, Any]]:
    """Judge by verify's rules; the noise floor is that of a reference without weights."""
    precision = _coarser(right, found)
    largest = _largest_logit(right, case)
    floor = max(NOISE_ROUNDINGS * largest * 2.0**-24, float(np.finfo(np.float32).tiny))
    tolerance = find_tolerance(precision, floor, measure_median_margin(right, case.batches()))
    counts = compare_cases(found, right, [case], tolerance)
    total = counts[0].count
    if total.num_broken_reference:
        raise ArtifactError(
            f"The baseline {right.folder.path} answers NaN or infinity: it judges nobody.",
            hint="Give another baseline, one that segdeploy verify passes.",
        )
    facts: dict[str, Any] = {
        "flip_rate": total.flip_rate, "hard_flip_rate": total.hard_flip_rate,
        "problems": counts[0].to_dict()["problems"],
    }  # fmt: skip
    if precision is Precision.INT8 and is_scene:
        return _judge_grossly(total, counts), facts
    names = decision_names(found.manifest.task, found.manifest.classes)
    trained = found.manifest.trained and right.manifest.trained
    return judge(total, counts, precision, floor, names, trained=trained), facts


def _coarser(*runners: Runner) -> Precision:
    return max((precision_of(runner.folder) for runner in runners), key=_COARSENESS.index)


def _largest_logit(right: Runner, case: Case) -> float:
    logits = right.run(next(case.batches()))["logits"]
    return float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))


def _judge_grossly(total: FlipCount, counts: Sequence[CaseCount]) -> list[Failure]:
    """Judge an int8 candidate on scenes that it was not calibrated for."""
    failures = [
        Failure("runs", 0, len(counts[0].refused)),
        Failure("output_contract", 0, len(counts[0].broken_contract)),
        Failure("finite", 0, total.num_broken / max(1, total.num_pixels)),
        Failure("flip_rate", SCENE_FLIPS, total.flip_rate),
    ]
    broken = [failure for failure in failures if failure.value > failure.limit]
    if total.snr_db is not None and total.snr_db < SCENE_SNR_DB:
        broken.append(Failure("snr_db", SCENE_SNR_DB, total.snr_db))
    return broken


def _compare_labels(
    right: Runner, found: Runner, case: Case, *, is_scene: bool
) -> tuple[list[Failure], dict[str, Any]]:
    """Compare with a baseline that gives decisions only: there is no margin to excuse a flip by."""
    precision = _coarser(right, found)
    names = decision_names(found.manifest.task, found.manifest.classes)
    counted = CaseCount(case, create_count(found.manifest))
    size = len(names) + 1  # The last is for labels that no class has.
    matrix = np.zeros((size, size), np.int64)  # Baseline's label, candidate's label.
    for batch in case.batches():
        expected = right.complete(right.run(batch), batch)
        given = run_candidate(found, batch, counted)
        if given is not None:
            both = (_decide(right, expected), _decide(found, given))
            first, second = (np.minimum(labels.ravel(), len(names)) for labels in both)
            np.add.at(matrix, (first, second), 1)
    if problems := [*counted.refused, *counted.broken_contract]:
        return [Failure("output_contract", 0, len(problems))], {"problems": problems}
    facts = {"flip_rate": 1 - float(np.trace(matrix)) / int(matrix.sum())}
    trained = found.manifest.trained and right.manifest.trained
    if not trained or (is_scene and precision is Precision.INT8):
        return _judge_agreement(
            matrix, facts["flip_rate"], is_int8=precision is Precision.INT8
        ), facts
    limits = LIMITS[precision]
    failures = [Failure("flip_rate", limits.flip_rate, facts["flip_rate"])]
    for index, name in enumerate(names):
        if (pixels := int(matrix[index].sum())) >= MIN_CLASS_PIXELS:
            rate = 1 - int(matrix[index, index]) / pixels
            failures.append(Failure(f"class_flip_rate:{name}", limits.class_flip_rate, rate))
    return [failure for failure in failures if failure.value > failure.limit], facts


def _judge_agreement(matrix: Array, flip_rate: float, *, is_int8: bool) -> list[Failure]:
    """Judge where honest rounding may flip many pixels: by agreement beyond chance (Cohen 1960).

    One class everywhere has a kappa of 0, however much of the picture that class covers.
    """
    limit = SCENE_FLIPS if is_int8 else UNTRAINED_FLIPS
    failures = [Failure("flip_rate", limit, flip_rate)] if flip_rate > limit else []
    total = matrix.sum()
    chance = float((matrix.sum(0) / total) @ (matrix.sum(1) / total))
    kappa = 1.0 if chance >= 1 else (1 - flip_rate - chance) / (1 - chance)
    if kappa < LEAST_KAPPA:
        failures.append(Failure("kappa", LEAST_KAPPA, kappa))
    return failures


def _decide(runner: Runner, found: dict[str, Array]) -> Array:
    if "labels" in found:
        return found["labels"]
    return np.asarray(predict_labels(found["logits"], runner.manifest.task))


def _check_by_itself(candidate: ModelFolder, device: str, data: str | None) -> dict[str, Any]:
    """Verify a candidate whose weights are others than the baseline's."""
    if isinstance(candidate, Checkpoint):
        return {"compared_with": None, "note": "a checkpoint is its own reference", "passed": True}
    reference = _find_origin(candidate)
    if isinstance(candidate, Artifact) and reference is not None:
        with ExitStack() as stack:
            session = _open_candidate(candidate, device, stack).session
            try:
                report = compare_folders(
                    candidate, reference, data=data, num_images=NUM_IMAGES, session=session
                )
            except BackendUnavailableError as error:  # No torch here: what was verified has to do.
                return _trust_verdict(candidate, error.message)
        facts = {
            "compared_with": report.reference, "flip_rate": report.flip_rate,
            "hard_flip_rate": report.hard_flip_rate,
            "problems": [problem for case in report.cases for problem in case["problems"]],
        }  # fmt: skip
        return _end(candidate, report.failures, facts)
    return _trust_verdict(candidate, "its checkpoint is not here")


def _trust_verdict(candidate: ModelFolder, why: str) -> dict[str, Any]:
    """Return that verify passed earlier, where nothing can be compared now.

    Raises:
        ConfigError: If it was never verified.
    """
    if candidate.manifest.passed is not True:
        raise ConfigError(
            f"Nothing tells whether {candidate.path} is right: it was never verified, its weights "
            f"are not the baseline's, and {why}.",
            hint="Run segdeploy verify on it first, or give --no-parity.",
        )
    return {"compared_with": None, "note": f"verified earlier; {why}", "passed": True}


def _try_alone(candidate: ModelFolder, device: str) -> None:
    """Run one image, so that a crash or a hang is found in a child process."""
    case = plan_cases(candidate, None, 1)[0]
    with ExitStack() as stack:
        found = _open_candidate(candidate, device, stack)
        counted = CaseCount(case, create_count(candidate.manifest))
        given = run_candidate(found, next(case.batches()), counted)
    if given is None:
        problem = [*counted.refused, *counted.broken_contract][0]
        raise CandidateBrokenError(f"{candidate.path} does not answer as promised: {problem}")
    values = [array for array in given.values() if array.dtype.kind == "f"]
    if not all(np.isfinite(array).all() for array in values):
        raise CandidateBrokenError(f"{candidate.path} answers NaN or infinity.")
