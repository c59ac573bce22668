"""One mask and one overlay per picture, at the picture's own size.

The mask is data: a PNG whose values are class indices (its palette is only for viewers; 16 bits
from 256 classes on). A multilabel model has a folder of masks, one of 0 and 255 for each class,
numbered and named by it; where classes overlap, the overlay shows the mean of their colours. A
damaged picture does not stop the others, and each file appears whole or not at all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdeploy.backends.predictor import Predictor, open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.errors import DataError, SegDeployError
from segdeploy.core.files import write_bytes, write_errors
from segdeploy.core.task import Task
from segdeploy.data.images import read_image
from segdeploy.data.pictures import overlay, palette
from segdeploy.predict.inputs import check_targets, find_images, name_results

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictedFile:
    """One picture and what was written for it; `classes` are shares of its pixels in [0, 1].

    `mask` is a file, or of a multilabel model a folder with a file for each class.
    """

    image: str
    mask: str
    overlay: str
    height: int
    width: int
    classes: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `predict`."""
        return dict(vars(self))


@dataclass(frozen=True)
class PredictOutcome:
    """What was written, in the order asked, and which pictures could not be read."""

    files: list[PredictedFile]
    failures: list[SegDeployError]


def predict(
    model: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    device: str = "cpu",
    tta: TtaSpec | None = None,
    sliding_window: SlidingWindow | None = None,
    threshold: float | None = None,
) -> list[PredictedFile]:
    """Write `NAME.png` (class indices) and `NAME_overlay.png` into `out` for each picture.

    A multilabel model writes `NAME/00_CLASS.png` and so on (0 and 255) instead of `NAME.png`.

    Example:
        `predict(Path("runs/demo/onnx-fp32"), ["photos"], Path("masks"))[0].mask`

    Args:
        model: Checkpoint or artifact folder.
        images: Files, folders (their direct image files) and patterns.
        out: Made if absent; older results of the same name are replaced.
        device: `cpu` or `cuda`.
        tta: Average the probabilities of several views of each picture.
        sliding_window: Run each picture window by window.
        threshold: Probability above which a binary or multilabel model says yes; by default 0.5.

    Raises:
        DataError: If an argument means no image, or a picture is damaged (after all others were
            written).
        ArtifactError: If the folder is damaged, or `out` cannot be written.
        BackendUnavailableError: If the runtime or the device is missing.
        ConfigError: If the model can be given no threshold, or not be run in views.
    """
    outcome = predict_files(
        model, images, out, device=device, tta=tta, sliding_window=sliding_window,
        threshold=threshold,
    )  # fmt: skip
    if outcome.failures:
        raise _summary(outcome)
    return outcome.files


def predict_files(
    model: Path,
    images: Sequence[str | Path],
    out: Path,
    *,
    device: str = "cpu",
    tta: TtaSpec | None = None,
    sliding_window: SlidingWindow | None = None,
    threshold: float | None = None,
    progress: Progress = lambda _done, _total: None,
) -> PredictOutcome:
    """As `predict`, but damaged pictures are returned beside the results."""
    paths = find_images(images)
    names = name_results(paths)
    files: list[PredictedFile] = []
    failures: list[SegDeployError] = []
    with (
        open_predictor(
            model, device, tta=tta, window=sliding_window, threshold=threshold
        ) as predictor,
        _made_folder(out),
    ):
        targets = [_Targets.plan(out, name, predictor) for name in names]
        check_targets(paths, [file for each in targets for file in (*each.masks, each.overlay)])
        for index, (path, places) in enumerate(zip(paths, targets, strict=True), start=1):
            try:
                drawn = _draw(predictor, path)
            except SegDeployError as error:
                failures.append(_naming(error, path))
            else:
                files.append(_write(drawn, path, places))
            progress(index, len(paths))
    return PredictOutcome(files, failures)


@contextmanager
def _made_folder(out: Path) -> Iterator[None]:
    """Make the folder for the block; one that was made for nothing is removed again."""
    is_new = not out.exists()
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                out.rmdir()  # Only if it is empty: no picture could be read or written.


@dataclass(frozen=True)
class _Targets:
    """Where the results of a picture go; `mask` is the folder of the masks if they are many."""

    mask: Path
    masks: tuple[Path, ...]
    overlay: Path

    @classmethod
    def plan(cls, out: Path, name: str, predictor: Predictor) -> _Targets:
        tinted = out / f"{name}_overlay.png"
        if predictor.task is not Task.MULTILABEL:
            return cls(out / f"{name}.png", (out / f"{name}.png",), tinted)
        plain = (re.sub(r"[^\w-]+", "_", each)[:60] for each in predictor.manifest.classes)
        files = (out / name / f"{k:02d}_{each}.png" for k, each in enumerate(plain))
        return cls(out / name, tuple(files), tinted)


@dataclass(frozen=True)
class _Drawn:
    """All files of a picture as bytes: nothing is written before all of it worked."""

    masks: tuple[bytes, ...]
    overlay: bytes
    summary: tuple[int, int, dict[str, float]]


def _write(drawn: _Drawn, path: Path, places: _Targets) -> PredictedFile:
    if places.mask not in places.masks:
        with write_errors(places.mask):
            places.mask.mkdir(exist_ok=True)
    for file, content in zip(places.masks, drawn.masks, strict=True):
        write_bytes(file, content)
    write_bytes(places.overlay, drawn.overlay)
    return PredictedFile(str(path), str(places.mask), str(places.overlay), *drawn.summary)


def _draw(predictor: Predictor, path: Path) -> _Drawn:
    image = read_image(path, exif=predictor.preprocess.exif)
    labels = predictor.predict(image).labels
    classes = label_names(predictor)
    if labels.ndim == 3:
        counts = labels.sum(axis=(1, 2)).tolist()
        masks = tuple(encode_png(Image.fromarray(mask * np.uint8(255))) for mask in labels)
    else:
        counts = np.bincount(labels.ravel(), minlength=len(classes)).tolist()
        masks = (encode_mask(labels, len(classes)),)
    num_pixels = labels.shape[-2] * labels.shape[-1]
    shares = {
        name: count / num_pixels for name, count in zip(classes, counts, strict=False) if count
    }
    return _Drawn(
        masks,
        encode_png(Image.fromarray(overlay(image, labels, len(classes)))),
        (image.shape[0], image.shape[1], shares),
    )


def _naming(error: SegDeployError, path: Path) -> SegDeployError:
    """Return the error with the picture's name in its message."""
    if str(path) in error.message:
        return error
    named = type(error)(f"{path}: {error.message}", hint=error.hint)
    named.__cause__ = error
    return named


def label_names(predictor: Predictor) -> tuple[str, ...]:
    """Return the name of each label value; a binary task's 0 is the background."""
    manifest = predictor.manifest
    is_binary = manifest.task is Task.BINARY
    return ("background", *manifest.classes) if is_binary else manifest.classes


def encode_mask(labels: NDArray[np.unsignedinteger[Any]], num_classes: int) -> bytes:
    """Return the label map (H, W) as PNG bytes: with a palette, or 16-bit grey for uint16."""
    if labels.dtype == np.uint16:
        return encode_png(Image.fromarray(labels))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(palette(num_classes).tobytes())
    return encode_png(picture)


def encode_png(picture: Image.Image) -> bytes:
    """Return a picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _summary(outcome: PredictOutcome) -> SegDeployError:
    """Return one error for all damaged pictures; a single one keeps its own words."""
    first = outcome.failures[0]
    if len(outcome.failures) == 1:
        return first
    lines = "\n".join(f"  {error.message}" for error in outcome.failures)
    return DataError(f"{len(outcome.failures)} pictures could not be read:\n{lines}")
