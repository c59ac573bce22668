"""LiteRT payloads: litert-torch converts, the AI Edge quantizer makes int8 of what it gave.

int8 has activations asymmetric per tensor, weights symmetric per channel. Normalisation and
decision stay float, as in every other format, and so do the operators that our ONNX policy leaves
in float: without an int8 kernel of XNNPACK they would run in slow reference code
(docs/targets/litert.md). Works in LiteRT's own environment only; imports nothing of it by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import BuildError, UnsupportedTargetError
from segdeploy.core.files import canonical_json
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.session import Array, BuildRequest
from segdeploy.core.task import label_dtype

METADATA = "segdeploy.json"
"""Name of the flatbuffer's metadata entry that says what the model is."""
SIGNATURE = "serving_default"
# Scope of an operator inside the model; those of the contract itself have no part after it.
_INSIDE = ".*ContractModule_contract/.*"
_IN_FLOAT = ("HARD_SWISH", "LOGISTIC", "MEAN", "MUL", "RESIZE_BILINEAR", "TRANSPOSE")


def convert(request: BuildRequest) -> bytes:
    """Return the fp32 flatbuffer of the checkpoint's module with its contract."""
    import litert_torch
    import torch
    from torch import Tensor, nn

    from segdeploy.backends.contract_module import ContractModule
    from segdeploy.zoo import load_module

    manifest = request.checkpoint.manifest
    if request.size is None:
        raise BuildError("LiteRT is built for one size.", hint="Give --size HxW.")
    check_labels(request)
    contract = ContractModule(
        load_module(request.checkpoint),
        request.io,
        manifest.task,
        len(manifest.classes),
        manifest.preprocess,
    )
    names = request.io.output.tensor_names

    class Named(nn.Module):
        """The contract with names at its ends, which become the signature's."""

        def __init__(self) -> None:
            super().__init__()
            self.contract = contract

        def forward(self, **taken: Tensor) -> dict[str, Tensor]:
            found = self.contract(*taken.values())
            given = found if isinstance(found, tuple) else (found,)
            return dict(zip(names, given, strict=True))

    sample = torch.zeros(1, 3, *request.size)
    if request.io.input is InputKind.IMAGE:
        sample = torch.zeros(1, *request.size, 3, dtype=torch.uint8)
    converted = litert_torch.convert(Named().eval(), sample_kwargs={request.io.input.value: sample})
    return bytes(converted.model_content())


def check_labels(request: BuildRequest) -> None:
    """Refuse what litert-torch answers with a KeyError: uint16 tensors."""
    kind = label_dtype(len(request.checkpoint.manifest.classes)).name
    if not request.io.output.has_logits and kind != "uint8":
        raise UnsupportedTargetError(
            f"litert cannot express {kind} labels, which more than 255 classes need.",
            hint="Use --output logits.",
        )


def quantize(content: bytes, request: BuildRequest) -> bytes:
    """Return the int8 form of a fp32 flatbuffer."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    if not request.calibration:
        raise BuildError("An int8 payload needs calibration images.")
    names = qtyping.TFLOperationName
    work = quantizer.Quantizer(content)
    work.add_static_config(_INSIDE, names.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for operator in _IN_FLOAT:
        work.update_quantization_recipe(
            regex=".*",
            operation_name=names(operator),
            algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
        )
    found = work.calibrate({SIGNATURE: _Calibration(request)})
    return bytes(work.quantize(found).quantized_model)


class _Calibration:
    """The calibration images as inputs of the signature; the quantizer reads them twice."""

    def __init__(self, request: BuildRequest) -> None:
        self._files = request.calibration
        self._kind = request.io.input
        self._preprocess = request.checkpoint.manifest.preprocess

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for path in self._files:
            batch = np.load(path, allow_pickle=False)
            is_tensor = self._kind is InputKind.TENSOR
            yield {self._kind.value: batch if is_tensor else restore_image(batch, self._preprocess)}


def restore_image(batch: Array, spec: PreprocessSpec) -> Array:
    """Return the uint8 NHWC image that a preprocessed batch was made from, exactly."""
    mean, std = (np.asarray(values, np.float32) for values in (spec.mean, spec.std))
    pixels = np.rint((batch.transpose(0, 2, 3, 1) * std + mean) / np.float32(spec.scale))
    image: Array = np.clip(pixels, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image if spec.channel_order == "rgb" else image[..., ::-1])


def with_metadata(content: bytes, facts: dict[str, Any]) -> bytes:
    """Return the flatbuffer with one more metadata entry: the facts as JSON."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(canonical_json(facts), np.uint8)
    entry.name, entry.buffer = METADATA, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
