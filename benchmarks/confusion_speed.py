"""Confusion matrices of CamVid-sized batches: ours and torchmetrics', interleaved in one run.

    .venv/bin/python benchmarks/confusion_speed.py [--device cpu|cuda] [--threads 1]

Writes benchmarks/results/confusion_speed.json (or confusion_speed_cuda.json). Each round times
every way once on the same four labelled and predicted maps of 360x480, K = 11, 4 % ignored; a
ratio is the median over rounds of torchmetrics' time over ours in the same round. Both get the
data in the type that suits them best; every way must count the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.core.files import write_json
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.measure.environment import describe_environment

prepare_torchvision()

import torch  # noqa: E402  after its door
from torchmetrics import classification  # noqa: E402

from segdeploy.metrics import ConfusionMatrix  # noqa: E402
from segdeploy.metrics.confusion_torch import TensorConfusionMatrix  # noqa: E402

HERE = Path(__file__).parent
SHAPE, NUM_CLASSES, IGNORED = (4, 360, 480), 11, 0.04
ROUNDS, WARM_UP = 60, 5

THEIRS: Any = classification.MulticlassConfusionMatrix

Ways = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]


def draw_batch() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return labels and predictions uint8; blocks of 8, since real maps have regions."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, NUM_CLASSES, (SHAPE[0], SHAPE[1] // 8, SHAPE[2] // 8))
    label = blocks.repeat(8, 1).repeat(8, 2).astype(np.uint8)
    noise = rng.integers(0, NUM_CLASSES, SHAPE).astype(np.uint8)
    prediction = np.where(rng.random(SHAPE) < 0.1, noise, label)
    label[rng.random(SHAPE) < IGNORED] = 255
    return label, prediction


def create_ways(device: str) -> Ways:
    """Return by name how to count a batch, and how to read the matrix."""
    label, prediction = draw_batch()
    ways: Ways = {}
    if device == "cpu":
        plain = ConfusionMatrix(NUM_CLASSES)
        ways["segdeploy_numpy"] = (
            partial(plain.update, label, prediction), partial(getattr, plain, "matrix"),
        )  # fmt: skip
    bytes_ = [torch.from_numpy(a).to(device) for a in (label, prediction)]
    longs = [tensor.long() for tensor in bytes_]
    for suffix, (truth, guess) in (("uint8", bytes_), ("int64", longs)):
        ours = TensorConfusionMatrix(NUM_CLASSES, device)
        ways[f"segdeploy_torch_{suffix}"] = (
            partial(ours.update, truth, guess), partial(getattr, ours, "matrix"),
        )  # fmt: skip
        for checked in (True, False):
            theirs = THEIRS(NUM_CLASSES, ignore_index=255, validate_args=checked).to(device)
            ways[f"torchmetrics_{suffix}{'' if checked else '_unchecked'}"] = (
                partial(theirs.update, guess, truth), theirs.compute,
            )  # fmt: skip
    return ways


def measure(ways: Ways, device: str) -> dict[str, list[float]]:
    """Return the times of each way in ms, round by round, the order turned each time."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    samples: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(-WARM_UP, ROUNDS):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wait()
            started = time.perf_counter()
            ways[name][0]()
            wait()
            if turn >= 0:
                samples[name].append(1000 * (time.perf_counter() - started))
    return samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ways = create_ways(arguments.device)
    samples = measure(ways, arguments.device)
    matrices = [torch.as_tensor(read()).cpu() for _, read in ways.values()]
    for matrix in matrices:
        if not torch.equal(matrix, matrices[0]):
            raise SystemExit("the counts differ")
    median = {name: statistics.median(times) for name, times in samples.items()}
    best = min((n for n in ways if n.startswith("torchmetrics")), key=lambda n: median[n])
    ratios = {
        name: statistics.median(t / o for t, o in zip(samples[best], samples[name], strict=True))
        for name in ways
        if name.startswith("segdeploy")
    }
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    document = {
        "batch": list(SHAPE), "num_classes": NUM_CLASSES, "device": arguments.device,
        "threads": arguments.threads, "rounds": ROUNDS, "median_ms": median,
        "fastest_torchmetrics": best, "times_faster_than_it": ratios,
        "environment": describe_environment(),
    }  # fmt: skip
    write_json(HERE / "results" / f"confusion_speed{suffix}.json", document)
    for name, value in median.items():
        ratio = f"{ratios[name]:6.1f} x faster than {best}" if name in ratios else ""
        print(f"{name:32} {value:8.3f} ms {ratio}")


if __name__ == "__main__":
    main()
