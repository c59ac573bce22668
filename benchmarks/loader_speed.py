"""Does loading keep up with training? Both alone, in turns, on CamVid at batch 8 and 360x480.

    .venv/bin/python benchmarks/loader_speed.py --data camvid:PATH [--rounds 10] [--workers 2]

Each round drains a part of an epoch from the loader, as fast as it comes and with nothing else
running, without and with the cache of decoded images, then times steps of LRASPP-MobileNetV3-Large
(forward, loss, backward, AdamW) on a batch that is there already. Writes
benchmarks/results/loader_speed.json: all in images/s, by round, and the medians over rounds of
their ratios. Loading hides behind training where a ratio is above 1 and the loader's processes have
cores of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from segdeploy.core.files import write_json
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import ignore_value
from segdeploy.data import TRAIN, Dataset, open_dataset
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.cache import CachedDataset
from segdeploy.data.transforms import TrainingView, TrainTransform
from segdeploy.measure.environment import describe_environment
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.zoo import create_model, main_logits

HERE = Path(__file__).parent
MODEL, BATCH = "lraspp_mobilenet_v3_large", 8
AUGMENT = AugmentSpec(crop=(360, 480))
NUM_BATCHES, NUM_STEPS = 16, 3
CACHE_MIB = 512

Batch = tuple[Tensor, Tensor]


def measure_loader(dataset: Dataset, epoch: int, workers: int) -> tuple[float, Batch]:
    """Return images/s between the arrival of each worker's first batch and the end, and a batch.

    What was prepared before the clock starts is not counted: one batch of each worker.
    """
    transform = TrainTransform(AUGMENT, PreprocessSpec(), len(dataset.classes))
    batches = epoch_batches(len(dataset), BATCH, seed=0, epoch=epoch)[:NUM_BATCHES]
    loader = create_loader(TrainingView(dataset, transform, 0, epoch), batches, 0, 1, workers)
    arrivals = []
    for images, labels in loader:
        arrivals.append(time.perf_counter())
        batch = images, labels
    first = max(workers, 1) - 1
    return BATCH * (len(arrivals) - 1 - first) / (arrivals[-1] - arrivals[first]), batch


def create_step(num_classes: int) -> Callable[[Batch], None]:
    """Return a training step of the model."""
    torch.manual_seed(0)
    module = create_model(MODEL, num_classes).train()
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub.
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)

    def step(batch: Batch) -> None:
        images, labels = batch
        optimizer.zero_grad(set_to_none=True)
        logits = main_logits(module(images.contiguous(memory_format=torch.channels_last)))
        loss = functional.cross_entropy(logits, labels, ignore_index=ignore_value(num_classes))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def measure_steps(step: Callable[[Batch], None], batch: Batch) -> float:
    """Return images/s of a few training steps."""
    started = time.perf_counter()
    for _ in range(NUM_STEPS):
        step(batch)
    return BATCH * NUM_STEPS / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="camvid:PATH")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "loader_speed.json")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.data, TRAIN)
    cached = CachedDataset(dataset, CACHE_MIB * 2**20)
    step = create_step(len(dataset.classes))
    measure_steps(step, measure_loader(dataset, 0, arguments.workers)[1])  # Warm-up of both.
    loading, loading_cached, training = [], [], []
    for epoch in range(1, arguments.rounds + 1):
        rate, batch = measure_loader(dataset, epoch, arguments.workers)
        loading.append(rate)
        loading_cached.append(measure_loader(cached, epoch, arguments.workers)[0])
        training.append(measure_steps(step, batch))
    ratio, ratio_cached = (
        statistics.median(a / b for a, b in zip(rates, training, strict=True))
        for rates in (loading, loading_cached)
    )
    document = {
        "model": MODEL, "batch_size": BATCH, "augment": dataclasses.asdict(AUGMENT),
        "workers": arguments.workers, "threads": torch.get_num_threads(),
        "rounds": arguments.rounds, "loader_images_s": loading,
        "cached_loader_images_s": loading_cached, "cache_mib": cached.num_bytes / 2**20,
        "training_images_s": training, "loader_times_faster": ratio,
        "cached_loader_times_faster": ratio_cached, "environment": describe_environment(),
    }  # fmt: skip
    write_json(arguments.out, document)
    workers = f"with {arguments.workers} workers"
    print(f"loader   {statistics.median(loading):7.1f} images/s {workers}: {ratio:.2f} times")
    print(f"cached   {statistics.median(loading_cached):7.1f} images/s: {ratio_cached:.2f} times")
    print(f"training {statistics.median(training):7.1f} images/s, step after step")


if __name__ == "__main__":
    main()
