"""From a checkpoint to the plain fp32 graph, by torch.onnx (dynamo).

The sample has batch 2: with 1 the exporter would bake the batch in. H and W are bounded from 32
(output stride of the deepest encoder). The same checkpoint gives the same bytes: the exporter's
stack traces and paths are stripped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import BuildError, SegDeployError
from segdeploy.core.folder import ModelFolder
from segdeploy.frameworks.quiet import captured_log, tail
from segdeploy.frameworks.torch import require_torch
from segdeploy.graph.metadata import strip_metadata
from segdeploy.graph.pointwise import undilate_pointwise
from segdeploy.graph.proto import check_graph
from segdeploy.graph.simplify import simplify

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 18
SAMPLE_SIZE = (96, 128)
MIN_SIZE, MAX_SIZE, MAX_BATCH = 32, 16384, 4096


def export_checkpoint(
    checkpoint: ModelFolder, size: tuple[int, int] | None = None
) -> onnx.ModelProto:
    """Return the fp32 graph: `tensor` (N, 3, H, W) -> `logits` (N, K, H, W).

    Args:
        checkpoint: The model and its weights.
        size: Fixed (H, W), or None for dynamic H and W; N is dynamic in both.

    Raises:
        BuildError: If the exporter fails; with the tail of its log.
        CheckpointError: If the weights do not fit the model.
    """
    require_torch("onnx", "onnxscript")
    from segdeploy.zoo import load_module

    module = load_module(checkpoint)
    with captured_log() as log:
        try:
            exported = _run_exporter(module, size)
        except SegDeployError:
            raise
        except Exception as error:
            text = f"{tail(log)}\n{type(error).__name__}: {error}"[-2000:]
            raise BuildError(
                f"torch.onnx cannot export {checkpoint.manifest.model} ({type(error).__name__}).",
                log=text.strip(),
            ) from error
    model = undilate_pointwise(strip_metadata(exported))
    _name_sizes(model, checkpoint, size)
    return simplify(check_graph(model, "torch.onnx"))


def _run_exporter(module: nn.Module, size: tuple[int, int] | None) -> onnx.ModelProto:
    import torch

    class MainLogits(torch.nn.Module):
        """The module without its auxiliary outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, tensor: Tensor) -> Tensor:
            from segdeploy.zoo import main_logits

            logits: Tensor = main_logits(self.module(tensor))
            return logits

    dim = torch.export.Dim
    dynamic: dict[int, Any] = {0: dim("N", min=1, max=MAX_BATCH)}
    if size is None:
        dynamic[2] = dim("H", min=MIN_SIZE, max=MAX_SIZE)
        dynamic[3] = dim("W", min=MIN_SIZE, max=MAX_SIZE)
    program = torch.onnx.export(
        MainLogits().eval(),
        (torch.zeros(2, 3, *(size or SAMPLE_SIZE)),),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        input_names=["tensor"],
        output_names=["logits"],
        dynamic_shapes=(dynamic,),
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: onnx.ModelProto = program.model_proto
    return model


def _name_sizes(
    model: onnx.ModelProto, checkpoint: ModelFolder, size: tuple[int, int] | None
) -> None:
    """Write the contract's sizes into the graph's ends: dynamic ones are named N, H, W."""
    manifest = checkpoint.manifest
    inputs, outputs = contract_tensors(IoContract(), manifest.task, len(manifest.classes), size)
    for value, spec in zip(
        [*model.graph.input, *model.graph.output], [*inputs, *outputs], strict=True
    ):
        dims = value.type.tensor_type.shape.dim
        if value.name != spec.name or len(dims) != len(spec.shape):
            raise BuildError(f"torch.onnx gave '{value.name}' where '{spec.name}' was expected.")
        for dim, side, letter in zip(dims, spec.shape, ("N", "", "H", "W"), strict=True):
            dim.Clear()
            if side is None:
                dim.dim_param = letter
            else:
                dim.dim_value = side
