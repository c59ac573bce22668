"""DropBlock in the two deepest stages of an encoder, in training.

Source: Ghiasi et al., "DropBlock: A regularization method for convolutional networks", 2018; blocks
of 3x3 behind every residual block of the last two stages, the share growing linearly over the
training, as in PyTorch-Encoding. Forward hooks do it: no parameter and no name changes, so that
checkpoints and exported graphs know nothing of it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo.encoders.encoder import ChainEncoder
from segdeploy.zoo.keys import encoder_name

prepare_torchvision()
from torchvision.ops import drop_block2d  # noqa: E402

_BLOCK = 3
_NUM_STAGES = 2


class DropBlock:
    """Drops 3x3 blocks of feature maps while the module is in training mode.

    Args:
        module: A model whose encoder is a chain of stages.
        probability: Share of elements dropped at the end of the training, in [0, 1).

    Raises:
        ConfigError: If the model has no such encoder.
    """

    def __init__(self, module: nn.Module, probability: float) -> None:
        encoder = getattr(module, encoder_name(module) or "", None)
        if not isinstance(encoder, ChainEncoder):
            raise ConfigError(
                "drop_block needs an encoder of torchvision.",
                hint="Leave drop_block out, or take e.g. unet_resnet34 or fcn_resnet50.",
            )
        self.probability = probability
        self.share = 0.0
        for stage in encoder.stage_modules()[-_NUM_STAGES:]:
            for block in stage[-1].children() if isinstance(stage[-1], nn.Sequential) else stage:
                block.register_forward_hook(self._drop)

    def _drop(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training or self.share == 0 or min(output.shape[-2:]) < _BLOCK:
            return None
        dropped: Tensor = drop_block2d(output, self.share * self.probability, _BLOCK)
        return dropped
