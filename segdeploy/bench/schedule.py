"""Who runs when: all entries of a launch in ABBA order, launch after launch.

A B C, C B A, A B C, ...: a slow change of frequency or load cancels out of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from segdeploy.bench.child import pinned
from segdeploy.bench.entry import (
    Entry,
    Step,
    attempt,
    finish,
    launch,
    measure_throughput,
    sample,
)
from segdeploy.bench.plan import NUM_BLOCKS, BenchPlan
from segdeploy.bench.streams import limited_threads
from segdeploy.bench.sustained import run_sustained

Progress = Callable[[float], None]


def run_all(entries: Sequence[Entry], plan: BenchPlan, progress: Progress) -> None:
    """Run every launch; an entry that fails is left out from there."""
    with ExitStack() as stack:
        if plan.in_process:
            stack.enter_context(limited_threads(plan.num_threads))
            stack.enter_context(pinned(plan.affinity))
        try:
            order = [turn for index in range(plan.launches) for turn in turns(entries, plan, index)]
            for done, (step, entry) in enumerate(order, start=1):
                is_over = step is run_sustained and any(each.is_interrupted for each in entries)
                if not is_over:
                    attempt(step, entry, plan)
                progress(done / len(order))
        finally:
            for entry in entries:
                entry.stop()


def turns(entries: Sequence[Entry], plan: BenchPlan, index: int) -> list[tuple[Step, Entry]]:
    """Return the steps of one launch; throughput and sustained runs belong to the last."""
    order: list[tuple[Step, Entry]] = [(launch, entry) for entry in _in_turn(entries, index)]
    for block in range(NUM_BLOCKS):
        order += [(sample, entry) for entry in _in_turn(entries, block)]
    if index == plan.launches - 1:
        for batch_size in plan.throughput_sizes:
            step = measure_throughput(batch_size)
            order += [(step, entry) for half in (0, 1) for entry in _in_turn(entries, half)]
        if plan.sustained_s:
            order += [(run_sustained, entry) for entry in entries]
    return order + [(finish, entry) for entry in entries]


def _in_turn(entries: Sequence[Entry], index: int) -> list[Entry]:
    return list(entries) if index % 2 == 0 else list(reversed(entries))
