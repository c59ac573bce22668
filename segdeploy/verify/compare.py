"""Run candidate and reference on every case and count; nothing is judged here.

A batch that the candidate cannot run, or answers with another name, type or shape than its manifest
promises, counts as flipped everywhere: no rate can look good because the evidence is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.session import Array
from segdeploy.metrics import FlipCount
from segdeploy.upsampling import LOW_LOGITS
from segdeploy.verify.cases import Batch, Case
from segdeploy.verify.confidence import ConfidenceCount
from segdeploy.verify.reference import Runner, create_count


@dataclass
class CaseCount:
    """What was found on one case."""

    case: Case
    count: FlipCount
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    num_batches: int = 0
    refused: list[str] = field(default_factory=list)
    broken_contract: list[str] = field(default_factory=list)
    confidence: ConfidenceCount = field(default_factory=ConfidenceCount)

    def to_dict(self) -> dict[str, Any]:
        """Return what the report keeps of this case."""
        count = self.count
        return {
            "name": self.case.name,
            "source": self.case.source,
            "num_batches": self.num_batches,
            "shapes": sorted({"x".join(map(str, s)) for s in self.shapes}),
            "num_pixels": count.num_pixels,
            "flip_rate": count.flip_rate,
            "hard_flip_rate": count.hard_flip_rate,
            "max_deviation": count.max_deviation if has_sound_logits(count) else None,
            "confidence_rms_error": (
                self.confidence.rms_error if self.confidence.num_pixels else None
            ),
            "problems": [*dict.fromkeys([*self.refused, *self.broken_contract])][:5],
        }


def has_sound_logits(count: FlipCount) -> bool:
    """Return True if some pixel's logits could be compared at all."""
    broken = count.num_broken + count.num_broken_reference
    return count.has_logits and count.num_pixels > broken


def compare_cases(
    candidate: Runner,
    reference: Runner,
    cases: Sequence[Case],
    tolerance: float,
    progress: Callable[[], object] | None = None,
) -> list[CaseCount]:
    """Return one count per case that the reference itself can run.

    Raises:
        ArtifactError: If the reference cannot run the first case, or none.
    """
    counts = []
    for case in cases:
        counted = _compare_case(candidate, reference, case, tolerance, progress)
        if counted.num_batches:
            counts.append(counted)
    if not counts:
        raise ArtifactError(f"The reference {reference.folder.path} runs none of the inputs.")
    return counts


def _compare_case(
    candidate: Runner,
    reference: Runner,
    case: Case,
    tolerance: float,
    progress: Callable[[], object] | None,
) -> CaseCount:
    counted = CaseCount(case, create_count(reference.manifest, tolerance))
    for batch in case.batches():
        try:
            expected = reference.run(batch)["logits"]
        except ArtifactError:
            if case.name == "images":
                raise
            break  # A size that the model itself does not take proves nothing.
        counted.num_batches += 1
        counted.shapes.append(batch.shape[:3])
        _count_batch(candidate, batch, expected, counted)
        if progress is not None:
            progress()
    return counted


def _count_batch(candidate: Runner, batch: Batch, expected: Array, counted: CaseCount) -> None:
    found = run_candidate(candidate, batch, counted)
    count = counted.count
    if found is None:
        count.update(expected, np.full_like(expected, np.nan))
    elif "logits" in found:
        count.update(expected, found["logits"])
    else:
        count.update_labels(expected, found["labels"])
        if "confidence" in found:
            counted.confidence.update(expected, count.task, found["labels"], found["confidence"])


def run_candidate(candidate: Runner, batch: Batch, counted: CaseCount) -> dict[str, Array] | None:
    """Return the outputs, or None (and a note) if they are missing or not as promised."""
    try:
        found = candidate.run(batch)
    except (ArtifactError, DataError) as error:
        shape = "x".join(map(str, batch.shape[:3]))
        counted.refused.append(f"{shape}: {error.message}")
        return None
    problem = contract_problem(found, candidate.manifest.outputs, batch.shape[:3])
    if problem is None:
        return candidate.complete(found, batch)
    counted.broken_contract.append(problem)
    return None


def contract_problem(
    found: dict[str, Array], promised: Sequence[TensorSpec], batch: tuple[int, ...]
) -> str | None:
    """Return how outputs differ from the manifest's promise, or None.

    Args:
        found: Outputs by name.
        promised: Of the manifest; dynamic sizes must follow the batch.
        batch: N, H, W of the input.
    """
    names = [spec.name for spec in promised]
    if sorted(found) != sorted(names):
        return f"outputs are {sorted(found)}, the manifest says {sorted(names)}"
    for spec in promised:
        array = found[spec.name]
        n, h, w = batch
        follows: tuple[int | None, ...]
        follows = (n, spec.shape[1], h, w) if len(spec.shape) == 4 else (n, h, w)
        if spec.name == LOW_LOGITS and TensorSpec("", "", (n, *spec.shape[1:])).fits(array.shape):
            follows = array.shape  # How h and w follow from H and W is the network's affair.
        if array.dtype.name != spec.dtype or array.shape != follows:
            return (
                f"output '{spec.name}' is {array.dtype.name} {array.shape}, the manifest says "
                f"{spec.dtype} {follows}"
            )
    return None
