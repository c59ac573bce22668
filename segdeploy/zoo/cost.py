"""What a model costs, from its shapes alone: parameters, multiply-adds, activations by block.

Multiply-adds are half of what torch.utils.flop_counter counts (convolutions and matrix products of
one image), which is how papers count them. Activation memory is the bytes of what leaf modules
give, not counting those that work in place: about what training keeps of one image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from segdeploy.core.errors import ConfigError, SegDeployError
from segdeploy.zoo import create_model
from segdeploy.zoo.checkpoint import num_parameters
from segdeploy.zoo.keys import encoder_name
from segdeploy.zoo.shapes import create_shapes, world_of

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BlockCost:
    """Cost of a child module, or of the whole (named ""), for one image."""

    name: str
    num_parameters: int
    macs: int
    activation_mib: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ModelCost:
    """Cost of the whole, and of its children and its encoder's children, in their order."""

    total: BlockCost
    blocks: tuple[BlockCost, ...]


def model_cost(name: str, num_classes: int, size: tuple[int, int]) -> ModelCost:
    """Return the cost of a model by name at (H, W); built for real only where it must be.

    Raises:
        ConfigError: If the model cannot run at this size.
        UnknownNameError: If there is no such model.
    """
    try:
        return measure_cost(create_shapes(name, num_classes), size)
    except ConfigError:  # Perhaps only since its forward looks at values.
        return measure_cost(create_model(name, num_classes), size)


def measure_cost(module: nn.Module, size: tuple[int, int]) -> ModelCost:
    """Return the cost of a module at (H, W), run once in evaluation mode.

    Raises:
        ConfigError: If it cannot run at this size.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with torch.no_grad(), _activation_bytes(module) as activations, world_of(module), counter:
        try:
            module.eval()(torch.zeros(1, 3, *size))
        except SegDeployError:
            raise
        except Exception as error:  # The module may be code of one's own.
            raise ConfigError(
                f"The model cannot run at {size[0]}x{size[1]}: {type(error).__name__}: {error}",
                hint="Give --size HxW.",
            ) from error
    macs = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    root = type(module).__name__

    def cost(name: str) -> BlockCost:
        path = f"{root}.{name}" if name else root
        return BlockCost(
            name=name,
            num_parameters=num_parameters(module.get_submodule(name)),
            macs=macs.get(path, 0),
            activation_mib=sum(n for leaf, n in activations if _is_in(leaf, name)) / 2**20,
        )

    return ModelCost(cost(""), tuple(cost(name) for name in _blocks(module)))


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# torch counts the attention kernels of GPUs only.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops  # noqa: SLF001
}


def _is_in(leaf: str, block: str) -> bool:
    return not block or leaf == block or leaf.startswith(f"{block}.")


def _blocks(module: nn.Module) -> Iterator[str]:
    encoder = encoder_name(module)
    for name, child in module.named_children():
        yield name
        if name == encoder:
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())


@contextmanager
def _activation_bytes(module: nn.Module) -> Iterator[list[tuple[str, int]]]:
    """(name, bytes of its output) of each leaf module that runs in the block."""
    found: list[tuple[str, int]] = []

    def note_as(name: str, leaf: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_leaf: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor) and not any(output is each for each in inputs):
                found.append((name, output.nbytes))

        return leaf.register_forward_hook(note)

    leaves = [(n, m) for n, m in module.named_modules() if next(m.children(), None) is None]
    handles = [note_as(name, leaf) for name, leaf in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
