"""What `segdeploy run` found out: one outcome for each artifact and stage, and the exit code.

Precedence of the exit code: 1 (a check failed) before 2 and 4 (something could not be done) before
3 (inconclusive) before 0. A failed check is certain, whatever else went wrong; what could not be
done hides an answer, and no second try will give it; an inconclusive gate is worth a second try.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.errors import SegDeployError
from segdeploy.core.gate import GateResult, Verdict

_PRECEDENCE = (1, 2, 4, 3)


class Status(StrEnum):
    """What became of a stage."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """One stage of one artifact (or of a model as a whole: `report`, where `artifact` is empty).

    `reason` is one sentence; `exit_code` is what it adds to the run's. `key` is the digest of all
    that the stage depended on: equal key, same work. `result` is the sha256 of the file that it
    wrote. `values` are what a table shows: `mean_iou`, `p50_ms`, `flip_rate`.
    """

    model: str
    artifact: str
    stage: str
    status: Status
    reason: str = ""
    kind: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    reused: bool = False
    key: str = ""
    result: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    gate: GateResult | None = None

    @property
    def place(self) -> str:
        """Its name within the run."""
        return "/".join(part for part in (self.model, self.artifact, self.stage) if part)

    @classmethod
    def of_error(
        cls, model: str, artifact: str, stage: str, error: SegDeployError, seconds: float = 0.0
    ) -> StageOutcome:
        """Return what an error means: a failed check, no answer, or something not done."""
        status = {1: Status.FAILED, 3: Status.INCONCLUSIVE}.get(error.exit_code, Status.ERROR)
        return cls(
            model=model, artifact=artifact, stage=stage, status=status, reason=str(error),
            kind=type(error).__name__, exit_code=error.exit_code, seconds=seconds,
        )  # fmt: skip

    @classmethod
    def of_gate(
        cls, model: str, artifact: str, result: GateResult, seconds: float = 0.0, key: str = ""
    ) -> StageOutcome:
        """Return a gate's answer as an outcome."""
        return cls(
            model=model, artifact=artifact, stage="gate", status=gate_status(result.verdict),
            reason=result.reason, kind=str(result.verdict), exit_code=result.verdict.exit_code,
            seconds=seconds, key=key, gate=result,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `run`; a gate's samples stay in its file."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        if self.gate is not None:
            document = self.gate.to_dict()
            plain["gate"] = {k: v for k, v in document.items() if k != "samples"}
        return plain


def gate_status(verdict: Verdict) -> Status:
    """Return what a verdict means for a run."""
    if verdict is Verdict.UNJUDGED:
        return Status.SKIPPED
    return {0: Status.PASSED, 1: Status.FAILED}.get(verdict.exit_code, Status.INCONCLUSIVE)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """All outcomes, model by model in the order of the stages; `bool()` means exit code 0."""

    out: Path
    outcomes: Sequence[StageOutcome]
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """The one that decides, by precedence."""
        codes = {outcome.exit_code for outcome in self.outcomes}
        return next((code for code in _PRECEDENCE if code in codes), 0)

    @property
    def verdict(self) -> Status:
        """The whole run in a word."""
        found = {0: Status.PASSED, 1: Status.FAILED, 3: Status.INCONCLUSIVE}
        return found.get(self.exit_code, Status.ERROR)

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing had to be done."""
        return all(
            o.reused or (o.status is Status.SKIPPED and o.gate is None) for o in self.outcomes
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `run`."""
        return {
            "verdict": str(self.verdict),
            "exit_code": self.exit_code,
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "unchanged": self.is_unchanged,
            "stages": [outcome.to_dict() for outcome in self.outcomes],
        }
