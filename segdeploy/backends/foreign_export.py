"""From the original of a foreign model to the plain fp32 graph that every ONNX target starts from.

`tensor` (N, 3, H, W) -> `logits` (N, K, H, W), opset 18 or newer, weights where passes look for
them, batch normalisation in the convolutions. Whether it still computes what the original does is
for verify to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import inliner

from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import BuildError, SegDeployError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.foreign import ORIGINAL, ForeignGraph, Layout, read_facts
from segdeploy.graph.constant_folding import fold_constants
from segdeploy.graph.ends import keep_path, name_nodes, set_input_sizes, state_ends, wrap_ends
from segdeploy.graph.fold_batch_norm import fold_batch_norm
from segdeploy.graph.metadata import strip_metadata
from segdeploy.graph.opset import convert_opset
from segdeploy.graph.original import load_original
from segdeploy.graph.pixel_casts import drop_pixel_casts
from segdeploy.graph.pointwise import undilate_pointwise
from segdeploy.graph.proto import check_graph
from segdeploy.graph.simplify import simplify
from segdeploy.graph.transposes import merge_transposes


def export_foreign(checkpoint: ModelFolder, size: tuple[int, int] | None) -> onnx.ModelProto:
    """Return the plain fp32 graph of a foreign checkpoint.

    Args:
        checkpoint: Holds the original.
        size: Fixed (H, W), or None for dynamic sizes, which the original must have then.

    Raises:
        BuildError: If a pass fails on it.
        ArtifactError: If the original cannot be read.
    """
    facts = read_facts(checkpoint)
    original = load_original(checkpoint.path / ORIGINAL)
    specs = [*checkpoint.manifest.inputs, *checkpoint.manifest.outputs]
    try:
        return normalize(original, facts, size, specs)
    except SegDeployError:
        raise
    except Exception as error:  # The passes meet whatever people write.
        raise BuildError(
            f"{checkpoint.manifest.model} cannot be normalised ({type(error).__name__}).",
            log=str(error)[-2000:],
        ) from error


def normalize(
    original: onnx.ModelProto,
    facts: ForeignGraph,
    size: tuple[int, int] | None,
    specs: Sequence[TensorSpec],
) -> onnx.ModelProto:
    """Return the plain graph; `specs` are input and output of its contract, sizes aside."""
    model = strip_metadata(prepare(original))
    model = keep_path(model, facts.input, facts.output)
    batch = facts.batch
    sides: list[int | None] = [batch, 3, *(size or (None, None))]
    letters = ["N", "", "H", "W"]
    if facts.layout is Layout.NHWC:
        sides = [sides[axis] for axis in (0, 2, 3, 1)]
        letters = [letters[axis] for axis in (0, 2, 3, 1)]
    model = convert_opset(set_input_sizes(model, sides, letters))
    model = wrap_ends(
        model,
        input_is_nhwc=facts.layout is Layout.NHWC,
        output_is_nhwc=facts.output_layout is Layout.NHWC,
        upsample=facts.upsample,
    )
    model = merge_transposes(drop_pixel_casts(fold_constants(model)))
    model = name_nodes(undilate_pointwise(fold_batch_norm(model)))
    ends = [_sized(spec, batch, size) for spec in specs]
    model = state_ends(strip_metadata(model), ends)
    return simplify(check_graph(model, "The normalisation of the graph"))


def prepare(original: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without local functions: their bodies stand where they were called."""
    return inliner.inline_local_functions(original) if original.functions else original


def _sized(spec: TensorSpec, batch: int | None, size: tuple[int, int] | None) -> TensorSpec:
    height, width = size or (None, None)
    return TensorSpec(spec.name, spec.dtype, (batch, spec.shape[1], height, width))
