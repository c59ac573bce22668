"""What can be checked of a Core ML package where Core ML does not run; BuildError if it is wrong.

The written package is read back (not the converter's objects): its ends against the contract, its
types (no weight and no layer in fp32 by accident), and its numbers: the program is evaluated with
torch on a seeded scene, every result rounded to fp16, and compared with the eager module. This
finds wrong weights, lost layers, wrong constants and attributes, and values beyond fp16's range. It
is our reading of the language's operators and no proof of Apple's kernels: for that, `verify` on a
Mac.

An operator that `coreml_program` cannot evaluate is no fault; the numbers then stay unchecked, and
`check.json` beside the payload says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from segdeploy.backends.coreml import INPUT_NAMES, PACKAGE, require_coremltools, unpack
from segdeploy.backends.coreml_program import UnknownOperatorError, evaluate
from segdeploy.core.contract import InputKind, OutputKind, contract_tensors
from segdeploy.core.errors import BuildError
from segdeploy.core.files import write_json
from segdeploy.core.preprocess import normalize_image
from segdeploy.core.session import BuildRequest
from segdeploy.core.task import decision_margin, predict_labels
from segdeploy.data.synthetic import draw_scene

if TYPE_CHECKING:
    from torch import Tensor

    from segdeploy.backends.coreml_build import CoreMlModule

CHECK = "check.json"
_CLOSE = 0.01  # Root mean square error as a share of the spread; measured 5e-4 to 2e-3.
_CLEAR = 0.1  # A margin between classes, in the same unit, that no rounding of weights turns.
_MAX_SCENE = 256
_MODEL, _WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights"
_FLOAT32, _INT32 = 65568, 131104  # ArrayFeatureType.ArrayDataType


def check_package(request: BuildRequest, module: CoreMlModule, sample: Tensor) -> None:
    """Check `request.payload` against the contract and the eager module; write `check.json`.

    Raises:
        BuildError: If anything differs.
    """
    tools = require_coremltools()
    with unpack(request.payload) as folder:
        package = Path(folder) / PACKAGE
        spec = tools.proto.Model_pb2.Model()
        spec.ParseFromString((package / _MODEL).read_bytes())
        check_ends(spec, request)
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(spec, spec.specificationVersion, str(package / _WEIGHTS))
        main = program.functions["main"]
        check_types(main)
        found = _check_numbers(main, request, module, sample)
    write_json(request.payload.with_name(CHECK), {"operators": _count(main), **found})


def check_ends(spec: Any, request: BuildRequest) -> None:
    """Compare names, types and shapes of inputs and outputs with the contract."""
    manifest = request.checkpoint.manifest
    _, outputs = contract_tensors(
        request.io, manifest.task, len(manifest.classes), request.size, batch=1
    )
    height, width = request.size or (0, 0)
    name = INPUT_NAMES[request.io.input]
    image = (name, "RGB", (height, width))
    tensor = (name, _FLOAT32, (1, 3, height, width))
    wanted: list[Any] = [image if request.io.input is InputKind.IMAGE else tensor]
    found = [_describe(end) for end in (*spec.description.input, *spec.description.output)]
    for output, (_, _, shape) in zip(outputs, found[1:], strict=False):
        kind = _FLOAT32 if output.dtype == "float32" else _INT32
        wanted.append((output.name, kind, shape if output.fits(shape) else output.shape))
    if found != wanted or len(wanted) != 1 + len(outputs):
        raise BuildError(f"The package takes and gives {found}, expected {wanted}.")


def _describe(end: Any) -> tuple[str, Any, tuple[int, ...]]:
    if end.type.WhichOneof("Type") == "imageType":
        image = end.type.imageType
        colour = image.ColorSpace.Name(image.colorSpace)
        return end.name, colour, (image.height, image.width)
    array = end.type.multiArrayType
    return end.name, array.dataType, tuple(array.shape)


def check_types(main: Any) -> None:
    """Refuse float32 anywhere but at the two ends of the program."""
    ends = {v.name for v in main.outputs}
    for op in main.operations:
        for value in op.outputs:
            is_end = op.op_type == "cast" and value.name in ends
            is_attribute = op.op_type == "const" and value.rank == 0
            if value.is_tensor_or_scalar_of("fp32") and not is_end and not is_attribute:
                raise BuildError(
                    f"The package computes {op.op_type} '{value.name}' in float32, not fp16."
                )


def _check_numbers(
    main: Any, request: BuildRequest, module: CoreMlModule, sample: Tensor
) -> dict[str, Any]:
    batch = _scene(request, sample)
    try:
        found = evaluate(main, {INPUT_NAMES[request.io.input]: batch})
    except UnknownOperatorError as error:
        return {"numbers": "not checked", "reason": str(error)}
    exact = _logits(module, request, batch)
    first = found[main.outputs[0].name]
    if request.io.output.has_logits:
        distance = _distance(first, exact)
        if not distance < _CLOSE:
            raise BuildError(
                f"The package differs from the model by {distance:.3g} of its spread, limit "
                f"{_CLOSE}."
            )
        return {"numbers": "checked", "distance": round(distance, 6)}
    task, logits = request.checkpoint.manifest.task, exact.numpy()
    flips = first.numpy() != predict_labels(logits, task)
    clear = decision_margin(logits, task) > _CLEAR * logits.std()
    if (flips & clear).any():
        raise BuildError(
            f"The package decides {(flips & clear).mean():.2%} of the pixels otherwise, where the "
            "model is clear."
        )
    return {"numbers": "checked", "flip_rate": round(float(flips.mean()), 6)}


def _logits(module: CoreMlModule, request: BuildRequest, batch: Tensor) -> Tensor:
    """Return the logits of eager, whatever the package gives; low ones where it gives these."""
    if not request.io.output.has_logits:
        module.io = replace(request.io, output=OutputKind.LOGITS)
    with torch.no_grad():
        found: Tensor = module(batch)
    module.io = request.io
    return found


def _scene(request: BuildRequest, sample: Tensor) -> Tensor:
    height, width = sample.shape[2:]
    shape = max(height, 32), max(width, 32)
    image, _ = draw_scene(np.random.default_rng(0), shape)
    image = np.ascontiguousarray(image[:height, :width])
    if request.io.input is InputKind.IMAGE:
        return torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return torch.from_numpy(normalize_image(image, request.checkpoint.manifest.preprocess))[None]


def _distance(found: Tensor, exact: Tensor) -> float:
    spread = float(exact.std()) or 1.0
    return float((found - exact).square().mean().sqrt()) / spread


def _count(main: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for op in main.operations:
        if op.op_type != "const":
            counted[op.op_type] = counted.get(op.op_type, 0) + 1
    return dict(sorted(counted.items()))
