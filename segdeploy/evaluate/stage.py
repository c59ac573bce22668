"""The stage: check that model and data mean the same classes, count, write `eval.json`, pictures.

Scored at the label's own size: the predictor brings the label map back to the image's size by the
preprocessing's own rule, so a model that works on small inputs pays for it here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.errors import ArtifactError, ConfigError, DataError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.lock import run_lock
from segdeploy.core.results import EvalResult, by_class, known
from segdeploy.core.scores import class_iou, mean_iou
from segdeploy.core.task import Task
from segdeploy.data import VAL, open_dataset
from segdeploy.data.sample import Dataset
from segdeploy.evaluate.instances import check_instances, score_instances
from segdeploy.evaluate.pictures import draw_pictures, replacing_pictures
from segdeploy.evaluate.ranking import image_scores, render_csv, worst_and_best
from segdeploy.evaluate.shards import (
    Job,
    Progress,
    count_alone,
    count_spawned,
    is_launched,
    is_main,
    joined,
)
from segdeploy.evaluate.tally import Tally, Wanted
from segdeploy.metrics import count_labels, label_names
from segdeploy.metrics.bootstrap import class_intervals, draw_counts, interval
from segdeploy.metrics.boundary import class_boundary_f, class_boundary_iou
from segdeploy.metrics.saliency import mae, max_f

EVAL, IMAGES, SAMPLES = "eval.json", "images.csv", "samples"
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
    threshold: float | None = None,
    instances: Sequence[str] = (),
    save: bool = True,
    progress: Progress | None = None,
) -> EvalResult:
    """Return the quality of a checkpoint or artifact on a labelled data set.

    Args:
        path: The folder; `eval.json`, `images.csv` (each image's scores) and pictures of the
            worst and the best images under `samples/` are written into it.
        data: `name` or `name:root`.
        split: Which part of the data.
        nproc: Number of processes; the result is the same for any. Under torchrun or SLURM the
            ranks share the work instead, and only rank 0 writes.
        device: `cpu` or `cuda`.
        limit: Only the first so many images.
        boundary: Also score the outlines; slow.
        tta: Average the probabilities of several views of each image.
        sliding_window: Run each image window by window.
        threshold: Probability above which a binary or multilabel model says yes; by default 0.5.
        instances: IoU types, of `segm` and `bbox`: also score the connected parts of each class
            as instances, by COCO's AP and AR, where the data have annotated instances.
        save: False writes nothing.
        progress: Called with (done, total) images.

    Raises:
        ArtifactError: If the folder is missing, damaged or not writable.
        ConfigError: If an option makes no sense.
        DataError: If the data do not fit the model, or a file is bad.
        RunLockedError: If another process works in the run folder.
        BackendUnavailableError: If a runtime, or a package that an option needs, is missing.
    """
    _check_options(nproc, limit)
    with joined(device) as ranks:
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
            open_predictor(
                folder.path, ranks.device, tta=tta, window=sliding_window, threshold=threshold
            ) as predictor,
        ):
            if instances:
                check_instances(predictor, dataset, instances)
            wanted = Wanted(
                count_labels(dataset.task, len(dataset.classes)),
                dataset.task,
                outlines=boundary,
                saliency=dataset.task is Task.BINARY and predictor.has_confidence,
                instances=tuple(instances),
            )
            job = Job(
                folder.path, data, split, ranks.device, wanted, tta, sliding_window, threshold
            )
            tally = ranks.count(
                wanted,
                lambda part: _count(job, predictor, dataset, part, nproc=nproc, progress=progress),
                indices,
            )
            result = _result(folder, dataset, tally, job)
            if writes:
                shown = {"worst": result.worst, "best": result.best}
                pictures = draw_pictures(predictor, dataset, indices, shown)
                with replacing_pictures(folder.path / SAMPLES, pictures):
                    write_bytes(folder.path / IMAGES, render_csv(result.images))
                    write_json(folder.path / EVAL, result.to_dict())
    return result


def _check_options(nproc: int, limit: int | None) -> None:
    if nproc < 1:
        raise ConfigError(f"--nproc must be at least 1, found {nproc}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, found {limit}.")
    if nproc > 1 and is_launched():
        raise ConfigError(
            "This is a rank of torchrun or SLURM, and --nproc asks for more processes.",
            hint="Use one of the two.",
        )


def _check_classes(folder: ModelFolder, dataset: Dataset, data: str) -> None:
    manifest = folder.manifest
    own, other = manifest.classes, dataset.classes
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
    if nproc == 1:
        return count_alone(job, predictor, dataset, indices, progress)
    return count_spawned(job, indices, nproc, progress)


def _result(folder: ModelFolder, dataset: Dataset, tally: Tally, job: Job) -> EvalResult:
    manifest, records, num_images = folder.manifest, tally.records, len(tally.records)
    classes = label_names(manifest.task, manifest.classes)
    names = records.dtype.names or ()
    outlines = "band" in names
    images = image_scores(records)
    worst, best = worst_and_best(images)
    part = "" if num_images == len(dataset) else f" (first {num_images} of {len(dataset)})"
    return EvalResult(
        target=folder.name,
        data=f"{dataset.name}{part}",
        classes=classes,
        confusion=tally.confusion,
        num_images=num_images,
        task=manifest.task,
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
        threshold=job.threshold,
        artifact=manifest.digest,
        instances=(
            score_instances(dataset, tally.found, job.wanted.instances)
            if job.wanted.instances
            else None
        ),
        worst=worst,
        best=best,
        images=images,
        **_intervals(classes, records["classes"]),
    )


def _intervals(classes: Sequence[str], counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return the intervals over images, of counts per image (N, 3, K); one image has none."""
    if len(counts) < 2:
        return {}
    draws = draw_counts(counts)
    found = class_intervals(class_iou(draws), counts)
    return {
        "mean_iou_ci": interval(mean_iou(draws)),
        "class_iou_ci": dict(zip(classes, found, strict=True)),
    }
