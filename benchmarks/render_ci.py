"""The block of docs/ci.md: what jobs of `benchmarks/ci_trial.py` found."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.render_parts import cpu_of, read

KINDS = {"docs": "documentation only", "slow": "a graph with more work"}


def ci_trial() -> str:
    found = read("ci_trial")
    planted = found["planted"]
    lines = [
        "| head commit | jobs | passed | inconclusive | regression | other | median ratio | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(kind, found["jobs"]) for kind in KINDS]
    share = 100 * (planted["ratio"] - 1)
    lines.append(
        f"\nSeconds are a whole job's. LRASPP-MobileNetV3 at 224x224, {planted['threads']} thread, "
        f"`--budget {planted['budget']}`, limit 5 %, on {cpu_of(found['environment'])}; a real git "
        f"repository, the shell of `action.yml`. The planted work is {share:.0f} % by ONNX Runtime "
        "alone. Made by `benchmarks/ci_trial.py`."
    )
    return "\n".join(lines)


def _row(kind: str, jobs: list[dict[str, Any]]) -> str:
    own = [job for job in jobs if job["name"].startswith(kind)]
    verdicts = [job["verdict"] for job in own]
    passed = sum(verdict in {"pass", "improvement"} for verdict in verdicts)
    unclear, worse = verdicts.count("inconclusive"), verdicts.count("regression")
    ratios = [job["ratio"] for job in own if job["ratio"] is not None]
    middle = f"{statistics.median(ratios):.3f}" if ratios else "-"
    seconds = f"{statistics.median(job['seconds'] for job in own):.0f}" if own else "-"
    other = len(own) - passed - unclear - worse
    return (
        f"| {KINDS[kind]} | {len(own)} | {passed} | {unclear} | {worse} | {other} | {middle} "
        f"| {seconds} |"
    )
