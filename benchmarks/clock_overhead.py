"""What the clock adds to a call of one millisecond: bare, sampled, and with books of five regions.

    .venv/bin/python benchmarks/clock_overhead.py [--rounds 200]

Writes benchmarks/results/clock_overhead.json. The call spins for 1 ms of processor time and walks
through the five regions; the three ways alternate in blocks of 20 calls, the order reversed each
round, and the shares are of the block medians' ratio. Beside them: what the empty loop of each way
costs a call, which no noise of the millisecond can hide.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

from segdeploy.core.files import write_json
from segdeploy.measure import describe_environment
from segdeploy.measure.clock import sample_calls
from segdeploy.measure.regions import Region, enter, sample_regions

HERE = Path(__file__).parent
CALLS, EMPTY_CALLS, CALL_NS = 20, 20_000, 1_000_000
Call = Callable[[], None]


def spin() -> None:
    """Spend a millisecond."""
    end = perf_counter_ns() + CALL_NS
    while perf_counter_ns() < end:
        pass


def walk() -> None:
    """Visit all regions, and spend no time."""
    for region in Region:
        enter(region)
    enter(None)


def nothing() -> None:
    pass


def spin_and_walk() -> None:
    walk()
    spin()


def bare(call: Call, calls: int) -> None:
    for _ in range(calls):
        call()


def sampled(call: Call, calls: int) -> None:
    sample_calls(call, 0, at_least=calls)


def booked(call: Call, calls: int) -> None:
    sample_regions(call, 0, at_least=calls)


def per_call_us(way: Callable[[Call, int], None], call: Call, calls: int) -> float:
    start = perf_counter_ns()
    way(call, calls)
    return (perf_counter_ns() - start) / calls / 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    ways = {"bare": (bare, spin), "sampled": (sampled, spin), "booked": (booked, spin_and_walk)}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds):
        names = list(ways) if index % 2 == 0 else list(reversed(ways))
        for name in names:
            way, call = ways[name]
            found[name].append(per_call_us(way, call, CALLS))
    base = statistics.median(found["bare"])
    ends = {"sampled": (sampled, nothing), "booked": (booked, walk), "no books": (bare, walk)}
    empty = {
        name: min(per_call_us(way, call, EMPTY_CALLS) for _ in range(5))
        for name, (way, call) in ends.items()
    }
    result = {
        "call_us": base,
        "overhead_share": {
            name: statistics.median(us) / base - 1 for name, us in found.items() if name != "bare"
        },
        "empty_us": empty,
        "share_of_1_ms": {name: us / 1000 for name, us in empty.items()},
        "rounds": rounds,
        "environment": describe_environment(),
    }
    write_json(HERE / "results" / "clock_overhead.json", result)
    print({name: f"{us:.2f} us" for name, us in empty.items()})
    print({name: f"{statistics.median(us) / base - 1:.3%}" for name, us in found.items()})


if __name__ == "__main__":
    main()
