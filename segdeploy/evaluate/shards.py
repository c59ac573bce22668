"""Counting over several processes: every image is in exactly one shard, and int64 counts add up.

Three ways, one result: this process alone; N spawned processes, which need nothing but the
artifact's own runtime; ranks that torchrun started, which sum through torch.distributed. Spawned
processes take small chunks, so that Ctrl-C and a failure end them within a few images.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.core.errors import SegDeployError, TrainError
from segdeploy.data import open_dataset
from segdeploy.data.sample import Dataset
from segdeploy.frameworks.interrupts import deaf_children
from segdeploy.metrics import ConfusionMatrix, accumulate, count_labels

Progress = Callable[[int, int], object]
"""Called with (images done, images in all)."""

_CHUNK = 4


@dataclass(frozen=True)
class Job:
    """What every process needs to know; small, since it is sent with each chunk."""

    path: Path
    data: str
    split: str
    device: str


def count_alone(
    predictor: Predictor, dataset: Dataset, indices: Sequence[int], progress: Progress | None
) -> ConfusionMatrix:
    """Return the confusion matrix of some images, in this process."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(indices))

    matrix, _ = accumulate(
        (dataset[i] for i in indices),
        lambda image: predictor.predict(image).labels,
        count_labels(dataset.task, len(dataset.classes)),
        progress=tick,
    )
    return matrix


def count_spawned(
    job: Job, indices: Sequence[int], num_labels: int, nproc: int, progress: Progress | None
) -> ConfusionMatrix:
    """Return the confusion matrix of some images, by `nproc` processes.

    Raises:
        SegDeployError: What a process raised, or that one ended without an answer.
    """
    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    threads = max(1, (os.cpu_count() or 1) // nproc)
    total, done = ConfusionMatrix(num_labels), 0
    pool = ProcessPoolExecutor(
        min(nproc, len(chunks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_process,
        initargs=(threads,),
    )
    try:
        with deaf_children():
            waiting = {pool.submit(_count_chunk, job, chunk) for chunk in chunks}
        while waiting:
            ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in ready:
                counts = future.result()
                total += ConfusionMatrix(num_labels, counts)
                done += 1
            if progress is not None:
                progress(min(len(indices), done * _CHUNK), len(indices))
    except BrokenProcessPool as error:
        raise SegDeployError(
            f"One of {nproc} evaluation processes ended without an answer; it was killed or ran "
            "out of memory.",
            hint="Try a smaller --nproc.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return total


def _prepare_process(threads: int) -> None:
    """Runs first in a spawned process, before any runtime is imported there."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    share = min(threads, int(chosen)) if chosen.isdigit() and int(chosen) > 0 else threads
    os.environ["OMP_NUM_THREADS"] = str(share)  # torch reads it, and our ONNX Runtime door.


def _count_chunk(job: Job, indices: Sequence[int]) -> NDArray[np.int64]:
    predictor, dataset = _open_once(job)
    return count_alone(predictor, dataset, indices, None).matrix


@cache
def _open_once(job: Job) -> tuple[Predictor, Dataset]:
    return open_predictor(job.path, job.device), open_dataset(job.data, job.split)


def is_launched() -> bool:
    """Return True in a rank that torchrun started beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Return True in the one process that writes and prints."""
    return not is_launched() or os.environ["RANK"] == "0"


def count_ranks(
    count: Callable[[Sequence[int]], ConfusionMatrix],
    indices: Sequence[int],
    num_labels: int,
    device: str,
) -> ConfusionMatrix:
    """Return the confusion matrix over all ranks, the same in each of them.

    Args:
        count: Counts this rank's images.
        indices: Of all images; the same list in every rank.
        num_labels: K of the matrix.
        device: `cpu` or `cuda`.

    Raises:
        SegDeployError: What this rank raised, or that another rank failed or is lost.
    """
    import torch

    from segdeploy.frameworks.distributed import process_group

    failure: SegDeployError | None = None
    shard = torch.zeros(num_labels * num_labels + 1, dtype=torch.int64)
    try:
        with process_group(device) as group:
            try:
                matrix = count(indices[group.rank :: group.world])
                shard[:-1] = torch.from_numpy(matrix.matrix.ravel())
            except SegDeployError as error:
                failure = error
                shard[-1] = 1
            summed = group.sum(shard.to(group.device)).cpu().numpy()
    except TrainError as error:
        raise SegDeployError(
            f"The evaluation lost another process: {error.message}",
            hint="See the log of the rank that died.",
        ) from error
    if failure is not None:
        raise failure
    if summed[-1]:
        raise SegDeployError(f"{summed[-1]} other ranks failed.", hint="See their messages.")
    return ConfusionMatrix(num_labels, summed[:-1].reshape(num_labels, num_labels))
