"""What `segdeploy show` tells of one model: its facts and where its cost lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.folder import load_checkpoint
from segdeploy.core.task import num_logits
from segdeploy.core.trust import check_trusted
from segdeploy.zoo import MODELS
from segdeploy.zoo.cost import ModelCost, model_cost
from segdeploy.zoo.spec import ModelSpec
from segdeploy.zoo.table import TABLE_CLASSES


@dataclass(frozen=True)
class ModelDescription:
    """A model at K classes and an image of `size` (H, W)."""

    spec: ModelSpec
    num_classes: int
    size: tuple[int, int]
    cost: ModelCost

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `show`."""
        total = self.cost.total
        return {
            "name": self.spec.name,
            "num_classes": self.num_classes,
            "size": list(self.size),
            "input_size": list(self.spec.input_size),
            "output_stride": self.spec.output_stride,
            "source": self.spec.source,
            "family": self.spec.family,
            "encoder": self.spec.encoder,
            "num_parameters": total.num_parameters,
            "macs": total.macs,
            "activation_mib": total.activation_mib,
            "blocks": [block.to_dict() for block in self.cost.blocks],
        }


def describe_model(
    model: str, *, size: tuple[int, int] | None = None, num_classes: int | None = None
) -> ModelDescription:
    """Return the description of a model by name, or of a checkpoint folder's model.

    Args:
        model: A name of the zoo, `package.module:callable`, or a checkpoint folder.
        size: (H, W); default: the design size.
        num_classes: K; default: the checkpoint's, else 21.

    Raises:
        UnknownNameError: If it is neither.
        CheckpointError: If the folder is no checkpoint, or its model is code without permission.
        ConfigError: If the model cannot run at this size.
    """
    name, design, channels = model, None, TABLE_CLASSES
    if model not in MODELS and Path(model).is_dir():
        manifest = load_checkpoint(Path(model)).manifest
        check_trusted(manifest.model, model)
        name, design = manifest.model, manifest.design_size
        channels = num_logits(manifest.task, len(manifest.classes))
    if name not in MODELS:
        raise MODELS.unknown(name)
    spec = MODELS.get(name)
    num_classes = channels if num_classes is None else num_classes
    size = size or design or spec.input_size
    return ModelDescription(spec, num_classes, size, model_cost(name, num_classes, size))
