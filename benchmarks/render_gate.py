"""The tables of docs/gate.md."""

from __future__ import annotations

from typing import Any

from benchmarks.render_parts import cpu_of, read

NAIVE = "| mean > 5 % | p95 > 5 % | median > 5 % |"


def gate_errors() -> str:
    found = read("gate_errors")
    lines = [
        f"| machine | work added | gates | regression | inconclusive | pass {NAIVE}",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        total = row["trials"]
        passed = row["pass"] + row["improvement"]
        naive = " | ".join(_share(row["naive"][name], total) for name in ("mean", "p95", "median"))
        lines.append(
            f"| {_machine(row)} | {_added(row['share'])} | {total} "
            f"| {_share(row['regression'], total)} | {_share(row['inconclusive'], total)} "
            f"| {_share(passed, total)} | {naive} |"
        )
    height, width = found["size"]
    environment = found["environment"]
    lines.append(
        f"\nLRASPP-MobileNetV3 at {height}x{width} on ONNX Runtime, "
        f"d = {100 * found['limit']:g} %, `--budget {found['budget_s']:g}s`, "
        f"{environment['num_cores']} cores of {cpu_of(environment)}. "
        "Made by `benchmarks/gate_errors.py`."
    )
    return "\n".join(lines)


def _machine(row: dict[str, Any]) -> str:
    threads = ", ".join(map(str, row["threads"]))
    what = "idle" if row["part"] == "quiet" else "a neighbour keeps one core busy"
    return f"{what}; threads {threads}"


def gate_simulation() -> str:
    found = read("gate_simulation")
    lines = [
        f"| trouble | work added | 8 s: found | not decided | 60 s: found | not decided {NAIVE}",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total = found["trials"]
    for row in found["rows"]:
        cells = []
        for budget in ("8", "60"):
            verdicts = row["verdicts"][budget]
            cells += [verdicts.get("regression", 0), verdicts.get("inconclusive", 0)]
        cells += [row["naive"][name] for name in ("mean", "p95", "median")]
        shares = " | ".join(_share(count, total) for count in cells)
        lines.append(f"| {row['trouble']} | {_added(row['share'])} | {shares} |")
    lines.append(
        f"\n{total} gates a cell, d = {100 * found['limit']:g} %. Where no work is added, what is "
        '"found" is a false alarm. Made by `benchmarks/gate_simulation.py`.'
    )
    return "\n".join(lines)


def _added(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:g} %"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total >= 100 else f"{count}"
