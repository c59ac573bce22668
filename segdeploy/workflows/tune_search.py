"""The greedy search of `tune`, apart from how anything is measured.

"Everything int8" is tried first, since some groups pay only together; then one group at a time,
each choice against the best so far, until a sweep keeps nothing. Variants that place the same Q/DQ
in this graph are measured once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segdeploy.graph.policy import CHOICES, Policy
from segdeploy.workflows.tune_decision import Accuracy, Decision, Ratio, decide

MAX_SWEEPS = 3


@dataclass(frozen=True)
class Trial:
    """One change and what was measured of it, against the best at that time."""

    change: str
    ratio: Ratio
    accuracy: Accuracy
    decision: Decision

    def __str__(self) -> str:
        kept = "kept" if self.decision.kept else "not kept"
        shown = f"{self.ratio.value:.3f} x the time, {self.accuracy.flip_rate:.2%} flips"
        return f"{self.change}: {shown}: {kept}, {self.decision.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the evidence; an interval that is not known is null."""
        is_known = self.ratio.low > 0
        return {
            "change": self.change,
            "ratio": round(self.ratio.value, 4),
            "interval": [round(self.ratio.low, 4), round(self.ratio.high, 4)] if is_known else None,
            "flip_rate": self.accuracy.flip_rate,
            "hard_flip_rate": self.accuracy.hard_flip_rate,
            "passed": self.accuracy.passed,
            "kept": self.decision.kept,
            "reason": self.decision.reason,
        }


@dataclass(frozen=True)
class Instruments:
    """How a search sees the world.

    `place` gives what a policy places in the graph, as something to compare; `judge` measures its
    flips; `compare` the time of the second policy over that of the first, anew for each turn.
    """

    place: Callable[[Policy], Hashable]
    judge: Callable[[Policy], Accuracy]
    compare: Callable[[Policy, Policy, int], Ratio]


def search(
    start: Policy,
    groups: Sequence[str],
    instruments: Instruments,
    report: Callable[[str], object] | None = None,
) -> tuple[Policy, list[Trial]]:
    """Return the best policy that was found, and every trial in order.

    Args:
        start: Where to begin.
        groups: The groups that the graph has nodes of.
        instruments: What measures.
        report: Called with a line for people after each trial.
    """
    best, trials = start, list[Trial]()
    seen = {instruments.place(start)}  # What lost against a best loses against a better one.
    for sweep in range(MAX_SWEEPS):
        before = best
        for change in [*([] if sweep else [_everything(groups)]), *_changes(groups)]:
            candidate = replace(best, groups={**best.groups, **change.groups})
            placed = instruments.place(candidate)
            if placed in seen:
                continue
            seen.add(placed)
            trials.append(_try(change.name, best, candidate, instruments))
            if trials[-1].decision.kept:
                best = candidate
            if report is not None:
                report(str(trials[-1]))
        if best is before:
            break
    return best, trials


@dataclass(frozen=True)
class _Change:
    name: str
    groups: dict[str, str]


def _everything(groups: Sequence[str]) -> _Change:
    return _Change("everything int8", {group: CHOICES[group][0] for group in groups})


def _changes(groups: Sequence[str]) -> list[_Change]:
    """Return every choice for every group, alone."""
    return [_Change(f"{g} = {choice}", {g: choice}) for g in groups for choice in CHOICES[g]]


def _try(change: str, best: Policy, candidate: Policy, instruments: Instruments) -> Trial:
    """Measure a candidate; one that wins must win again, and that second ratio is reported.

    Of twenty changes one seems to win by chance at a level of 95 %, and the luckiest figure of many
    is too good.
    """
    accuracy, right = instruments.judge(candidate), instruments.judge(best)
    for turn in range(2):
        ratio = instruments.compare(best, candidate, turn)
        decision = decide(right, accuracy, ratio)
        if not decision.kept:
            break
    return Trial(change, ratio, accuracy, decision)
