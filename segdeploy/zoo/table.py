"""The rows of `models.json`: facts that need the model to be built, computed ahead of time."""

from __future__ import annotations

from typing import Any

from segdeploy.zoo import MODELS
from segdeploy.zoo.cost import model_cost

TABLE_CLASSES = 21


def model_row(name: str) -> dict[str, Any]:
    """Return the row of a model at 21 classes; multiply-adds are of an image of its input size."""
    spec = MODELS.get(name)
    total = model_cost(name, TABLE_CLASSES, spec.input_size).total
    return {
        "name": name,
        "task": spec.task.value,
        "num_parameters": total.num_parameters,
        "macs": total.macs,
        "output_stride": spec.output_stride,
        "source": spec.source,
        "family": spec.family,
        "input_size": list(spec.input_size),
        "encoder": spec.encoder,
    }
