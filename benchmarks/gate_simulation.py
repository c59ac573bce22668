"""How often gates are wrong on a machine whose troubles are known: ours beside three naive ones.

    .venv/bin/python -m benchmarks.gate_simulation [--trials N]

The machine is `fake_machine.py`; the gate's own loop and judgement run on its clock, with d = 3 %
and budgets of 8 s and 60 s. The naive gates take 100 calls of the one, then of the other, and say
"slower" where mean, 95th percentile or median are more than 5 % up. No time is measured here.
Writes benchmarks/results/gate_simulation.json; docs/gate.md shows it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.fake_machine import FakeMachine
from segdeploy.core.files import write_json
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.measure.sequential import run_looks
from segdeploy.workflows.gate_metrics import judge_launches

RESULTS = Path(__file__).parent / "results" / "gate_simulation.json"
LIMIT, NAIVE_LIMIT, NAIVE_CALLS = 0.03, 1.05, 100
BUDGETS_S, SHARES = (8.0, 60.0), (0.0, 0.06, 0.12)
TROUBLES: dict[str, dict[str, Any]] = {
    "quiet": {},
    "launch bias 1.5 %": {"launch_bias": 0.015},
    "drift": {"drift": 0.002},
    "bursts": {"bursts": 0.3},
    "steps of the whole machine": {"steps": 0.1},
    "heavy tails": {"tails": 1.5, "noise": 0.01},
    "all of these": {
        "launch_bias": 0.012, "drift": 0.001, "bursts": 0.2, "steps": 0.05, "tails": 2.0,
        "noise": 0.01,
    },
}  # fmt: skip


def run_gate(machine: FakeMachine, budget_s: float) -> Verdict:
    """Return the verdict of the product's own loop."""
    limits = GateLimits(latency=LIMIT)
    verdict = Verdict.INCONCLUSIVE

    def is_decided(share: float) -> bool:
        nonlocal verdict
        verdict = judge_launches(machine.launches, limits, share)[0].verdict
        return verdict is not Verdict.INCONCLUSIVE

    run_looks(machine.sample, is_decided, budget_s, machine.clock)
    return verdict


def run_naive(machine: FakeMachine) -> dict[str, bool]:
    """Return what three gates of everyday scripts say."""
    first, second = (
        machine.run_alone(is_candidate=side, calls=NAIVE_CALLS) for side in (False, True)
    )
    ratios = {
        "mean": np.mean(second) / np.mean(first),
        "p95": np.percentile(second, 95) / np.percentile(first, 95),
        "median": np.median(second) / np.median(first),
    }
    return {name: bool(ratio > NAIVE_LIMIT) for name, ratio in ratios.items()}


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    rows = []
    for name in track(TROUBLES, "troubles"):
        for share in SHARES:
            naive: Counter[str] = Counter()
            for seed in range(trials):
                machine = FakeMachine(slowdown=1 + share, seed=seed, **TROUBLES[name])
                naive.update(key for key, is_slow in run_naive(machine).items() if is_slow)
            verdicts = {
                f"{budget:g}": Counter(
                    str(run_gate(
                        FakeMachine(slowdown=1 + share, seed=seed, **TROUBLES[name]), budget
                    ))
                    for seed in range(trials)
                )
                for budget in BUDGETS_S
            }  # fmt: skip
            rows.append({
                "trouble": name, "share": share, "verdicts": verdicts,
                "naive": {key: naive[key] for key in ("mean", "p95", "median")},
            })  # fmt: skip
    write_json(
        RESULTS, {"trials": trials, "limit": LIMIT, "naive_limit": NAIVE_LIMIT, "rows": rows}
    )


if __name__ == "__main__":
    main()
