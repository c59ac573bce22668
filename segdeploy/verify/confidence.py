"""How far a candidate's confidence is from the reference's, where both decide alike.

The probability of another decision says nothing about this one, so flipped pixels are left to the
flip rules. A value outside [0, 1] (or NaN) is counted apart: it is wrong whatever the reference
says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdeploy.core.session import Array
from segdeploy.core.task import Task, predict_confidence, predict_labels

_ROWS = 64  # Of an image at once: float64 copies of all its classes would be large.


@dataclass
class ConfidenceCount:
    """Streaming comparison of confidences; errors are differences of probabilities."""

    num_pixels: int = 0
    num_bad: int = 0
    max_error: float = 0.0
    square: float = 0.0

    def update(self, logits: Array, task: Task, labels: Array, confidence: Array) -> None:
        """Compare with the reference's logits (N, K, H, W); labels and confidence are (N, H, W)."""
        for image in range(len(logits)):
            for start in range(0, logits.shape[2], _ROWS):
                rows = slice(start, start + _ROWS)
                exact = logits[image : image + 1, :, rows].astype(np.float64)
                self._add(exact, task, labels[image, rows], confidence[image, rows])

    def _add(self, exact: Array, task: Task, labels: Array, confidence: Array) -> None:
        sound = np.logical_and(confidence >= 0, confidence <= 1)  # False for NaN.
        self.num_bad += int(np.count_nonzero(~sound))
        known = np.all(np.isfinite(exact[0]), axis=0)
        agreed = np.equal(labels, predict_labels(exact, task)[0]) & sound & known
        if not agreed.any():
            return
        with np.errstate(invalid="ignore"):  # inf - inf of a broken reference.
            expected = predict_confidence(exact, task)[0][agreed].astype(np.float64)
        error = np.abs(confidence[agreed] - expected)
        self.num_pixels += error.size
        self.max_error = max(self.max_error, float(error.max()))
        self.square += float(np.dot(error, error))

    @property
    def rms_error(self) -> float:
        """Root mean square of the error, in [0, 1]."""
        return float((self.square / max(1, self.num_pixels)) ** 0.5)
