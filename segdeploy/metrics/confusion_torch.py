"""The confusion matrix of tensors on their own device: same counts as `ConfusionMatrix`.

All 256 x 256 pairs of byte ids are counted in one pass; ids that are no class land in cells of
their own and are found when the matrix is read, so that an update waits for no check.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.task import IGNORE


class TensorConfusionMatrix:
    """Counts of (truth, prediction) pairs over K <= 255 classes; 255 is ignored.

    Args:
        num_classes: K.
        device: Where the tensors are.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if not 1 <= num_classes <= IGNORE:
            raise ValueError(f"counts of bytes need 1 to {IGNORE} classes, not {num_classes}")
        self.num_classes = num_classes
        self._joint = torch.zeros(256 * 256, dtype=torch.int64, device=device)

    def update(self, label: Tensor, prediction: Tensor) -> None:
        """Count label maps of equal shape: class ids of any integer type, 255 where ignored.

        Raises:
            DataError: If the shapes differ, or a label does not fit into a byte.
            ArtifactError: If a prediction does not.
        """
        if label.shape != prediction.shape:
            raise DataError(f"A label has shape {label.shape}, its prediction {prediction.shape}.")
        if not _are_bytes(label):
            raise DataError("A label holds an id that is not in 0..255.")
        if not _are_bytes(prediction):
            raise ArtifactError("A prediction holds an id that is not in 0..255.")
        pairs = label.to(torch.int32).mul_(256).add_(prediction)
        self._joint += torch.bincount(pairs.flatten(), minlength=256 * 256)

    @property
    def matrix(self) -> Tensor:
        """The counts (K, K) on the device, row = truth; a copy.

        Raises:
            DataError: If a label was no class and not 255.
            ArtifactError: If a prediction was no class.
        """
        k, joint = self.num_classes, self._joint.view(256, 256)
        if joint[k:IGNORE].any():
            raise DataError(f"A label holds an id that is none of {k} classes and not {IGNORE}.")
        if joint[:k, k:].any():
            raise ArtifactError(f"A prediction holds an id that is none of {k} classes.")
        return joint[:k, :k].clone()


def _are_bytes(ids: Tensor) -> bool:
    if ids.dtype in {torch.uint8, torch.bool} or not ids.numel():
        return True
    if ids.is_floating_point():
        return False
    low, high = torch.aminmax(ids)
    return bool((low >= 0) & (high <= 255))
