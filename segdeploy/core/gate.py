"""What a gate answers: a verdict per metric, the worst of which is the gate's own.

A ratio is candidate over baseline in the sense in which more is worse (throughput: baseline over
candidate), so that 1.06 always reads "6 % worse". A metric without noise (size, mIoU) has no
interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec


class Verdict(StrEnum):
    """What is known of a candidate."""

    PASS = "pass"  # noqa: S105  a verdict
    IMPROVEMENT = "improvement"
    UNJUDGED = "unjudged"
    INCONCLUSIVE = "inconclusive"
    REGRESSION = "regression"
    BROKEN = "broken"

    @property
    def exit_code(self) -> int:
        """0 for pass, improvement and what may not be judged, 3 where it is not known, else 1."""
        if self in {Verdict.PASS, Verdict.IMPROVEMENT, Verdict.UNJUDGED}:
            return 0
        return 3 if self is Verdict.INCONCLUSIVE else 1


_BADNESS = (
    Verdict.BROKEN, Verdict.REGRESSION, Verdict.INCONCLUSIVE, Verdict.UNJUDGED,
    Verdict.IMPROVEMENT, Verdict.PASS,
)  # fmt: skip


def worst_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the one that decides; an improvement counts where all the others pass."""
    return min(verdicts, key=_BADNESS.index)


@dataclass(frozen=True, kw_only=True)
class MetricVerdict:
    """One metric of a gate.

    Attributes:
        name: `latency`, `throughput`, `memory`, `size`, `cold_start` or `mean_iou`.
        unit: Of `baseline` and `candidate`: `ms`, `img/s`, `MiB`, or empty.
        ratio: How much worse the candidate is, as a factor; None for mean_iou.
        ratio_ci: Its interval; None where nothing is random.
        limit: The largest allowed `ratio`; of mean_iou, the largest allowed drop.
        minimal_detectable_effect: The smallest slowdown (0.04 = 4 %) that these samples would have
            shown in four cases of five; None where nothing is random.
        reason: One sentence.
        more_launches: Of an inconclusive one: about how many launches more would decide; None
            where no number of them would.
    """

    name: str
    unit: str
    verdict: Verdict
    baseline: float | None
    candidate: float | None
    ratio: float | None
    ratio_ci: tuple[float, float] | None
    limit: float
    minimal_detectable_effect: float | None
    reason: str
    more_launches: int | None = None


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """The whole answer; `bool()` means that nothing speaks against the candidate.

    Attributes:
        baseline, candidate: The folders (or the stored result) that were compared.
        metrics: One entry per limit, latency first; empty for a broken candidate.
        reason: One sentence for the verdict.
        parity: What was compared before the timing.
        samples: Raw evidence: per launch and side the blocks of milliseconds, memory, cold start.
        environment: The machine's fingerprint, threads, warnings.
        seconds: Wall-clock time that it took.
        num_looks: How often the data were looked at.
    """

    baseline: str
    candidate: str
    verdict: Verdict
    reason: str
    metrics: tuple[MetricVerdict, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    num_looks: int = 0

    def __bool__(self) -> bool:
        return self.verdict.exit_code == 0

    @property
    def latency(self) -> MetricVerdict | None:
        """The latency's verdict, if it was measured."""
        return next((metric for metric in self.metrics if metric.name == "latency"), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `gate`; the latency's ratio stands at the top."""
        latency = self.latency
        head = {
            "verdict": str(self.verdict),
            "reason": self.reason,
            "ratio": latency.ratio if latency else None,
            "ratio_ci": list(latency.ratio_ci) if latency and latency.ratio_ci else None,
            "minimal_detectable_effect": latency.minimal_detectable_effect if latency else None,
        }
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return {**head, **{name: value for name, value in plain.items() if name not in head}}
