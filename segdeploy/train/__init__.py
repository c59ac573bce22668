"""The stage `train`: a model, a data set and a recipe become RUN/checkpoint.

    from segdeploy.train import TrainConfig, train
    checkpoint = train(TrainConfig(model="unet", data="synthetic", out="runs/first", epochs=5))

One public function, `train`; the epoch loop is `loop.py`. Losses are one line each in `LOSSES`.
Of use in any loop: `MetricLogger`, `SmoothedValue`, `GroupedBatchSampler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from segdeploy.core.registry import Registry
from segdeploy.train.config import TrainConfig
from segdeploy.train.grouped import GroupedBatchSampler
from segdeploy.train.meters import MetricLogger, SmoothedValue

if TYPE_CHECKING:
    from segdeploy.core.folder import Checkpoint
    from segdeploy.train.losses.base import Loss

LOSSES: Registry[type[Loss]] = Registry(
    "loss",
    {
        "binary_cross_entropy": "segdeploy.train.losses.cross_entropy:BinaryCrossEntropy",
        "cross_entropy": "segdeploy.train.losses.cross_entropy:CrossEntropy",
        "dice": "segdeploy.train.losses.overlap:Dice",
        "focal": "segdeploy.train.losses.focal:Focal",
        "focal_sigmoid": "segdeploy.train.losses.focal:FocalSigmoid",
        "jaccard": "segdeploy.train.losses.overlap:Jaccard",
        "lovasz": "segdeploy.train.losses.lovasz:Lovasz",
        "ohem_cross_entropy": "segdeploy.train.losses.cross_entropy:OhemCrossEntropy",
        "tversky": "segdeploy.train.losses.overlap:Tversky",
    },
)


def train(config: TrainConfig, *, resume: bool = False) -> Checkpoint:
    """Train as `config` says and return the best checkpoint (RUN/checkpoint).

    Args:
        config: The whole recipe; `config.nproc` > 1 starts that many processes.
        resume: Continue RUN/last exactly where it stopped; a finished run returns at once.

    Raises:
        ConfigError: If a setting is wrong, or RUN holds another run.
        DataError: If data are missing or damaged.
        BackendUnavailableError: If a package is missing.
        TrainError: If the loss is not finite or a rank is lost; RUN stays resumable.
        RunLockedError: If another process works in RUN.
    """
    from segdeploy.frameworks.tensorboard import find_tensorboard
    from segdeploy.frameworks.torch import passive_waiting, require_torch

    if config.tensorboard:
        find_tensorboard()
    with passive_waiting():
        require_torch("torchvision", "safetensors")
    from segdeploy.train.run import run_training

    return run_training(config, resume=resume)


__all__ = [
    "LOSSES",
    "GroupedBatchSampler",
    "MetricLogger",
    "SmoothedValue",
    "TrainConfig",
    "train",
]
