"""Validation between epochs: the kept weights, on images that the ranks share out."""

from __future__ import annotations

from pathlib import Path

import torch

from segdeploy.backends.predictor import Predictor
from segdeploy.backends.pytorch import ModuleSession
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import ConfigError, DataError
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import EvalResult
from segdeploy.data import VAL, Dataset, open_dataset
from segdeploy.frameworks.distributed import Group
from segdeploy.metrics import accumulate, count_labels, label_names
from segdeploy.train.config import TrainConfig
from segdeploy.train.module import logit_channels, to_memory_format
from segdeploy.train.pictures import draw_samples, save_picture, spread
from segdeploy.zoo import create_model


class Validation:
    """What a run is scored on.

    Args:
        config: The recipe.
        train_set: The training split: its classes must be those of the validation split.
        preprocess: What the model is deployed with.
        group: The processes that share the images.

    Raises:
        ConfigError: If the recipe is patient about a split that the data set does not have.
    """

    def __init__(
        self, config: TrainConfig, train_set: Dataset, preprocess: PreprocessSpec, group: Group
    ) -> None:
        self.config, self.preprocess, self.group = config, preprocess, group
        self.data = open_validation(config, train_set)
        if config.patience and self.data is None:
            raise ConfigError(
                f"{config.data} has no validation split to be patient about.",
                hint="Leave --patience out.",
            )

    def is_due(self, epoch: int) -> bool:
        """Return whether `epoch` ends with a validation."""
        config = self.config
        return self.data is not None and (
            (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs
        )

    def score(self, weights: dict[str, torch.Tensor], epoch: int) -> dict[str, float | None]:
        """Return the scores of a state dict over all ranks' images; {} if not due."""
        data = self.data
        if data is None or not self.is_due(epoch):
            return {}
        num = min(self.config.val_limit or len(data), len(data))
        mine = range(self.group.rank, num, self.group.world)
        predictor = self._create_predictor(data, weights)
        matrix, _ = accumulate(
            (data[i] for i in mine),
            lambda image: predictor.predict(image).labels,
            count_labels(data.task, len(data.classes)),
            task=data.task,
        )
        if self.group.is_main and self.config.val_pictures:
            self._draw(data, predictor, num, epoch)
        summed = self.group.sum(torch.from_numpy(matrix.matrix).to(self.group.device))
        result = EvalResult(
            target="pytorch-fp32",
            data=data.name,
            classes=label_names(data.task, data.classes),
            confusion=summed.cpu().numpy(),
            num_images=num,
            task=data.task,
        )
        return {"mean_iou": result.mean_iou, "pixel_accuracy": result.pixel_accuracy}

    def _draw(self, data: Dataset, predictor: Predictor, num: int, epoch: int) -> None:
        """Write RUN/val/epoch_NNNN.png: the same samples of the `num` validated ones each time."""
        indices = spread(num, self.config.val_pictures)
        sheet = draw_samples(data, indices, lambda image: predictor.predict(image).labels)
        save_picture(Path(self.config.out), epoch, sheet)

    def _create_predictor(self, data: Dataset, weights: dict[str, torch.Tensor]) -> Predictor:
        module = create_model(self.config.model, logit_channels(data))
        module.load_state_dict(weights)
        # Faster, and no reference is at stake here.
        to_memory_format(module, torch.channels_last)
        tensors = contract_tensors(IoContract(), data.task, len(data.classes), None)
        session = ModuleSession(module.eval(), *tensors, device=str(self.group.device))
        return Predictor(session, self.preprocess, data.task)


def open_validation(config: TrainConfig, train_set: Dataset) -> Dataset | None:
    """Return the validation split, or None where the data set has none."""
    try:
        found = open_dataset(config.data, VAL)
    except DataError:
        return None
    if found.classes != train_set.classes:
        raise ConfigError(f"{config.data}: training and validation have different classes.")
    return found
