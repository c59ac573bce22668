"""The greedy search of `tune`, apart from how anything is measured.

All groups at once are tried in int8 first, since some pay only together; then one group at a time,
each choice against the best so far, until a sweep keeps nothing. Variants that place the same Q/DQ
in this graph are measured once. A variant that cannot be built or run loses, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segdeploy.core.errors import RunLockedError, SegDeployError
from segdeploy.graph.policy import CHOICES, Policy
from segdeploy.workflows.tune_decision import Accuracy, Decision, Ratio, decide

MAX_SWEEPS = 3


class BestFailedError(SegDeployError):
    """What every candidate is measured against does not run any more: the search ends."""


@dataclass(frozen=True)
class Trial:
    """One change and what was measured of it, against the best at that time.

    Of a candidate that failed there is no ratio, and no accuracy where it failed before that.
    """

    change: str
    ratio: Ratio | None
    accuracy: Accuracy | None
    decision: Decision

    def __str__(self) -> str:
        kept = "kept" if self.decision.kept else "not kept"
        figures = f": {self.figures}" if self.figures else ""
        return f"{self.change}{figures}: {kept}, {self.decision.reason}"

    @property
    def figures(self) -> str:
        """What is known of time and flips, in words."""
        time = [] if self.ratio is None else [f"{self.ratio.value:.3f} x the time"]
        flips = [] if self.accuracy is None else [f"{self.accuracy.flip_rate:.2%} flips"]
        return ", ".join(time + flips)

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the evidence; what is not known is null."""
        ratio, accuracy = self.ratio, self.accuracy
        is_known = ratio is not None and ratio.low > 0
        return {
            "change": self.change,
            "ratio": ratio and round(ratio.value, 4),
            "interval": [round(ratio.low, 4), round(ratio.high, 4)] if ratio and is_known else None,
            "flip_rate": accuracy and accuracy.flip_rate,
            "hard_flip_rate": accuracy and accuracy.hard_flip_rate,
            "passed": accuracy and accuracy.passed,
            "kept": self.decision.kept,
            "reason": self.decision.reason,
        }


@dataclass(frozen=True)
class Instruments:
    """How a search sees the world.

    `place` gives what a policy places in the graph, as something to compare; `judge` measures its
    flips; `compare` the time of the second policy over that of the first, anew for each turn. They
    raise what is wrong with a candidate; `compare` raises `BestFailedError` where the first fails.
    """

    place: Callable[[Policy], Hashable]
    judge: Callable[[Policy], Accuracy]
    compare: Callable[[Policy, Policy, int], Ratio]


def search(
    start: Policy,
    groups: Sequence[str],
    instruments: Instruments,
    report: Callable[[str], object] | None = None,
    present: Sequence[str] | None = None,
) -> tuple[Policy, list[Trial]]:
    """Return the best policy that was found, and every trial in order.

    Args:
        start: Where to begin.
        groups: The groups to change.
        instruments: What measures.
        report: Called with a line for people after each trial.
        present: The groups that the graph has nodes of; default: `groups`.

    Raises:
        BestFailedError: If the best so far cannot be run beside a candidate.
        SegDeployError: If the start cannot be built or judged.
    """
    best, trials = start, list[Trial]()
    seen = {instruments.place(start)}  # What lost against a best loses against a better one.
    tell = report or (lambda _: None)
    for group in groups:
        changed = [replace(start, groups={**start.groups, group: c}) for c in CHOICES[group]]
        if all(instruments.place(policy) in seen for policy in changed):
            tell(f"{group}: alone, no choice changes what is placed in this graph")
    for sweep in range(MAX_SWEEPS):
        before = best
        together = [] if sweep else [_together(best, groups, present or groups)]
        for change in [*together, *_changes(groups)]:
            candidate = replace(best, groups={**best.groups, **change.groups})
            placed = instruments.place(candidate)
            if placed in seen:
                continue
            seen.add(placed)
            trials.append(_try(change.name, best, candidate, instruments))
            if trials[-1].decision.kept:
                best = candidate
            tell(str(trials[-1]))
        if best is before:
            break
    return best, trials


@dataclass(frozen=True)
class _Change:
    name: str
    groups: dict[str, str]


def _together(start: Policy, groups: Sequence[str], present: Sequence[str]) -> _Change:
    """Return all groups in int8, called by what it makes of the graph."""
    if len(groups) == 1:
        return _changes(groups)[0]
    change = dict.fromkeys(groups, "int8")
    if all({**start.groups, **change}[group] == "int8" for group in present):
        return _Change("everything int8", change)
    return _Change(f"{', '.join(groups[:-1])} and {groups[-1]} in int8", change)


def _changes(groups: Sequence[str]) -> list[_Change]:
    """Return every choice for every group, alone."""
    return [_Change(f"{g} = {choice}", {g: choice}) for g in groups for choice in CHOICES[g]]


def _try(change: str, best: Policy, candidate: Policy, instruments: Instruments) -> Trial:
    """Measure a candidate; one that wins must win again, and that second ratio is reported.

    Of twenty changes one seems to win by chance at a level of 95 %, and the luckiest figure of many
    is too good. One that fails has lost; the best itself may not fail.
    """
    right = instruments.judge(best)
    accuracy: Accuracy | None = None
    try:
        accuracy = instruments.judge(candidate)
        for turn in range(2):
            ratio = instruments.compare(best, candidate, turn)
            decision = decide(right, accuracy, ratio)
            if not decision.kept:
                break
    except (BestFailedError, RunLockedError):
        raise
    except SegDeployError as error:
        said = error.message.partition("\n")[0]
        return Trial(change, None, accuracy, Decision(kept=False, reason=f"it failed: {said}"))
    return Trial(change, ratio, accuracy, decision)
