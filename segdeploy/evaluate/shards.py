"""Counting over several processes: every image is in exactly one shard, and int64 counts add up.

Three ways, one result: this process alone; N spawned processes, which need nothing but the
artifact's own runtime; ranks that torchrun or SLURM started, which sum through torch.distributed.
Spawned processes take small chunks, so that Ctrl-C and a failure end them within a few images.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.errors import SegDeployError, TrainError
from segdeploy.data import TRAIN, open_dataset
from segdeploy.data.apart import check_apart, read_calibrated
from segdeploy.data.sample import Dataset
from segdeploy.evaluate.instances import encode_prediction
from segdeploy.evaluate.tally import Tally, Wanted, fill_record
from segdeploy.frameworks.interrupts import deaf_children
from segdeploy.frameworks.launch_env import read_launch
from segdeploy.frameworks.torch import require_torch
from segdeploy.metrics import count_each

if TYPE_CHECKING:
    from segdeploy.frameworks.distributed import Group

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
    threshold: float | None = None

    def open(self) -> Predictor:
        """Open the model."""
        return open_predictor(
            self.path, self.device, tta=self.tta, window=self.window, threshold=self.threshold
        )


def count_alone(
    job: Job,
    predictor: Predictor,
    dataset: Dataset,
    indices: Sequence[int],
    progress: Progress | None,
) -> Tally:
    """Return the counts of some images, in this process."""
    wanted, tally = job.wanted, Tally.empty(job.wanted, len(indices))
    with_confidence = wanted.saliency or bool(wanted.instances)
    # Who asks for the train split knows what it says.
    calibrated = {} if job.split == TRAIN else read_calibrated(job.path)
    images = count_each(
        (check_apart(dataset[i], dataset.name, calibrated) for i in indices),
        lambda image: predictor.predict(image, with_confidence=with_confidence),
        wanted.num_labels,
        wanted.task,
    )
    for place, (sample, found, counts) in enumerate(images):
        tally.confusion += counts.matrix
        tally.records[place]["name"] = sample.name.encode()
        fill_record(tally.records[place], sample.label, found, counts)
        if wanted.instances:
            tally.found.update(encode_prediction(dataset, indices[place], found))
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
    return job.open(), open_dataset(job.data, job.split)


_COUNTING_S = 1800.0
"""How long a rank waits for the slowest one; one that dies is noticed at once."""


def is_launched() -> bool:
    """Return True in a rank that torchrun or SLURM started beside others."""
    return read_launch(os.environ).is_shared


def is_main() -> bool:
    """Return True in the one process that writes and prints."""
    return read_launch(os.environ).is_main


@dataclass(frozen=True)
class Ranks:
    """The processes that share an evaluation: this one alone, or all of `group`.

    `device` is this process's own; `check` stops it if another rank has failed.
    """

    device: str
    group: Group | None = None
    check: Callable[[], None] = lambda: None

    def count(
        self, wanted: Wanted, count: Callable[[Sequence[int]], Tally], indices: Sequence[int]
    ) -> Tally:
        """Return the counts of all images, the same in every rank; `count` gives those of some."""
        if self.group is None:
            return count(indices)
        import torch

        mine = slice(self.group.rank, None, self.group.world)
        total = Tally.empty(wanted, len(indices))
        total.add(count(indices[mine]), mine)
        self.check()
        summed = Tally.from_flat(wanted, self.group.sum(torch.from_numpy(total.flat)).numpy())
        for found in self.group.gather(total.found) if wanted.instances else ():
            summed.found.update(found)
        return summed


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the ranks that were started beside this one; all of them end the block, or none.

    They add up their counts on the CPU, whatever `device` the model runs on.

    Raises:
        BackendUnavailableError: If there are several, and torch is missing.
        SegDeployError: If another rank failed or is lost.
    """
    launch = read_launch(os.environ)
    if not launch.is_shared:
        yield Ranks(device)
        return
    require_torch()
    from segdeploy.frameworks.distributed import pick_device, process_group

    try:
        with process_group("cpu", _COUNTING_S) as group, group.together() as check:
            own = str(pick_device(device, launch.local_rank)) if device == "cuda" else device
            yield Ranks(own, group, check)
    except TrainError as error:
        raise SegDeployError(
            f"The evaluation lost another process: {error.message}",
            hint="See the log of the rank that died.",
        ) from error
