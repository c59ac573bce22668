"""The files that CI systems read, written by `run` and `gate` once the answer is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.cli.app import say
from segdeploy.core.errors import ArtifactError

if TYPE_CHECKING:
    from segdeploy.workflows.junit import Case


def write_ci_files(
    cases: Sequence[Case], text: str, junit: Path | None, summary: Path | None
) -> bool:
    """Write JUnit XML and Markdown (GitHub's own summary too, where a job has one).

    Returns:
        Whether all was written; what cannot be is said, and hides no answer.
    """
    from segdeploy.workflows.junit import write_junit
    from segdeploy.workflows.summary import write_summary

    tasks: list[Callable[[], object]] = [lambda: write_summary(text, summary)]
    if junit is not None:
        tasks.append(lambda: write_junit(junit, cases))
    done = [_is_done(task) for task in tasks]  # All of them, whatever the first says.
    return all(done)


def _is_done(task: Callable[[], object]) -> bool:
    try:
        task()
    except ArtifactError as error:
        say(f"error: {error}")
        return False
    return True
