"""Export, then verify: nothing is called done until it was compared with the reference.

A target that fails does not stop the others; the answer is in the outcomes. An artifact that was
reused and has passed is not verified again, unless other images are asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.contract import IoContract
from segdeploy.core.results import ParityReport
from segdeploy.data import VAL, open_dataset
from segdeploy.export import NUM_CALIBRATION_IMAGES, ExportOutcome, export


@dataclass(frozen=True)
class VerifiedExport:
    """One export outcome and its verdict; `passed` is None where nothing was verified."""

    outcome: ExportOutcome
    passed: bool | None
    report: ParityReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `export`."""
        return {**self.outcome.to_dict(), "passed": self.passed}


def export_and_verify(
    checkpoint: Path,
    targets: Sequence[str],
    out: Path,
    *,
    calibration: str | None = None,
    num_calibration_images: int = NUM_CALIBRATION_IMAGES,
    io: IoContract | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    verify: bool = True,
    data: str | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    report: Callable[[str], object] | None = None,
) -> list[VerifiedExport]:
    """Export every target and verify each artifact that needs it; failed if any `passed` is False.

    Args:
        checkpoint: Folder of the trained model.
        targets: E.g. `["onnx-fp32", "onnx-int8"]`.
        out: The run folder.
        calibration: Data set whose train split chooses int8 ranges.
        num_calibration_images: How many of its images.
        io: Input and output contract.
        size: Fixed (H, W), or None for dynamic shapes.
        name: Folder name, for one target.
        force: Build again even what has not changed.
        dry_run: Only plan.
        verify: False leaves new artifacts without a verdict.
        data: Data set whose val split verify uses; default: the calibration set.
        progress: Called with (what, done, total) while images are read.
        report: Called with a line for people before each step.

    Raises:
        SegDeployError: As `export` and `verify`.
    """
    images = data or calibration
    if verify and images:
        open_dataset(images, VAL)  # What is not there is told before hours of building.
    outcomes = export(
        checkpoint,
        targets,
        out,
        calibration=calibration,
        num_calibration_images=num_calibration_images,
        io=io,
        size=size,
        name=name,
        force=force,
        dry_run=dry_run,
        progress=progress,
        report=report,
    )
    if dry_run:
        return [
            VerifiedExport(o, o.artifact.manifest.passed if o.artifact else None) for o in outcomes
        ]
    return [
        _verified(outcome, enabled=verify, data=data, images=images, report=report)
        for outcome in outcomes
    ]


def _verified(
    outcome: ExportOutcome,
    *,
    enabled: bool,
    data: str | None,
    images: str | None,
    report: Callable[[str], object] | None,
) -> VerifiedExport:
    from segdeploy.verify import verify

    found = outcome.artifact.manifest.passed if outcome.artifact else None
    settled = outcome.reused and found is True and data is None
    if not enabled or settled:
        return VerifiedExport(outcome, found)
    if report is not None:
        report(f"{outcome.path.name}: verifying")
    parity = verify(outcome.path, data=images)
    return VerifiedExport(outcome, parity.passed, parity)
