"""The regions of calls beside a clock around the same calls: is time booked where it was spent?

    python -m benchmarks.books_from_outside ARTIFACT HxW SECONDS

Two instants of each call are taken by a clock that knows nothing of regions: when the session is
asked to run, and when it has answered. What lies before the first is the preparation, what lies
between them the run with its copies. The same calls are booked, so that no noise of the machine is
in the difference. Prints JSON: medians in ms by either, and the median of their distance in a call.
For `benchmarks/closed_books.py`, which starts it by the interpreter that the artifact needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from segdeploy.backends import open_session
from segdeploy.bench.call import bind_end_to_end
from segdeploy.bench.inputs import make_batch
from segdeploy.core.folder import load_folder
from segdeploy.core.session import Array, Session
from segdeploy.core.sizes import parse_size
from segdeploy.measure.regions import Region, sample_regions

RUNTIME = (Region.HOST_TO_DEVICE, Region.RUN, Region.DEVICE_TO_HOST)


class Watched:
    """A session that notes when it is asked and when it has answered, in ns."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs, self.outputs = session.inputs, session.outputs
        self.asked: list[int] = []
        self.answered: list[int] = []

    def run(self, batch: Array) -> dict[str, Array]:
        """Run as the session does."""
        self.asked.append(perf_counter_ns())
        found = self._session.run(batch)
        self.answered.append(perf_counter_ns())
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def watch(place: Path, size: tuple[int, int], seconds: float) -> dict[str, dict[str, float]]:
    """Return `booked_ms`, `watched_ms` and `distance_ms` of the preparation and of the run."""
    folder = load_folder(place)
    session = Watched(open_session(folder, "cpu", isolated=False))
    images = make_batch(folder.manifest, size, 1, as_images=True)
    call = bind_end_to_end(session, folder.manifest, images)
    begun: list[int] = []

    def watched() -> None:
        begun.append(perf_counter_ns())
        call()

    _, regions = sample_regions(watched, seconds, at_least=5)
    count = len(regions[Region.RUN])  # Calls before the first sample warm up.
    starts, asked, answered = (
        np.array(each[-count:]) / 1e6 for each in (begun, session.asked, session.answered)
    )
    booked = {
        "preprocess": np.array(regions[Region.PREPROCESS]),
        "runtime": np.sum([regions[each] for each in RUNTIME], axis=0),
    }
    seen = {"preprocess": asked - starts, "runtime": answered - asked}
    return {
        name: {
            "booked_ms": float(np.median(booked[name])),
            "watched_ms": float(np.median(seen[name])),
            "distance_ms": float(np.median(np.abs(booked[name] - seen[name]))),
        }
        for name in seen
    }


if __name__ == "__main__":
    named = parse_size(sys.argv[2])
    if named is None:
        raise SystemExit(__doc__)
    print(json.dumps(watch(Path(sys.argv[1]), named, float(sys.argv[3]))))
