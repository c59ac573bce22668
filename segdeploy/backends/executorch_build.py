"""How an ExecuTorch program is made: capture, quantise, lower, tell what was not delegated.

PT2E quantises the bare network, and the contract is put around the result: calibration images are
preprocessed tensors whatever the artifact will take, and class indices must not be quantised. Its
observers run in the captured graph, which knows the bounds; so calibration images must lie within.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import BuildError, SegDeployError
from segdeploy.core.files import canonical_json, write_bytes, write_json
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.frameworks.quiet import captured_log, tail

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

FACTS = "segdeploy"
"""Method of the program that returns the facts as JSON text."""
DELEGATION = "delegation.json"

_NO_WORK = ("getitem", "alloc", "sym_size", "executorch_prim", "<built-in")
"""Parts of names that are bookkeeping: sizes, memory, outputs of delegates."""


def build_program(request: BuildRequest) -> None:
    """Write `request.payload`, and `delegation.json` beside it.

    Raises:
        BuildError: If a step fails; with the tail of its log.
    """
    with captured_log() as log:
        try:
            _build(request)
        except (SegDeployError, OSError):
            raise
        except Exception as error:
            raise BuildError(
                f"ExecuTorch cannot build {request.checkpoint.manifest.model}.",
                log=f"{tail(log)}\n{type(error).__name__}: {str(error)[-1500:]}".strip(),
            ) from error


def _build(request: BuildRequest) -> None:
    import torch

    from segdeploy.backends.contract_module import ContractModule
    from segdeploy.zoo import load_module

    manifest = request.checkpoint.manifest
    bounds = request.bounds or _one_size(request)

    def with_contract(module: nn.Module, io: IoContract) -> nn.Module:
        wrapped = ContractModule(
            module, io, manifest.task, len(manifest.classes), manifest.preprocess
        )
        wrapped.training = False  # Not `eval()`: what PT2E gives refuses it.
        if wrapped.label_type is torch.uint16:
            wrapped.label_type = torch.int32  # The portable kernels have no uint16.
        return wrapped

    module, io = load_module(request.checkpoint).eval(), request.io
    with torch.no_grad():
        if request.precision is Precision.INT8:
            is_low = io.output is OutputKind.LOW_LOGITS
            plain = IoContract(output=io.output if is_low else OutputKind.LOGITS)
            captured = _capture(with_contract(module, plain), plain.input, bounds)
            module = _quantize(captured, request.calibration, bounds)
            if is_low:  # What was captured ends there already.
                io = IoContract(io.input, OutputKind.LOGITS)
        program = _capture(with_contract(module, io), io.input, bounds)
        _lower(program, request)


def _one_size(request: BuildRequest) -> SizeBounds:
    if request.size is None:
        raise BuildError("ExecuTorch is built for one size or for bounds, and got neither.")
    return SizeBounds(request.size, request.size, request.size)


def _capture(module: nn.Module, kind: InputKind, bounds: SizeBounds) -> ExportedProgram:
    import torch
    from torch.export import Dim, export

    height, width = bounds.usual
    batch = min(2, bounds.max_batch)  # A sample of one image would make N constant.
    sample = torch.zeros(batch, 3, height, width)
    axes = (0, 2, 3)
    if kind is InputKind.IMAGE:
        sample, axes = torch.zeros(batch, height, width, 3, dtype=torch.uint8), (0, 1, 2)
    low, high = (1, *bounds.least), (bounds.max_batch, *bounds.largest)
    dynamic = {
        axis: Dim(name, min=least, max=most)
        for axis, name, least, most in zip(axes, "nhw", low, high, strict=True)
        if least < most
    }
    return export(module, (sample,), dynamic_shapes=(dynamic or None,))


def _quantize(
    captured: ExportedProgram, calibration: Sequence[Path], bounds: SizeBounds
) -> torch.nn.Module:
    """Return the network with int8 Q/DQ; PT2E folds batch norms into convolutions before."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    if not calibration:
        raise BuildError("An int8 program needs calibration images.")
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(captured.module(), quantizer)
    for file in calibration:
        image = np.load(file)
        if not bounds.has(1, *image.shape[2:]):
            raise BuildError(
                f"A calibration image is {image.shape[2]}x{image.shape[3]}, outside {bounds}."
            )
        prepared(torch.from_numpy(image))
    found: torch.nn.Module = convert_pt2e(prepared)
    return found


def _lower(program: ExportedProgram, request: BuildRequest) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    facts = canonical_json(request.options.get("facts", {})).decode()
    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={FACTS: facts}
    )
    outside = count_outside(edge.exported_program())
    write_bytes(request.payload, bytes(edge.to_executorch().buffer))
    write_json(request.payload.with_name(DELEGATION), outside)


def count_outside(program: Any) -> dict[str, Any]:
    """Return how many delegates there are, and the operators that the portable kernels run.

    A copy of one number (the 3 of hard-swish) is no work either, and is left out.
    """
    counted: Counter[str] = Counter()
    num_delegates = 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        name = getattr(node.target, "__name__", str(node.target))
        value = node.meta.get("val")
        if "delegate" in name:
            num_delegates += 1
        elif hasattr(value, "shape") and len(value.shape) and not _is_no_work(node):
            counted[name] += 1
    return {"num_delegates": num_delegates, "not_delegated": dict(sorted(counted.items()))}


def _is_no_work(node: Any) -> bool:
    return any(part in str(node.target) for part in _NO_WORK)
