"""Compare: artifacts of several runs side by side, by the results that other stages left.

Nothing is measured here. The page is self-contained and may be mailed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from segdeploy.core.files import write_bytes
from segdeploy.report.budget import Budget
from segdeploy.report.compare_page import render_comparison
from segdeploy.report.compared import Comparison, compare_folders


def compare(
    paths: Sequence[Path], *, budget: Budget | None = None, page: Path | None = None
) -> Comparison:
    """Return who is on the Pareto front of latency, quality, size and memory, and who is not.

    Example:
        `compare([Path("runs/a")], budget=Budget.parse("latency=8ms,miou=-0.5")).choice.name`

    Args:
        paths: Run folders, artifact folders, and folders of runs (the `out` of `segdeploy run`).
        budget: What an artifact may cost; the fastest that meets it is picked.
        page: Where to write the HTML page.

    Raises:
        ArtifactError: If a path is no run and no artifact, or the page cannot be written.
        ConfigError: If there is no path.
    """
    found = compare_folders(paths, budget)
    if page is not None:
        made = f"segdeploy {metadata.version('segdeploy')}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        write_bytes(page, render_comparison(found, made).encode(errors="replace"))
    return found
