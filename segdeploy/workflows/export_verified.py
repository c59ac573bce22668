"""Export, then verify: nothing is called done until it was compared with the reference.

A target that fails does not stop the others; the answer is in the outcomes. One that cannot run on
this machine (Core ML off Apple's systems, an engine without its GPU) is built and left without a
verdict, which is no failure: `verify` itself still exits 4 on it. An artifact that was
reused and has passed is not verified again, unless other images are asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segdeploy.backends import find_backend
from segdeploy.core.contract import IoContract
from segdeploy.core.errors import BackendUnavailableError, SegDeployError
from segdeploy.core.results import ParityReport
from segdeploy.export import (
    BUILD_LIMIT_S,
    NUM_CALIBRATION_IMAGES,
    ExportOutcome,
    ForeignOptions,
    Int8Options,
    Size,
    export,
)
from segdeploy.graph.policy import DEFAULT
from segdeploy.verify import find_judges


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
    int8_options: Int8Options | None = None,
    int8_policy: str = DEFAULT,
    io: IoContract | None = None,
    size: Size = None,
    max_batch: int = 1,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    verify: bool = True,
    data: str | None = None,
    build_limit_s: float = BUILD_LIMIT_S,
    build_memory_mib: float | None = None,
    progress: Callable[[str, int, int], object] | None = None,
    report: Callable[[str], object] | None = None,
    foreign: ForeignOptions | None = None,
) -> list[VerifiedExport]:
    """Export every target and verify each artifact that needs it; failed if any `passed` is False.

    One target that fails raises its error; of several, the others are built, and the errors are in
    the outcomes.

    Args:
        checkpoint: Folder of the trained model, or a foreign ONNX file.
        targets: E.g. `["onnx-fp32", "onnx-int8"]`.
        out: The run folder.
        calibration: Data set whose train split chooses int8 ranges.
        num_calibration_images: How many of its images.
        int8_options: How ranges are chosen.
        int8_policy: `default`, `all`, or a TOML file.
        io: Input and output contract.
        size: Fixed (H, W), bounds of sizes, or None for dynamic shapes.
        max_batch: Largest batch of a format that is built for a range.
        name: Folder name, for one target.
        force: Build again even what has not changed.
        dry_run: Only plan.
        verify: False leaves new artifacts without a verdict.
        data: Data set whose val split verify uses; default: the calibration set.
        build_limit_s: Longest time of one converter, in seconds.
        build_memory_mib: Most memory of a converter.
        progress: Called with (what, done, total) while images are read.
        report: Called with a line for people before each step.
        foreign: What a foreign ONNX file does not say of itself.

    Raises:
        SegDeployError: As `export` and `verify`.
    """
    images = data or calibration
    # What is not there, or calibrated, is told before hours of building.
    judges = [find_judges(images)] if verify and images else []
    keep_going = len(set(targets)) > 1
    outcomes = export(
        checkpoint,
        targets,
        out,
        calibration=calibration,
        num_calibration_images=num_calibration_images,
        int8_options=int8_options,
        int8_policy=int8_policy,
        io=io,
        size=size,
        max_batch=max_batch,
        name=name,
        force=force,
        dry_run=dry_run,
        keep_going=keep_going,
        build_limit_s=build_limit_s,
        build_memory_mib=build_memory_mib,
        progress=progress,
        report=report,
        foreign=foreign,
        judges=judges,
    )
    if dry_run:
        return [
            VerifiedExport(o, o.artifact.manifest.passed if o.artifact else None) for o in outcomes
        ]
    return [
        _verified(
            outcome, enabled=verify, keep_going=keep_going, data=data, images=images, report=report
        )
        for outcome in outcomes
    ]


def _verified(
    outcome: ExportOutcome,
    *,
    enabled: bool,
    keep_going: bool,
    data: str | None,
    images: str | None,
    report: Callable[[str], object] | None,
) -> VerifiedExport:
    from segdeploy.verify import verify

    found = outcome.artifact.manifest.passed if outcome.artifact else None
    settled = outcome.reused and found is True and data is None
    if not enabled or settled or outcome.error is not None:
        return VerifiedExport(outcome, found)
    if report is not None:
        report(f"{outcome.path.name}: verifying")
    try:
        backend = find_backend(outcome.artifact) if outcome.artifact else None
        device = backend.home if backend else "cpu"
        parity = verify(outcome.path, data=images, device=device)
    except BackendUnavailableError as error:  # Built here for a machine that is not this one.
        if report is not None:
            report(f"{outcome.path.name}: not verified: {error.message}")
        return VerifiedExport(outcome, None)
    except SegDeployError as error:
        if not keep_going:
            raise
        return VerifiedExport(replace(outcome, error=error), None)
    return VerifiedExport(outcome, parity.passed, parity)
