"""The tables of `segdeploy bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from segdeploy.bench.profile import LayerProfile
    from segdeploy.core.results import BenchResult

_MOST_LAYERS = 20
_SHORT = {
    "preprocess": "pre ms", "host_to_device": "copy in", "run": "run", "device_to_host": "copy out",
    "postprocess": "post", "end_to_end": "end to end", "remainder": "rest",
}  # fmt: skip


def render_results(results: Sequence[BenchResult]) -> None:
    """Print latency and, where they were asked for, starts, regions, throughput, sustained runs."""
    _print(_latency(results))
    if any(len(result.launches) > 1 for result in results):
        _print(_starts(results))
    if any(result.region_samples_ms for result in results):
        _print(_regions(results))
    if any(result.throughput for result in results):
        _print(_throughput(results))
    if any(result.sustained for result in results):
        _print(_sustained(results))
    shape = "x".join(map(str, results[0].input_shape))
    environment = results[0].environment
    print(  # noqa: T201
        f"input {shape}, {environment['threads']} threads, {environment['device']}, "
        f"{environment['cpu']}"
    )


def _latency(results: Sequence[BenchResult]) -> Table:
    """Return the main table; ratios are to the first artifact that was measured."""
    table = _table("p50 ms", "95 %", "p90 ms", "p99 ms", "ratio", "img/s", "MiB")
    first = results[0].latency_ms["p50"]
    for result in results:
        latency, interval = result.latency_ms, result.latency_ci_ms["p50"]
        ratio = latency["p50"] / first if latency["p50"] and first else None
        table.add_row(
            Path(result.path).name, number(latency["p50"], 2),
            "-" if interval is None else f"{interval[0]:.1f}..{interval[1]:.1f}",
            *(number(latency[name], 2) for name in ("p90", "p99")),
            number(ratio, 3), number(result.throughput_img_s, 1),
            number(result.peak_memory_mib, 0),
        )  # fmt: skip
    return table


def _starts(results: Sequence[BenchResult]) -> Table:
    names = ("process", "load", "first_run", "total")
    table = _table(*(f"{name.replace('_', ' ')} ms" for name in names))
    for result in results:
        found = result.cold_start_ms or {}
        table.add_row(Path(result.path).name, *(number(found.get(name), 0) for name in names))
    return table


def _regions(results: Sequence[BenchResult]) -> Table:
    names = list(next(result.regions_ms for result in results if result.regions_ms) or ())
    table = _table(*(_SHORT.get(name, name) for name in names))
    for result in results:
        found = result.regions_ms or {}
        table.add_row(Path(result.path).name, *(number(found.get(name), 3) for name in names))
    return table


def _throughput(results: Sequence[BenchResult]) -> Table:
    table = _table("batch", "streams", "img/s")
    for result in results:
        for row in result.throughput:
            table.add_row(
                Path(result.path).name, str(row["batch_size"]), str(row["streams"]),
                number(row["img_s"], 1),
            )  # fmt: skip
    return table


def _sustained(results: Sequence[BenchResult]) -> Table:
    table = _table("minutes", "first p50 ms", "last p50 ms", "ratio", "slower", "throttled")
    for result in results:
        found = result.sustained
        if found is not None:
            table.add_row(
                Path(result.path).name, number(found["seconds"] / 60, 1),
                number(found["first_p50_ms"], 2), number(found["last_p50_ms"], 2),
                number(found["ratio"], 3), "yes" if found["is_slower"] else "no",
                number(found["num_throttled"], 0),
            )  # fmt: skip
    return table


def render_profiles(profiles: Sequence[LayerProfile]) -> None:
    """Print the layers that take longest, and what the others take together."""
    for profile in profiles:
        table = _table("type", "ms", "share", first="layer")
        for layer in profile.layers[:_MOST_LAYERS]:
            table.add_row(
                layer["name"], layer["type"], number(layer["ms"], 3), f"{layer['share']:.1%}"
            )
        rest = profile.layers[_MOST_LAYERS:]
        if rest:
            ms = sum(layer["ms"] for layer in rest)
            share = sum(layer["share"] for layer in rest)
            table.add_row(f"{len(rest)} more", "", number(ms, 3), f"{share:.1%}")
        share = profile.other_ms / profile.total_ms if profile.total_ms else 0.0
        table.add_row("between layers", "", number(profile.other_ms, 3), f"{share:.1%}")
        _print(table)
        shape = "x".join(map(str, profile.input_shape))
        print(f"{profile.target}: {profile.total_ms:.2f} ms a call, input {shape}")  # noqa: T201


def number(value: float | None, digits: int) -> str:
    """Return a cell."""
    return "-" if value is None else f"{value:.{digits}f}"


def _table(*headings: str, first: str = "artifact") -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    from rich.console import Console

    Console().print(table)
