"""Tables of segdeploy beside what a user would write instead, for `render_docs`."""

from __future__ import annotations

from typing import Any

from benchmarks.render_parts import cpu_of, read

EAGER = "PyTorch eager"
LEFT_OUT = {
    "PyTorch compile",
    "OpenVINO, first pages",
}  # README is short; docs/compare.md is whole.


def peers() -> str:
    """Return one table per case."""
    return "\n\n".join(_table(name, case) for name, case in read("peers").items())


def peers_in_short() -> str:
    """Return a part of LRASPP's table: what others would write, and our fastest."""
    case = read("peers")["lraspp"]
    times = case.get("times", {})
    ours = min(filter(_is_ours, times), key=lambda name: times[name]["p50_ms"])
    hidden = LEFT_OUT | {name for name in times if _is_ours(name) and name != ours}
    kept = {name: row for name, row in times.items() if name not in hidden}
    return _table("lraspp", {**case, "times": kept})


def _is_ours(name: str) -> bool:
    return name.startswith("segdeploy")


def _table(name: str, case: dict[str, Any]) -> str:
    scores, times = case.get("scores", {}), case.get("times", {})
    best = _best_peer(times)
    lines = [
        (
            "| uint8 image to label map | p50 ms | min ms | eager / this | best peer / this "
            "| peak MiB | agreement | mIoU |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in times or scores:
        time, score = times.get(each, {}), scores.get(each, {})
        p50 = time.get("p50_ms")
        cells = (
            _number(p50, 1), _number(time.get("min_ms"), 1),
            _ratio(times.get(EAGER, {}).get("p50_ms"), p50), _ratio(best, p50),
            _number(time.get("peak_memory_mib"), 0), _percent(score.get("agreement")),
            _number(score.get("mean_iou"), 4),
        )  # fmt: skip
        lines.append(f"| {each} | {' | '.join(cells)} |")
    height, width = case["size"]
    said = f"\n{case['model']} at {height}x{width}"
    if name == "smp":
        said += ", never trained"
    if "environment" in case:
        versions = ", ".join(f"{package} {found}" for package, found in case["versions"].items())
        said += f", {case['threads']} threads, one interleaved run on "
        said += f"{cpu_of(case['environment'])}; {versions}"
    return "\n".join([*lines, f"{said}. Made by `benchmarks/peers.py`."])


def _best_peer(times: dict[str, Any]) -> float | None:
    """Return the latency of the fastest that is not ours."""
    found = [row["p50_ms"] for each, row in times.items() if not _is_ours(each)]
    return min(found, default=None)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(base: float | None, value: float | None) -> str:
    return "-" if base is None or value is None else f"{base / value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
