"""Whether a model's logits are upsampled ones, and how: what the `low-logits` contract stands on.

Asked of the module itself before anything is built, so that a network without low-resolution logits
is refused at once. A foreign model has no module: its plain graph is asked.
"""

from __future__ import annotations

from segdeploy.core.contract import Upsampling
from segdeploy.core.errors import UnsupportedTargetError
from segdeploy.core.folder import Checkpoint, ModelFolder

Upsampled = tuple[Upsampling, tuple[int, int] | None]
"""How low-resolution logits become labels, and their (h, w) where it is fixed."""

_ANY_SIZE = (64, 96)  # Of an image that stands for all where sizes are dynamic.


def find_in_module(checkpoint: Checkpoint, size: tuple[int, int] | None) -> Upsampled:
    """Return it for images of one size, or of any.

    Raises:
        UnsupportedTargetError: If the model has no low-resolution logits.
    """
    from segdeploy.backends.contract_module import find_upsampling
    from segdeploy.zoo import load_module

    try:
        found, low_size = find_upsampling(load_module(checkpoint), size or _ANY_SIZE)
    except UnsupportedTargetError as error:
        raise UnsupportedTargetError(
            f"{checkpoint.manifest.model}: {error.message}", hint=error.hint
        ) from error
    return found, low_size if size else None


def find_in_graph(plain: ModelFolder) -> Upsampled:
    """Return it for a plain ONNX artifact.

    Raises:
        UnsupportedTargetError: As above.
    """
    from segdeploy.graph.low_logits import find_last_resize, low_size
    from segdeploy.graph.proto import load_graph

    graph = load_graph(plain.payload)
    found = find_last_resize(graph)
    return Upsampling(align_corners=found.align_corners), low_size(graph, found)
