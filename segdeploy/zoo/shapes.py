"""Models without weights: shapes and costs are asked of torch's fake tensors, in no time.

A net that cannot be built of them (its constructor looks at values) is built for real, and so is
code of one's own, which may keep tensors between calls.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from segdeploy.core.trust import is_callable_name
from segdeploy.zoo import create_model


def create_shapes(name: str, num_classes: int) -> nn.Module:
    """Return the model in evaluation mode, of fake tensors where that is possible."""
    if is_callable_name(name):
        return create_model(name, num_classes).eval()
    try:
        with FakeTensorMode():
            return create_model(name, num_classes).eval()
    except Exception:  # noqa: BLE001  whatever a constructor does not bear
        return create_model(name, num_classes).eval()


def world_of(module: nn.Module) -> AbstractContextManager[object]:
    """Return the context in which tensors fit a module: fake ones for one of fake tensors."""
    first = next(module.parameters(), None)
    return first.fake_mode if isinstance(first, FakeTensor) else nullcontext()
