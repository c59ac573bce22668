"""Artifacts of several runs side by side: read, grouped by comparable latency, and judged.

Names are those of the folders; where artifacts come from several runs, the run's name stands in
front. Checkpoints are shown beside them as what they refer to, but are not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import MANIFEST
from segdeploy.report.advice import Worth, judge_worth
from segdeploy.report.budget import Budget, Choice, choose
from segdeploy.report.collect import Row, RunSummary, collect_figures, find_runs
from segdeploy.report.comparison import Group, contract_of, group_rows, measured_of
from segdeploy.report.table import row_notes
from segdeploy.report.worth import OTHER_RUN_NOISE, Measured


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found; `worth` has one entry per artifact, by name.

    Attributes:
        name: Of the page: the runs.
        rows: Checkpoints and artifacts, in the order in which they were given.
        groups: Of comparable latency; what was never measured is the last one.
        worth: Standing and sentence of each artifact.
        choice: What a budget leaves, if one was given.
        problems: Files that could not be read, or not wholly.
    """

    name: str
    rows: list[Row]
    groups: list[Group]
    worth: dict[str, Worth]
    choice: Choice | None
    problems: list[str]

    @property
    def notes(self) -> list[str]:
        """What must be known of the groups before any two numbers are compared."""
        measured = [group for group in self.groups if group.conditions is not None]
        found = [
            f"Latencies of group 1 and group {number} are not compared: "
            f"{'; '.join(group.differs)}. 'segdeploy bench A B ...' measures artifacts together."
            for number, group in enumerate(measured[1:], start=2)
        ]
        for number, group in enumerate(measured, start=1):
            runs = {row.cost.environment.get("bench_run") for row in group.rows}
            if len(runs) > 1:
                where = f"In group {number} latencies" if len(measured) > 1 else "Latencies"
                found.append(
                    f"{where} come from {len(runs)} bench runs: differences below "
                    f"{100 * OTHER_RUN_NOISE:.0f} % count as none."
                )
        return found

    @property
    def remarks(self) -> list[str]:
        """What the stages had to say of single artifacts: noise, how the output was chosen."""
        return row_notes(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `compare`."""
        places = {row.name: n for n, group in enumerate(self.groups, 1) for row in group.rows}
        return {
            "artifacts": [self._artifact(row, places[row.name]) for row in self.rows],
            "groups": [
                {
                    "conditions": list(group.conditions.words) if group.conditions else None,
                    "differs": list(group.differs),
                    "artifacts": [row.name for row in group.rows],
                    "front": [
                        row.name
                        for row in group.rows
                        if row.name in self.worth and self.worth[row.name].is_on_front
                    ],
                }
                for group in self.groups
            ],
            "choice": self.choice.to_dict() if self.choice is not None else None,
            "notes": self.notes,
            "remarks": self.remarks,
            "problems": self.problems,
        }

    def _artifact(self, row: Row, group: int) -> dict[str, Any]:
        one, worth = measured_of(row), self.worth.get(row.name)
        interval = one.latency_interval
        return {
            "name": one.name,
            "path": str(row.path),
            "target": one.target,
            "contract": contract_of(row.manifest),
            "group": group,
            "verdict": row.closeness.verdict,
            "latency_ms": one.latency_ms,
            "latency_interval_ms": None if interval is None else list(interval),
            "mean_iou": one.mean_iou,
            "delta_points": row.quality.delta_points,
            "flip_rate": one.flip_rate,
            "size_mib": one.size_mib,
            "memory_mib": one.memory_mib,
            "standing": str(worth.standing) if worth else "reference",
            "dominated_by": list(worth.dominated_by) if worth else [],
            "advice": worth.advice if worth else "",
        }


def compare_folders(paths: Sequence[Path], budget: Budget | None = None) -> Comparison:
    """Read runs and artifact folders, judge each artifact, and pick one if there is a budget.

    Raises:
        ArtifactError: If a path is neither, or an artifact that was named is damaged.
        ConfigError: If there is no path.
    """
    if not paths:
        raise ConfigError("There is nothing to compare.", hint="Give runs or artifact folders.")
    summaries = _read(paths)
    rows = _name_rows(summaries)
    groups = group_rows(rows)
    judged = [_artifacts(group) for group in groups]
    worth = {one.name: one for group in judged for one in judge_worth(group)}
    return Comparison(
        name=" and ".join(dict.fromkeys(each.name for each in summaries.values())),
        rows=rows,
        groups=groups,
        worth={row.name: worth[row.name] for row in rows if row.name in worth},
        choice=choose(judged, budget) if budget is not None else None,
        problems=[text for each in summaries.values() for text in each.problems],
    )


def _artifacts(group: Group) -> list[Measured]:
    return [measured_of(row) for row in group.rows if not row.is_reference]


def _read(paths: Sequence[Path]) -> dict[Path, RunSummary]:
    """Return a summary by run: whole ones as they are, of the others the artifacts named."""
    wanted: dict[Path, list[str] | None] = {}
    for path in paths:
        place = path.resolve()
        if not (place / MANIFEST).is_file():
            wanted |= dict.fromkeys(find_runs(place))
        elif (names := wanted.setdefault(place.parent, [])) is not None:
            names.append(place.name)
    found = {run: collect_figures(run, only) for run, only in wanted.items()}
    for run, only in wanted.items():
        present = {row.name for row in found[run].rows}
        for name in only or ():
            if name not in present:
                raise ArtifactError(
                    f"{run / name} cannot be compared: {' '.join(found[run].problems)}"
                )
    return found


def _name_rows(summaries: dict[Path, RunSummary]) -> list[Row]:
    """Return all rows, each with a name of its own."""
    if len(summaries) == 1:
        return next(iter(summaries.values())).rows
    counts = Counter(each.name for each in summaries.values())
    return [
        replace(row, name=f"{each.name if counts[each.name] == 1 else run}/{row.name}")
        for run, each in summaries.items()
        for row in each.rows
    ]
