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

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.errors import SegDeployError, TrainError
from segdeploy.data import open_dataset
from segdeploy.data.sample import Dataset
from segdeploy.evaluate.tally import Tally, Wanted, fill_record
from segdeploy.frameworks.interrupts import deaf_children
from segdeploy.metrics import count_each

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
    wanted: Wanted
    tta: TtaSpec | None = None
    window: SlidingWindow | None = None


def count_alone(
    job: Job,
    predictor: Predictor,
    dataset: Dataset,
    indices: Sequence[int],
    progress: Progress | None,
) -> Tally:
    """Return the counts of some images, in this process."""
    wanted, tally = job.wanted, Tally.empty(job.wanted, len(indices))
    images = count_each(
        (dataset[i] for i in indices),
        lambda image: predictor.predict(image, with_confidence=wanted.saliency),
        wanted.num_labels,
    )
    for place, (sample, found, matrix) in enumerate(images):
        tally.confusion += matrix.matrix
        fill_record(tally.records[place], sample.label, found, matrix)
        if progress is not None:
            progress(place + 1, len(indices))
    return tally


def count_spawned(job: Job, indices: Sequence[int], nproc: int, progress: Progress | None) -> Tally:
    """Return the counts of some images, by `nproc` processes.

    Raises:
        SegDeployError: What a process raised, or that one ended without an answer.
    """
    chunks = [slice(start, start + _CHUNK) for start in range(0, len(indices), _CHUNK)]
    threads = max(1, (os.cpu_count() or 1) // nproc)
    total, done = Tally.empty(job.wanted, len(indices)), 0
    pool = ProcessPoolExecutor(
        min(nproc, len(chunks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_process,
        initargs=(threads,),
    )
    try:
        with deaf_children():
            places = {pool.submit(_count_chunk, job, indices[part]): part for part in chunks}
        waiting = set(places)
        while waiting:
            ready, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in ready:
                total.add(future.result(), places[future])
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


def _count_chunk(job: Job, indices: Sequence[int]) -> Tally:
    predictor, dataset = _open_once(job)
    return count_alone(job, predictor, dataset, indices, None)


@cache
def _open_once(job: Job) -> tuple[Predictor, Dataset]:
    predictor = open_predictor(job.path, job.device, tta=job.tta, window=job.window)
    return predictor, open_dataset(job.data, job.split)


def is_launched() -> bool:
    """Return True in a rank that torchrun started beside others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Return True in the one process that writes and prints."""
    return not is_launched() or os.environ["RANK"] == "0"


def count_ranks(job: Job, count: Callable[[Sequence[int]], Tally], indices: Sequence[int]) -> Tally:
    """Return the counts of all ranks, the same in each of them.

    Args:
        job: What is counted, and where.
        count: Counts this rank's images.
        indices: Of all images; the same list in every rank.

    Raises:
        SegDeployError: What this rank raised, or that another rank failed or is lost.
    """
    import torch

    from segdeploy.frameworks.distributed import process_group

    failure: SegDeployError | None = None
    total = Tally.empty(job.wanted, len(indices))
    try:
        with process_group(job.device) as group:
            try:
                mine = slice(group.rank, None, group.world)
                total.add(count(indices[mine]), mine)
            except SegDeployError as error:
                failure = error
            shard = torch.from_numpy(np.append(total.flat, int(failure is not None)))
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
    return Tally.from_flat(job.wanted, summed[:-1])
