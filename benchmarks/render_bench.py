"""The blocks of docs/bench.md."""

from __future__ import annotations

from benchmarks.render_parts import cpu_of, read


def closed_books() -> str:
    """Return regions and remainder of every target, and what the clock costs."""
    found = read("closed_books")
    done = [row for row in found["rows"] if "error" not in row]
    names = ("preprocess", "host_to_device", "run", "device_to_host", "postprocess")
    lines = [
        "| target | preprocess | copy in | run | copy out | postprocess | all, ms | remainder |",
        "|---" * 8 + "|",
    ]
    for row in sorted(done, key=lambda row: row["target"]):
        regions = row["regions_ms"]
        parts = " | ".join(f"{regions[name]:.2f}" for name in names)
        lines.append(
            f"| {row['target']} | {parts} | {regions['end_to_end']:.2f} "
            f"| {row['remainder_share']:.3%} |"
        )
    missing = [row["target"] for row in found["rows"] if "error" in row]
    rest = f" Not here: {', '.join(missing)}." if missing else ""
    lines.append(
        f"\nLRASPP-MobileNetV3 at {found['size']}, {done[0]['threads']} threads, "
        f"{cpu_of(found['environment'])}.{rest} Made by `benchmarks/closed_books.py`."
    )
    checked = [row for row in done if "runtime_off_share" in row]
    if checked:
        runtime = max(row["runtime_off_share"] for row in checked)
        before = max(row["preprocess_off_share"] for row in checked)
        lines.append(
            f"\nA clock around the session, in the same calls, differs from `run` with its copies "
            f"by {runtime:.2%} of a call at most, from `preprocess` by {before:.2%} "
            f"({len(checked)} targets)."
        )
    clock = read("clock_overhead")
    lines.append(
        f"\nThe clock costs a call {clock['empty_us']['sampled']:.1f} us, with books "
        f"{clock['empty_us']['booked']:.1f} us ({clock['share_of_1_ms']['booked']:.2%} of a "
        "millisecond). Made by `benchmarks/clock_overhead.py`."
    )
    return "\n".join(lines)
