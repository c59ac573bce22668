"""Gate: is the candidate slower than the baseline, here and now?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from segdeploy.core.gate import GateResult
from segdeploy.core.limits import GateLimits


@dataclass(frozen=True, kw_only=True)
class GatePlan:
    """How to measure; `size` is (H, W) or None for the artifacts' own."""

    size: tuple[int, int] | None = None
    batch_size: int = 1
    threads: int | None = None
    device: str = "cpu"
    budget_s: float = 60.0
    streams: int = 1
    data: str | None = None
    check_parity: bool = True
    allow_different_machine: bool = False


def gate(
    baseline: Path,
    candidate: Path,
    *,
    plan: GatePlan | None = None,
    limits: GateLimits | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> GateResult:
    """Compare a candidate with its baseline."""
    raise NotImplementedError
