"""The stage: check that model and data mean the same classes, count, write `eval.json`, pictures.

Scored at the label's own size: the predictor brings the label map back to the image's size by the
preprocessing's own rule, so a model that works on small inputs pays for it here.
"""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.errors import ArtifactError, ConfigError, DataError
from segdeploy.core.files import write_bytes, write_errors, write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.results import EvalResult, by_class, known
from segdeploy.core.scores import mean_iou
from segdeploy.core.task import Task
from segdeploy.data import VAL, open_dataset
from segdeploy.data.pictures import comparison
from segdeploy.data.sample import Dataset
from segdeploy.evaluate.shards import (
    Job,
    Progress,
    count_alone,
    count_ranks,
    count_spawned,
    is_launched,
    is_main,
)
from segdeploy.evaluate.tally import Tally, Wanted
from segdeploy.metrics import count_labels, label_names
from segdeploy.metrics.bootstrap import bootstrap_interval
from segdeploy.metrics.boundary import class_boundary_f, class_boundary_iou
from segdeploy.metrics.saliency import mae, max_f

EVAL, SAMPLES = "eval.json", "samples"
_NUM_PICTURES = 6
_log = logging.getLogger(__name__)


def evaluate(
    path: Path,
    *,
    data: str,
    split: str = VAL,
    nproc: int = 1,
    device: str = "cpu",
    limit: int | None = None,
    boundary: bool = False,
    tta: TtaSpec | None = None,
    sliding_window: SlidingWindow | None = None,
    save: bool = True,
    progress: Progress | None = None,
) -> EvalResult:
    """Return the quality of a checkpoint or artifact on a labelled data set.

    Args:
        path: The folder; `eval.json` and pictures under `samples/` are written into it.
        data: `name` or `name:root`.
        split: Which part of the data.
        nproc: Number of processes; the result is the same for any. Under torchrun the ranks share
            the work instead, and only rank 0 writes.
        device: `cpu` or `cuda`.
        limit: Only the first so many images.
        boundary: Also score the outlines; slow.
        tta: Average the probabilities of several views of each image.
        sliding_window: Run each image window by window.
        save: False writes nothing.
        progress: Called with (done, total) images.

    Raises:
        ArtifactError: If the folder is missing, damaged or not writable.
        ConfigError: If an option makes no sense.
        DataError: If the data do not fit the model, or a file is bad.
        RunLockedError: If another process works in the run folder.
    """
    _check_options(nproc, limit)
    folder = load_folder(path.resolve())
    dataset = open_dataset(data, split)
    _check_classes(folder, dataset, data)
    writes = save and is_main()
    if writes and not os.access(folder.path, os.W_OK):
        raise ArtifactError(
            f"Cannot write into {folder.path}: no permission.", hint="Use --no-save."
        )
    indices = range(min(len(dataset), limit or len(dataset)))
    with (
        run_lock(folder.path.parent) if writes else nullcontext(),
        open_predictor(folder.path, device, tta=tta, window=sliding_window) as predictor,
    ):
        wanted = Wanted(
            count_labels(dataset.task, len(dataset.classes)),
            outlines=boundary,
            saliency=dataset.task is Task.BINARY and predictor.has_confidence,
        )
        job = Job(folder.path, data, split, device, wanted, tta, sliding_window)
        tally = _count(job, predictor, dataset, indices, nproc=nproc, progress=progress)
        result = _result(folder, dataset, tally, job)
        if writes:
            pictures = _draw_pictures(predictor, dataset, indices)
            with _replacing_pictures(folder.path / SAMPLES, pictures):
                write_json(folder.path / EVAL, result.to_dict())
    return result


def _check_options(nproc: int, limit: int | None) -> None:
    if nproc < 1:
        raise ConfigError(f"--nproc must be at least 1, found {nproc}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, found {limit}.")
    if nproc > 1 and is_launched():
        raise ConfigError(
            "This is a rank of torchrun, and --nproc asks for more processes.",
            hint="Use one of the two.",
        )


def _check_classes(folder: ModelFolder, dataset: Dataset, data: str) -> None:
    manifest = folder.manifest
    own, other = manifest.classes, dataset.classes
    if Task.MULTILABEL in (manifest.task, dataset.task):
        raise ConfigError("Evaluation of multilabel models is not implemented.")
    if manifest.task is not dataset.task or len(own) != len(other):
        raise DataError(
            f"{folder.path} ({manifest.task}) knows {len(own)} classes ({_few(own)}), but {data} "
            f"({dataset.task}) has {len(other)} ({_few(other)}).",
            hint="Evaluate on data with the classes that the model was trained for.",
        )
    if own == other:
        return
    if sorted(own) == sorted(other):
        raise DataError(
            f"{folder.path} and {data} have the same classes in another order: {_few(own)} "
            f"against {_few(other)}.",
            hint="Write the labels with the model's class ids.",
        )
    _log.warning(
        "class names differ, ids are taken as they are: %s against %s", _few(own), _few(other)
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _count(
    job: Job,
    predictor: Predictor,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    nproc: int,
    progress: Progress | None,
) -> Tally:
    if is_launched():
        shown = progress if is_main() else None
        return count_ranks(
            job, lambda part: count_alone(job, predictor, dataset, part, shown), indices
        )
    if nproc == 1:
        return count_alone(job, predictor, dataset, indices, progress)
    return count_spawned(job, indices, nproc, progress)


def _result(folder: ModelFolder, dataset: Dataset, tally: Tally, job: Job) -> EvalResult:
    manifest, records, num_images = folder.manifest, tally.records, len(tally.records)
    classes = label_names(manifest.task, manifest.classes)
    names = records.dtype.names or ()
    outlines = "band" in names
    part = "" if num_images == len(dataset) else f" (first {num_images} of {len(dataset)})"
    return EvalResult(
        target=folder.name,
        data=f"{dataset.name}{part}",
        classes=classes,
        confusion=tally.confusion,
        num_images=num_images,
        task=manifest.task,
        mean_iou_ci=bootstrap_interval(records["classes"], mean_iou),
        mae=known(mae(records["error"])) if "error" in names else None,
        max_f=known(max_f(records["histogram"])) if "histogram" in names else None,
        class_boundary_iou=(
            by_class(classes, class_boundary_iou(records["band"])) if outlines else None
        ),
        class_boundary_f=(
            by_class(classes, class_boundary_f(records["contour"])) if outlines else None
        ),
        tta=None if job.tta is None else job.tta.to_dict(),
        sliding_window=None if job.window is None else job.window.to_dict(),
    )


@contextmanager
def _replacing_pictures(folder: Path, pictures: Mapping[str, bytes]) -> Iterator[None]:
    """Write the pictures; old ones go when the block has succeeded, new ones if it has not."""
    is_new = not folder.exists()
    before, written = set(folder.glob("eval_*.png")), list[Path]()
    try:
        with write_errors(folder):
            folder.mkdir(exist_ok=True)
        for name, content in pictures.items():
            write_bytes(folder / name, content)
            written.append(folder / name)
        yield
    except BaseException:
        with suppress(OSError):
            for path in set(written) - before:
                path.unlink()
            if is_new:
                folder.rmdir()
        raise
    with write_errors(folder):
        for old in before - set(written):
            old.unlink()


def _draw_pictures(
    predictor: Predictor, dataset: Dataset, indices: Sequence[int]
) -> dict[str, bytes]:
    """Return image, label, prediction and difference of a few images, spread over the split."""
    pictures: dict[str, bytes] = {}
    names = label_names(dataset.task, tuple(dataset.classes))
    places = np.linspace(0, len(indices) - 1, min(_NUM_PICTURES, len(indices))).round()
    for number, place in enumerate(places.astype(int).tolist()):
        sample = dataset[indices[place]]
        drawn = comparison(
            sample.image, sample.label, predictor.predict(sample.image).labels, len(names), names
        )
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(sample.name).stem)[:60]
        pictures[f"eval_{number:02d}_{stem}.png"] = _encode(drawn)
    return pictures


def _encode(picture: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
