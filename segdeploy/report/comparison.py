"""Which artifacts may be compared with each other, and what each of them is worth.

Latencies of other sizes, threads, machines or contracts are never put side by side: artifacts fall
into groups whose latencies are comparable, and each is judged among its group. `report.worth`
decides and `report.advice` words it. Facts on a graph (borders, operators left in float) come from
its manifest, where the export wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segdeploy.core.manifest import Manifest
from segdeploy.report.advice import Worth, judge_worth
from segdeploy.report.collect import Row
from segdeploy.report.cost import Conditions
from segdeploy.report.worth import Measured


@dataclass(frozen=True)
class Group:
    """Rows whose latencies are comparable; `differs` says how its conditions are not the first's.

    Without conditions it holds what was never measured.
    """

    conditions: Conditions | None
    rows: list[Row]
    differs: tuple[str, ...] = ()

    @property
    def measured(self) -> list[Measured]:
        """What is known of each row, in order."""
        return [measured_of(row) for row in self.rows]


def group_rows(rows: Sequence[Row]) -> list[Group]:
    """Return the groups in order of their first rows, what was never measured last."""
    groups: list[Group] = []
    unmeasured = [row for row in rows if row.cost.conditions is None]
    for row in rows:
        if (mine := row.cost.conditions) is None:
            continue
        home = next((group for group in groups if _is_comparable(group, row)), None)
        if home is not None:
            home.rows.append(row)
        else:
            first = groups[0].conditions if groups else None
            groups.append(Group(mine, [row], tuple(first.differences(mine)) if first else ()))
    return groups + ([Group(None, unmeasured)] if unmeasured else [])


def _is_comparable(group: Group, row: Row) -> bool:
    """Return whether a row may be compared with all: of runtimes, only shared ones count."""
    return all(
        member.cost.conditions is not None
        and row.cost.conditions is not None
        and not member.cost.conditions.differences(row.cost.conditions)
        for member in group.rows
    )


def find_worth(rows: Sequence[Row]) -> list[Worth]:
    """Return the answer for each artifact in order, or nothing where not one was measured."""
    if all(row.cost.p50_ms is None for row in rows if not row.is_reference):
        return []
    found: dict[str, Worth] = {}
    for group in group_rows([row for row in rows if not row.is_reference]):
        found |= {one.name: one for one in judge_worth(group.measured)}
    return [found[row.name] for row in rows if not row.is_reference]


def measured_of(row: Row) -> Measured:
    """Return what is known of one artifact."""
    manifest, cost, close, quality = row.manifest, row.cost, row.closeness, row.quality
    delta, own = quality.delta_points, quality.mean_iou
    return Measured(
        name=row.name,
        target=manifest.target or "pytorch-fp32",
        latency_ms=cost.p50_ms,
        latency_interval=cost.interval_ms,
        mean_iou=own,
        scored_on=quality.scored_on,
        reference_iou=own - delta / 100 if own is not None and delta is not None else None,
        flip_rate=close.flip_rate,
        reference=find_reference(manifest),
        size_mib=row.size_mib,
        memory_mib=cost.peak_memory_mib,
        conditions=cost.conditions.words if cost.conditions else (),
        bench_run=_text(cost.environment.get("bench_run")),
        device=_text(cost.environment.get("device")) or "cpu",
        contract=contract_of(manifest),
        failures=_failures(row),
        borders=_count(_int8_facts(manifest).get("borders")),
        float_activations=_counts(_int8_facts(manifest).get("float_activations")),
        digest=manifest.digest,
    )


def contract_of(manifest: Manifest) -> str:
    """Return what a payload takes and gives, in words."""
    return f"{manifest.io.input} to {manifest.io.output}"


def find_reference(manifest: Manifest) -> str | None:
    """Return the digest of what the artifact was made from, in the end."""
    if manifest.reference is not None:
        return manifest.reference.digest
    return manifest.lineage[0].digest if manifest.lineage else None


def _failures(row: Row) -> tuple[str, ...] | None:
    """Return the rules that verification found broken, or None where nobody verified."""
    if row.is_reference or row.closeness.verdict == "passed":
        return ()
    if row.closeness.verdict != "failed":
        return None
    return tuple(text.partition(":")[0] for text in row.closeness.failures) or ("its rules",)


def _int8_facts(manifest: Manifest) -> dict[str, Any]:
    found = manifest.options.get("int8")
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counts(value: Any) -> dict[str, int]:
    """Return counts by operator; one number alone is of all activations."""
    if (whole := _count(value)) is not None:
        return {"activations": whole}
    plain = value if isinstance(value, dict) else {}
    return {str(name): count for name, each in plain.items() if (count := _count(each))}
