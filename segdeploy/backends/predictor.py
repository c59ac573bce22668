"""From a picture to its label map with any model folder: the path that an app has to follow.

Fit and normalise (as far as the contract leaves it to the caller), run, decide, and bring the label
map back to the picture's own size. Every stage that predicts uses this one path, so a checkpoint
and its artifacts differ by the session only. Windows and views change what is run, not the ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends import open_session
from segdeploy.backends.sliding import SlidingWindow, run_windows
from segdeploy.backends.tta import TtaSpec, as_logits, average_views
from segdeploy.backends.views import plan_preprocess
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ConfigError, DataError
from segdeploy.core.folder import load_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import (
    PreprocessSpec,
    fit_image,
    mean_colour,
    normalize_image,
    restore_labels,
)
from segdeploy.core.session import Array, Session
from segdeploy.core.task import Labels, Task, predict_confidence, predict_labels
from segdeploy.measure.regions import Region, enter
from segdeploy.upsampling import LOW_LOGITS, Upsampler


@dataclass(frozen=True)
class Prediction:
    """Label map (h, w) at the image's own size; confidence in [0, 1] (h, w) where there is one.

    Of a multilabel task, both are (K, h, w), and labels are 0 and 1.
    Confidence is the probability of the predicted label (`core.task.predict_confidence`).
    """

    labels: NDArray[np.unsignedinteger[Any]]
    confidence: NDArray[np.float32] | None = None


class Predictor:
    """A session with everything around it. Not thread-safe; `close` frees the session.

    Args:
        session: Runs one batch.
        preprocess: How an image becomes the session's input.
        task: What the logits mean.
        io: Which end of the work the payload does itself.
        manifest: Of the folder behind it, if there is one.
        tta: Average over several views.
        window: Run window by window.
        threshold: Probability above which a binary or multilabel task says yes; by default 0.5.

    Raises:
        ConfigError: If the payload cannot be run by views or windows, or be given a threshold.
    """

    def __init__(
        self,
        session: Session,
        preprocess: PreprocessSpec,
        task: Task,
        io: IoContract | None = None,
        manifest: Manifest | None = None,
        *,
        tta: TtaSpec | None = None,
        window: SlidingWindow | None = None,
        threshold: float | None = None,
    ) -> None:
        self.session = session
        self.task = task
        self.io = io or IoContract()
        self.preprocess = plan_preprocess(preprocess, session, self.io, tta, window)
        self.tta, self.window = tta, window
        self.threshold = 0.0 if threshold is None else _find_cut(threshold, task, self.io)
        self._manifest = manifest
        self._upsampler: Upsampler | None = None
        if self.io.output is OutputKind.LOW_LOGITS:
            self._upsampler = Upsampler.of(self.manifest)
            self._upsampler.prepare()

    @property
    def upsampler(self) -> Upsampler:
        """What makes label maps of low-resolution logits.

        Raises:
            ValueError: If the payload gives something else.
        """
        if self._upsampler is None:
            raise ValueError(f"this predictor gives {self.io.output}, not low-resolution logits")
        return self._upsampler

    @property
    def manifest(self) -> Manifest:
        """The manifest of the folder that was opened.

        Raises:
            ValueError: If the predictor was made from a live module.
        """
        if self._manifest is None:
            raise ValueError("this predictor was not opened from a folder")
        return self._manifest

    @property
    def has_confidence(self) -> bool:
        """False if the payload gives labels and nothing else."""
        return self.io.output is not OutputKind.LABELS

    def predict(self, image: NDArray[np.uint8], *, with_confidence: bool = False) -> Prediction:
        """Return the prediction for one uint8 RGB image (h, w, 3), at its own size.

        Args:
            image: The picture.
            with_confidence: Also where it has to be computed from logits, which takes time.

        Raises:
            DataError: If it is no such image.
        """
        _check_image(image)
        original = (image.shape[0], image.shape[1])
        fitted = fit_image(image, self.preprocess)
        size = (fitted.shape[0], fitted.shape[1])
        found = self._run(fitted)
        if with_confidence and self.io.output.has_logits:
            found = self._full(found, size)
            chances = predict_confidence(found["logits"], self.task, self.threshold)
            found["confidence"] = chances
        return Prediction(
            restore_labels(self._decide(found, size), original, self.preprocess),
            restore_labels(found["confidence"][0], original, self.preprocess)
            if "confidence" in found
            else None,
        )

    def bind(self, image: NDArray[np.uint8]) -> Callable[[], Labels]:
        """Return a call from this image (H, W, 3) to its label map, as a loop over frames makes it.

        Nothing is in it that is the same for every image; the image's own bytes are read at each
        call. It must have the size that the model runs at, since resizing is no part of it.

        Raises:
            DataError: If it is no such image.
            ConfigError: If the predictor averages views or windows.
        """
        _check_image(image)
        if self.tta is not None or self.window is not None:
            raise ConfigError("Views and windows are many calls; bind is for one.")
        size = (image.shape[0], image.shape[1])
        if fit_image(image, self.preprocess).shape != image.shape:
            raise DataError(
                f"This model resizes an image of {size[0]}x{size[1]}; bind takes its own size."
            )

        def call() -> Labels:
            labels = self._decide(self._forward(image), size)
            enter(None)
            return labels

        return call

    def _decide(self, found: dict[str, Array], size: tuple[int, int]) -> Labels:
        """Return the label map at the model's size (H, W), or the masks (K, H, W)."""
        if LOW_LOGITS in found and self.threshold == 0:
            labels = self.upsampler.labels(found[LOW_LOGITS], size)
        elif self.io.output.has_logits:
            logits = self._full(found, size)["logits"]
            labels = predict_labels(logits, self.task, self.threshold)
        else:
            labels = found["labels"]
        first: Labels = labels[0]
        return first

    def _run(self, image: NDArray[np.uint8]) -> dict[str, Array]:
        """Return the outputs for an image at the model's size."""
        if self.tta is not None:
            chances = average_views(image, self.tta, self._logits, self.preprocess, self.task)
            return {"logits": as_logits(chances, self.task)[None]}
        if self.window is not None:
            return {"logits": self._logits(image)[None]}
        return self._forward(image)

    def _logits(self, image: NDArray[np.uint8]) -> NDArray[np.floating]:
        """Return the logits (K, H, W) of one view (H, W, 3), by windows if there are any."""
        if self.window is None:
            return self._forward_logits(image)
        colour = mean_colour(self.preprocess)
        return run_windows(image, self.window, self._forward_logits, colour)

    def _forward_logits(self, image: NDArray[np.uint8]) -> NDArray[np.floating]:
        found = self._full(self._forward(image), (image.shape[0], image.shape[1]))
        logits: NDArray[np.floating] = found["logits"][0]
        return logits

    def _full(self, found: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
        """Return the outputs with logits of full resolution (H, W) in place of low ones."""
        return self.upsampler.complete(found, size) if LOW_LOGITS in found else found

    def _forward(self, image: NDArray[np.uint8]) -> dict[str, Array]:
        enter(Region.PREPROCESS)
        is_image = self.io.input is InputKind.IMAGE
        item = image if is_image else normalize_image(image, self.preprocess)
        batch = np.ascontiguousarray(item)[None]
        enter(Region.RUN)
        found = self.session.run(batch)
        enter(Region.POSTPROCESS)
        return found

    def close(self) -> None:
        """Free the session."""
        self.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _find_cut(threshold: float, task: Task, io: IoContract) -> float:
    """Return the logit of a probability at which a decision is made."""
    if task is Task.MULTICLASS:
        raise ConfigError(
            "A threshold is for binary and multilabel models; this one is multiclass.",
            hint="Leave --threshold out: the most probable class wins.",
        )
    if not io.output.has_logits:
        raise ConfigError(
            f"A threshold needs logits, but this artifact gives {io.output}: its threshold of 0.5 "
            "is part of it.",
            hint="Use the checkpoint, or export it with logits as output.",
        )
    if not 0 < threshold < 1:
        raise ConfigError(f"The threshold must be a probability in (0, 1), found {threshold:g}.")
    return math.log(threshold) - math.log1p(-threshold)


def _check_image(image: NDArray[np.uint8]) -> None:
    good = isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3
    if not good or image.dtype != np.uint8 or image.size == 0:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise DataError(
            f"An image is uint8 RGB of shape (h, w, 3), found {found}.",
            hint="Read files with segdeploy.data.images.read_image.",
        )


def open_predictor(
    path: Path,
    device: str = "cpu",
    *,
    tta: TtaSpec | None = None,
    window: SlidingWindow | None = None,
    threshold: float | None = None,
) -> Predictor:
    """Open a checkpoint or artifact folder for prediction on `cpu` or `cuda`.

    Args:
        path: The folder.
        device: Where it runs.
        tta: Average over several views (`backends.tta`).
        window: Run window by window (`backends.sliding`).
        threshold: Probability above which a binary or multilabel task says yes; by default 0.5.

    Raises:
        ArtifactError: If the folder is missing or damaged.
        BackendUnavailableError: If its runtime or the device is missing here.
        ConfigError: If it cannot be run by views or windows, or be given a threshold.
    """
    folder = load_folder(path)
    manifest = folder.manifest
    session = open_session(folder, device)
    try:
        return Predictor(
            session,
            manifest.preprocess,
            manifest.task,
            manifest.io,
            manifest,
            tta=tta,
            window=window,
            threshold=threshold,
        )
    except BaseException:
        session.close()  # It may be a process.
        raise
