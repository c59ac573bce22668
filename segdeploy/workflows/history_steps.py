"""Lasting changes in a history: which series has which steps, and which commits can have made them.

Only entries of one series are compared: the same model, artifact, input and machine. A step lies
between the last entry before it and the first one after it, as far as the noise lets its place be
known; the commits between these two are those that can have made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ConfigError
from segdeploy.measure.steps import LEAST_CHANGE, Step, find_steps
from segdeploy.workflows.commits import commits_between
from segdeploy.workflows.history import HistoryEntry


@dataclass(frozen=True)
class FoundStep:
    """A step of a series, and the commits that can have made it (None: git does not say)."""

    step: Step
    since: HistoryEntry
    until: HistoryEntry
    commits: list[str] | None

    @property
    def is_slower(self) -> bool:
        """Whether it got worse."""
        return self.step.ratio > 1

    @property
    def reason(self) -> str:
        """One sentence."""
        change = abs(self.step.ratio - 1) * 100
        word = "slower" if self.is_slower else "faster"
        sizes = f"{self.step.before:.3g} -> {self.step.after:.3g} ms"
        return f"{change:.1f} % {word} ({sizes}) {self._where}{self._packages}"

    @property
    def _where(self) -> str:
        before, after = self.since.commit, self.until.commit
        if before is None or after is None:
            return f"between {self.since.time} and {self.until.time}"
        if before == after:
            return f"at {after[:12]}, the same commit: the machine or a package changed"
        return f"in {before[:12]}..{after[:12]}"

    @property
    def _packages(self) -> str:
        changed = _changed(self.since.versions, self.until.versions)
        if not changed:
            return ""
        told = [
            f"{name} {old or 'none'} -> {new or 'none'}" for name, (old, new) in changed.items()
        ]
        return f"; changed with it: {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of `steps` in the JSON document of `history`."""
        return {
            "ratio": self.step.ratio,
            "before_ms": self.step.before,
            "after_ms": self.step.after,
            "place": self.step.place,
            "since": {"commit": self.since.commit, "time": self.since.time},
            "until": {"commit": self.until.commit, "time": self.until.time},
            "commits": self.commits,
            "versions_changed": _changed(self.since.versions, self.until.versions),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Series:
    """Comparable entries, oldest first, and their steps."""

    entries: list[HistoryEntry]
    steps: list[FoundStep]

    @property
    def name(self) -> str:
        """For people: model, artifact, input, machine."""
        last = self.entries[-1]
        size = "x".join(map(str, last.input_shape))
        return f"{last.model}/{last.artifact} {size} on {last.cpu or 'unknown'} ({last.machine})"

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `history`."""
        last = self.entries[-1]
        return {
            "model": last.model,
            "artifact": last.artifact,
            "target": last.target,
            "machine": last.machine,
            "cpu": last.cpu,
            "num_entries": len(self.entries),
            "last_p50_ms": last.p50_ms,
            "p50_ms": [entry.p50_ms for entry in self.entries],
            "commits": [entry.commit for entry in self.entries],
            "steps": [step.to_dict() for step in self.steps],
        }


def read_series(
    entries: Sequence[HistoryEntry],
    *,
    branch: str | None = None,
    least_change: float = LEAST_CHANGE,
    repository: Path | None = None,
) -> list[Series]:
    """Return the series of a history with their steps, in order of their first entry.

    Args:
        entries: Of `load_history`.
        branch: Only entries of this branch.
        least_change: The smallest step that is told.
        repository: Where git is asked for the commits of a step; default: the working directory.

    Raises:
        ConfigError: If the branch has no entry.
    """
    known = list(dict.fromkeys(entry.branch for entry in entries))
    if branch is not None and branch not in known:
        shown = ", ".join(str(name) for name in known[:10])
        raise ConfigError(f"The history has no entry of branch {branch}.", hint=f"Known: {shown}.")
    groups: dict[tuple[Any, ...], list[HistoryEntry]] = {}
    for entry in entries:
        if branch is None or entry.branch == branch:
            groups.setdefault(entry.series, []).append(entry)
    return [Series(group, _find(group, least_change, repository)) for group in groups.values()]


def _find(
    group: Sequence[HistoryEntry], least_change: float, repository: Path | None
) -> list[FoundStep]:
    found = []
    for step in find_steps([entry.p50_ms for entry in group], least_change):
        since, until = group[step.first - 1], group[step.last]
        commits = commits_between(since.commit, until.commit, repository)
        found.append(FoundStep(step, since, until, commits))
    return found


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str | None]]:
    names = sorted({*before, *after})
    return {
        name: [before.get(name), after.get(name)]
        for name in names
        if before.get(name) != after.get(name)
    }
