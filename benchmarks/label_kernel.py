"""From low-resolution logits to a label map: five ways, interleaved in one run.

    .venv/bin/python benchmarks/label_kernel.py [--data camvid:../shared/data/camvid]

Writes benchmarks/results/label_kernel.json. The logits are those of the trained CamVid LRASPP on
validation images, resized to 520x520 and to 1024x2048. Its 11 classes are brought to 21 and 19 by
planes that nearly never win (its own, mirrored and lowered), so that time and memory are those of
the usual benchmarks; boundary shares are of its own 11 classes, fp32 and int8. Every way must give
the labels of the reference; torch rounds coordinates otherwise, and its pixels are counted.

Peak memory is that of a process of its own above what it held before the call.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.files import write_json
from segdeploy.core.preprocess import resize_image
from segdeploy.core.task import Task
from segdeploy.measure.environment import describe_environment
from segdeploy.upsampling import reference_labels, upsample_labels
from segdeploy.upsampling.kernel import compiled_form
from segdeploy.upsampling.labels import fill_labels, numpy_form
from segdeploy.upsampling.reference import find_axis

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
CASES = (((520, 520), 21), ((1024, 2048), 19))
ROUNDS, WARM_UP, IMAGES, CALIBRATION_IMAGES = 30, 3, 8, 8
Logits = NDArray[np.float32]
Way = Callable[[Logits, tuple[int, int]], Any]


def by_reference(low: Logits, size: tuple[int, int]) -> Any:
    return reference_labels(low, size, align_corners=False, task=Task.MULTICLASS)


def by_torch(low: Logits, size: tuple[int, int]) -> Any:
    import torch
    from torch.nn import functional as F  # noqa: N812  torch's own convention

    full = F.interpolate(torch.from_numpy(low), size, mode="bilinear", align_corners=False)
    return full.argmax(dim=1).numpy()


def by_kernel(form: Any) -> Way:
    def run(low: Logits, size: tuple[int, int]) -> Any:
        return upsample_labels(
            low, size, align_corners=False, task=Task.MULTICLASS, num_labels=low.shape[1], form=form
        )

    return run


WAYS: dict[str, Way] = {
    "reference (NumPy, all pixels)": by_reference,
    "torch interpolate + argmax, 2 threads": by_torch,
    "kernel, NumPy": by_kernel(numpy_form),
    "kernel, numba, 1 thread": by_kernel(compiled_form(1)),
    "kernel, numba, 2 threads": by_kernel(compiled_form(2)),
}


def with_classes(low: Logits, num_classes: int) -> Logits:
    """Return the logits with more planes: their own, mirrored and lowered."""
    lowered = low[:, :, ::-1, ::-1] - np.ptp(low)
    more = [lowered[:, k % low.shape[1]] for k in range(num_classes - low.shape[1])]
    return np.ascontiguousarray(np.concatenate([low, np.stack(more, axis=1)], axis=1))


def make_logits(
    data: str, size: tuple[int, int], run: Path, num_calibration: int
) -> dict[str, Logits]:
    """Return the low-resolution logits of validation images, by precision."""
    from segdeploy.backends import open_session
    from segdeploy.core.folder import load_artifact
    from segdeploy.data import VAL, open_dataset
    from segdeploy.export import export

    io = IoContract(InputKind.IMAGE, OutputKind.LOW_LOGITS)
    targets = ["onnx-fp32", "onnx-int8"]
    made = export(
        CHECKPOINT, targets, run, io=io, size=size, calibration=data,
        num_calibration_images=num_calibration,
    )  # fmt: skip
    dataset = open_dataset(data, VAL)
    chosen = np.linspace(0, len(dataset) - 1, IMAGES).round().astype(int)
    found = {}
    for outcome in made[:2]:
        artifact = load_artifact(outcome.path)
        session = open_session(artifact)
        images = [resize_image(dataset[int(i)].image, size, artifact.manifest.preprocess)
                  for i in chosen]  # fmt: skip
        found[outcome.target] = np.concatenate(
            [session.run(image[None])["low_logits"] for image in images]
        )
        session.close()
    return found


def boundary_shares(low: Logits, size: tuple[int, int]) -> list[float]:
    """Return for each image which part of its cells is computed."""
    rows, columns = (
        find_axis(n, side, align_corners=False) for n, side in zip(low.shape[2:], size, strict=True)
    )
    out = np.empty(size, np.uint8)
    cells = (len(rows.starts) - 1) * (len(columns.starts) - 1)
    return [fill_labels(one, Task.MULTICLASS, rows, columns, out) / cells for one in low]


def measure_times(low: Logits, size: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Return the times of every way in ms, one image a call, all ways in turn."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(WARM_UP + rounds):
        image = low[turn % len(low)][None]
        for name, way in WAYS.items() if turn % 2 else reversed(WAYS.items()):
            start = time.perf_counter()
            way(image, size)
            if turn >= WARM_UP:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def peak_mib(way: str, file: Path, size: tuple[int, int]) -> float:
    """Return the memory that one call takes at its peak, in a process of its own."""
    line = [sys.executable, __file__, "--memory", way, str(file), *map(str, size)]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def print_peak(way: str, file: str, size: tuple[int, int]) -> None:
    small = np.zeros((1, 3, 4, 4), np.float32)
    WAYS[way](small, (8, 8))  # Imports and compiles.
    low = np.load(file)
    before = status_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # The peak starts anew.
    WAYS[way](low, size)
    print(status_mib("VmHWM") - before)


def status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure_case(
    size: tuple[int, int], num_classes: int, asked: argparse.Namespace
) -> dict[str, Any]:
    made = make_logits(asked.data, size, asked.out, asked.calibration_images)
    low = with_classes(made["onnx-fp32"], num_classes)
    expected = [by_reference(image[None], size) for image in low]
    rows = []
    times = measure_times(low, size, asked.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "low.npy"
        np.save(file, low[:1])
        for name, way in WAYS.items():
            wrong = [int((way(image[None], size) != right).sum())
                     for image, right in zip(low, expected, strict=True)]  # fmt: skip
            rows.append(
                {
                    "way": name,
                    "p50_ms": statistics.median(times[name]),
                    "min_ms": min(times[name]),
                    "peak_mib": peak_mib(name, file, size),
                    "pixels_unlike_reference": sum(wrong),
                }
            )
    return {
        "size": list(size),
        "num_classes": num_classes,
        "low_size": list(low.shape[2:]),
        "num_images": len(low),
        "num_pixels": int(np.prod(size)) * len(low),
        "rows": rows,
        "boundary_share": {
            target: statistics.mean(boundary_shares(logits, size))
            for target, logits in made.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=f"camvid:{HERE.parent.parent / 'shared/data/camvid'}")
    parser.add_argument("--out", type=Path, default=HERE.parent / "runs" / "label-kernel")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--calibration-images", type=int, default=CALIBRATION_IMAGES)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "label_kernel.json")
    parser.add_argument("--memory", nargs=4, metavar=("WAY", "FILE", "H", "W"))
    asked = parser.parse_args()
    if asked.memory:
        way, file, height, width = asked.memory
        print_peak(way, file, (int(height), int(width)))
        return
    import torch

    torch.set_num_threads(2)
    cases = [measure_case(size, k, asked) for size, k in CASES]
    write_json(asked.result, {"cases": cases, "environment": describe_environment()})
    for case in cases:
        print(case["size"], case["num_classes"], case["boundary_share"])
        for row in case["rows"]:
            print(row)


if __name__ == "__main__":
    main()
