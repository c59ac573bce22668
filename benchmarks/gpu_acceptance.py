"""Every GPU target that this machine can run, in one table: parity, latency, memory.

    .venv/bin/python benchmarks/gpu_acceptance.py [CHECKPOINT] [--data camvid:PATH]
    .venv/bin/python benchmarks/gpu_acceptance.py --cpu

Builds each target at one size, then for each device it can run on: compares it with the eager fp32
reference on the CPU (`verify`), takes its memory, and measures all that work in one interleaved run
(`bench`). A cell that cannot be built or run says why; nothing is estimated. With a GPU the result
is benchmarks/results/gpu-NAME.json; `--cpu` builds everything, runs what needs no GPU, and writes
only where `--out` says.

Memory of a GPU is read as the change of what NVML shows for GPU 0 while a session of its own
process is open and has run once: on a GPU that others use as well it is theirs too.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from segdeploy.backends import open_session
from segdeploy.bench.interleave import measure_interleaved
from segdeploy.bench.plan import BenchPlan
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.results import BenchResult
from segdeploy.export import ExportOutcome, export
from segdeploy.frameworks.cuda import Gpu, find_gpu, gpu_memory_mib
from segdeploy.measure import describe_environment
from segdeploy.verify import verify

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
DEVICES = {
    "onnx-fp32": ("cuda", "tensorrt"),
    "onnx-fp16": ("cuda", "tensorrt"),
    "onnx-int8": ("cuda", "tensorrt"),
    "tensorrt-fp32": ("cuda",),
    "tensorrt-fp16": ("cuda",),
    "tensorrt-int8": ("cuda",),
    "torchscript-fp32": ("cuda",),
    "aoti-fp32": ("cuda",),
    "aoti-bf16": ("cuda",),
}
NEEDS_GPU = "tensorrt"  # Backends of this name have no CPU form.
REFERENCE = "pytorch-fp32"


@dataclass
class Cell:
    """One target on one device; `why_not` is None where everything was done."""

    target: str
    device: str
    build_seconds: float | None = None
    size_mib: float | None = None
    passed: bool | None = None
    flip_rate: float | None = None
    hard_flip_rate: float | None = None
    latency_ms: dict[str, float | None] | None = None
    gpu_memory_mib: float | None = None
    peak_memory_mib: float | None = None
    why_not: str | None = None


def devices_of(target: str, *, on_cpu: bool) -> tuple[str, ...]:
    """Return where a target is tried; a GPU-only one is tried on its GPU, to hear why not."""
    if on_cpu and not target.startswith(NEEDS_GPU):
        return ("cpu",)
    return DEVICES[target]


def accept(
    checkpoint: Path, data: str, run: Path, targets: Sequence[str], size: tuple[int, int],
    *, on_cpu: bool, seconds: float,
) -> list[Cell]:  # fmt: skip
    """Return the cells of all targets, and of the reference on the same devices."""
    made = {
        each.target: each
        for each in export(
            checkpoint, targets, run, calibration=data, size=size, keep_going=len(targets) > 1
        )
        if each.requested
    }
    cells = [Cell(REFERENCE, "cpu" if on_cpu else "cuda")]
    folders = {id(cells[0]): checkpoint}
    for target in targets:
        for device in devices_of(target, on_cpu=on_cpu):
            cell = Cell(target, device, build_seconds=made[target].seconds)
            cells.append(cell)
            folders[id(cell)] = made[target].path
            fill_parity(cell, made[target], data, size)
    check_opens(cells[0], load_folder(checkpoint), size)
    for device in dict.fromkeys(cell.device for cell in cells):
        working = [c for c in cells if c.device == device and c.why_not is None]
        fill_latency(working, [folders[id(c)] for c in working], BenchPlan(
            size, 1, None, device, seconds, min(seconds, 2.0)
        ))  # fmt: skip
    return cells


def fill_parity(cell: Cell, made: ExportOutcome, data: str, size: tuple[int, int]) -> None:
    """Build, open, and compare one cell."""
    if made.artifact is None:
        cell.why_not = f"not built: {reason_of(made.error)}"
        return
    cell.size_mib = made.artifact.size_mib
    check_opens(cell, made.artifact, size)
    if cell.why_not is not None:
        return
    try:
        report = verify(made.path, data=data, device=cell.device)
    except SegDeployError as error:
        cell.why_not = f"not verified: {reason_of(error)}"
        return
    cell.passed, cell.flip_rate = report.passed, report.flip_rate
    cell.hard_flip_rate = report.hard_flip_rate


def check_opens(cell: Cell, folder: ModelFolder, size: tuple[int, int]) -> None:
    """Open a session in a process of its own, run it once, and note the GPU memory it took."""
    before = gpu_memory_mib()
    try:
        session = open_session(folder, cell.device, isolated=True)
        try:
            session.run(np.zeros((1, 3, *size), np.float32))
            after = gpu_memory_mib()
        finally:
            session.close()
    except SegDeployError as error:
        cell.why_not = f"not run: {reason_of(error)}"
        return
    if before is not None and after is not None and cell.device != "cpu":
        cell.gpu_memory_mib = after - before


def fill_latency(cells: Sequence[Cell], paths: Sequence[Path], plan: BenchPlan) -> None:
    """Measure all cells of one device in one interleaved run."""
    if not cells:
        return
    outcome = measure_interleaved(paths, plan, save=False)
    by_path: dict[str, BenchResult] = {str(Path(r.path).resolve()): r for r in outcome.results}
    for cell, path in zip(cells, paths, strict=True):
        result = by_path.get(str(path.resolve()))
        if result is None:
            why = "; ".join(reason_of(error) for error in outcome.failures) or "no result"
            cell.why_not = f"not measured: {why}"
            continue
        cell.latency_ms, cell.peak_memory_mib = result.latency_ms, result.peak_memory_mib


def reason_of(error: SegDeployError | None) -> str:
    """Return an error's message in one line."""
    return " ".join(error.message.split()) if error is not None else "unknown"


def render(cells: Sequence[Cell], title: str) -> Table:
    """Return the one table."""
    table = Table(title=title)
    for heading in ("target", "device", "build s", "MiB", "parity", "flips", "hard flips", "p50 ms",
                    "GPU MiB", "host MiB", "why not"):  # fmt: skip
        table.add_column(heading, overflow="fold")
    for cell in cells:
        median = (cell.latency_ms or {}).get("p50")
        table.add_row(
            cell.target, cell.device, _number(cell.build_seconds, ".1f"),
            _number(cell.size_mib, ".2f"), _VERDICTS[cell.passed], _number(cell.flip_rate, ".2e"),
            _number(cell.hard_flip_rate, ".2e"), _number(median, ".2f"),
            _number(cell.gpu_memory_mib, ".0f"), _number(cell.peak_memory_mib, ".0f"),
            cell.why_not or "",
        )  # fmt: skip
    return table


_VERDICTS = {None: "-", True: "passed", False: "failed"}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def result_file(gpu: Gpu) -> Path:
    """Return where the result of a GPU is kept."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return HERE / "results" / f"gpu-{name}.json"


def main(arguments: Sequence[str] | None = None) -> list[Cell]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT)
    parser.add_argument("--data", default="synthetic:360x480", help="calibrates and verifies")
    parser.add_argument("--size", default="360x480", help="HxW")
    parser.add_argument("--targets", default=",".join(DEVICES), help="comma-separated")
    parser.add_argument("--cpu", action="store_true", help="build all, run what needs no GPU")
    parser.add_argument("--seconds", type=float, default=6.0, help="of sampling a cell")
    parser.add_argument("--out", type=Path, help="JSON file in place of the usual one")
    parser.add_argument("--run", type=Path, help="run folder that is kept and reused")
    given = parser.parse_args(arguments)
    gpu = find_gpu()
    if gpu is None and not given.cpu:
        parser.error("no NVIDIA GPU and driver here; --cpu does what needs none")
    height, width = (int(side) for side in given.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        cells = accept(
            given.checkpoint, given.data, given.run or Path(scratch) / "run",
            given.targets.split(","), (height, width), on_cpu=given.cpu, seconds=given.seconds,
        )  # fmt: skip
    Console(width=200).print(render(cells, f"{gpu.name if gpu else 'no GPU'}, {given.size}"))
    out = given.out or (result_file(gpu) if gpu and not given.cpu else None)
    if out is not None:
        facts = {
            "gpu": dataclasses.asdict(gpu) if gpu else None,
            "checkpoint": given.checkpoint.name,
            "data": given.data.partition(":")[0],
            "size": [height, width],
            "cells": [dataclasses.asdict(cell) for cell in cells],
            "environment": describe_environment(),
        }
        write_json(out, facts)
    return cells


if __name__ == "__main__":
    main()
