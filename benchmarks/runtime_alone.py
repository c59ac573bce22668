"""What a runtime takes of each frame, timed from outside: the stages of a call without any books.

    python -m benchmarks.runtime_alone ARTIFACT HxW SECONDS

As an app would write it: prepare the frame, run, decide; only the run is timed. A loop of runs
alone would not do: with NumPy in between, the runtime's threads fall asleep and its data leave the
caches, and on two threads the same run takes up to a third longer. Prints two numbers: the medians,
in ms, of the run and of the preparation. For `benchmarks/closed_books.py`, which starts it by the
interpreter that the artifact needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from segdeploy.backends import open_session
from segdeploy.bench.inputs import make_batch
from segdeploy.core.contract import InputKind
from segdeploy.core.folder import load_folder
from segdeploy.core.preprocess import normalize_image
from segdeploy.core.sizes import parse_size


def main() -> None:
    place, size, seconds = sys.argv[1:]
    folder = load_folder(Path(place))
    manifest = folder.manifest
    shape = parse_size(size)
    if shape is None:
        raise SystemExit(__doc__)
    (image,) = make_batch(manifest, shape, 1, as_images=True)
    run_ms, prepare_ms = [], []
    session = open_session(folder, "cpu", isolated=False)
    end = time.perf_counter() + float(seconds)
    while time.perf_counter() < end:
        started = time.perf_counter()
        frame = (
            image
            if manifest.io.input is InputKind.IMAGE
            else normalize_image(image, manifest.preprocess)
        )
        prepared = time.perf_counter()
        found = session.run(frame[None])
        done = time.perf_counter()
        for each in found.values():
            if each.ndim == 4:
                np.argmax(each, axis=1)
        run_ms.append(1e3 * (done - prepared))
        prepare_ms.append(1e3 * (prepared - started))
    warm = len(run_ms) // 4
    print(median(run_ms[warm:]), median(prepare_ms[warm:]))


if __name__ == "__main__":
    main()
