"""The rows of `models.json`: facts that need the model to be built, computed ahead of time."""

from __future__ import annotations

from typing import Any

from segdeploy.zoo import MODELS
from segdeploy.zoo.checkpoint import num_parameters

TABLE_CLASSES = 21


def model_row(name: str) -> dict[str, Any]:
    """Return the row of a model at 21 classes; builds it."""
    spec = MODELS.get(name)
    return {
        "name": name,
        "task": spec.task.value,
        "num_parameters": num_parameters(spec.build(TABLE_CLASSES)),
        "output_stride": spec.output_stride,
        "source": spec.source,
    }
