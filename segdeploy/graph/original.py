"""Reading an ONNX file that somebody else wrote: whole or not at all, nothing taken for granted.

What no part of this project handles is refused here, by name and with a way out, before a converter
sees it: other operator domains, control flow, graphs that are quantised or half precision already,
weights that are not finite or too large for one file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper

from segdeploy.core.errors import ArtifactError, BackendUnavailableError, ExportError
from segdeploy.graph.proto import load_graph, to_array

MAX_BYTES = 2**31 - 2**24
"""What one ONNX file can hold (protobuf ends at 2 GiB), with room for what passes add."""

_QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
    "MatMulInteger", "DynamicQuantizeLinear",
}  # fmt: skip
_NARROW: dict[int, str] = {
    TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64",
}  # fmt: skip
_FORMATS = {
    ".pt": "a PyTorch file", ".pth": "a PyTorch file", ".ckpt": "a PyTorch file",
    ".safetensors": "a weights file", ".tflite": "a TensorFlow Lite file",
    ".pb": "a TensorFlow file", ".h5": "a Keras file", ".mlmodel": "a Core ML file",
}  # fmt: skip


def load_original(path: Path) -> onnx.ModelProto:
    """Return the model of a file, with its external data.

    Raises:
        ArtifactError: If it is no ONNX file, or external data is missing, elsewhere or too large.
    """
    size = _file_size(path)
    if size == 0:
        raise ArtifactError(f"{path} is empty.", hint="Copy or download it again.")
    if size > MAX_BYTES:
        raise ArtifactError(
            f"{path} has {size / 2**30:.1f} GiB; one ONNX file holds 2 GiB at most.", hint=_TOO_BIG
        )
    if path.suffix.lower() in _FORMATS:
        raise ArtifactError(
            f"{path} is {_FORMATS[path.suffix.lower()]}, not an ONNX file.",
            hint="Weights of PyTorch come in by: segdeploy import WEIGHTS --model M --out DIR.",
        )
    model = load_graph(path)
    external = external_files(model)
    _check_external(path, model, external)
    if external:
        try:
            external_data_helper.load_external_data_for_model(model, str(path.parent.resolve()))
        except Exception as error:
            raise ArtifactError(f"The external data of {path} cannot be read: {error}") from error
    return model


_TOO_BIG = "Segmentation models of this size are not supported; use a smaller one."


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error


def external_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the files that hold tensors of the graph, as the graph says them."""
    places = [
        external_data_helper.ExternalDataInfo(tensor).location
        for tensor in _stored_tensors(model)
        if external_data_helper.uses_external_data(tensor)
    ]
    return tuple(dict.fromkeys(places))


def _stored_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    constants = [a.t for n in model.graph.node for a in n.attribute if a.name == "value"]
    return [*model.graph.initializer, *constants]


def _check_external(path: Path, model: onnx.ModelProto, names: tuple[str, ...]) -> None:
    for name in names:
        if not name or Path(name).name != name:
            raise ArtifactError(
                f"{path} keeps weights in '{name}', which is not beside it.",
                hint="Save it as one file: onnx.save(onnx.load(OLD), NEW).",
            )
        if not (path.parent / name).is_file():
            raise ArtifactError(
                f"{path} keeps weights in {name}, which is missing.",
                hint=f"Copy {name} into {path.parent}, or save the model as one file.",
            )
    total = sum(_tensor_bytes(tensor) for tensor in _stored_tensors(model))
    if total > MAX_BYTES:  # Before any of it is read.
        raise ArtifactError(
            f"The weights of {path} have {total / 2**30:.1f} GiB; one ONNX file holds 2 GiB at "
            "most.",
            hint=_TOO_BIG,
        )
    for tensor in _stored_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            _check_length(path, tensor)


def _check_length(path: Path, tensor: onnx.TensorProto) -> None:
    place = external_data_helper.ExternalDataInfo(tensor)
    file = path.parent / place.location
    needed = int(place.offset or 0) + _tensor_bytes(tensor)
    if file.stat().st_size < needed:
        raise ArtifactError(
            f"The external data {file.name} of {path} has {file.stat().st_size} bytes; the tensor "
            f"'{tensor.name}' ends at {needed}.",
            hint="Copy both files again: they do not belong together, or one is cut short.",
        )


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    count = int(np.prod([max(0, int(d)) for d in tensor.dims], dtype=object))
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):
        width = 4
    return count * width


def check_supported(model: onnx.ModelProto, path: Path) -> None:
    """Check that a graph is one that the passes and backends can be asked to handle.

    Raises:
        ExportError: If not; it says what was found.
    """
    nodes = model.graph.node
    foreign = sorted({f"{n.domain}:{n.op_type}" for n in nodes if n.domain not in {"", "ai.onnx"}})
    if foreign:
        raise ExportError(
            f"{path} has operators that are not ONNX's own: {_few(foreign)}.",
            hint="Export the model again without custom operators or ONNX Runtime's optimiser.",
        )
    nested = [n for n in nodes if any(a.type in _GRAPHS for a in n.attribute)]
    if nested:
        raise ExportError(
            f"{path} has control flow: {_few([f'{n.op_type} {n.name!r}' for n in nested])}.",
            hint="Export the model again with fixed branches, e.g. by tracing it, or simplify it.",
        )
    quantized = sorted({n.op_type for n in nodes if n.op_type in _QUANTIZED})
    if quantized:
        raise ExportError(
            f"{path} is quantised already ({_few(quantized)}).",
            hint="Give the float32 model; --target onnx-int8 quantises it.",
        )
    _check_known_operators(model, path)
    _check_finite(model, path)


_GRAPHS = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_known_operators(model: onnx.ModelProto, path: Path) -> None:
    version = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    newest = onnx.defs.onnx_opset_version()
    if not 0 < version <= newest:
        raise BackendUnavailableError(
            f"{path} has opset {version}; the installed onnx {onnx.__version__} knows 1..{newest}.",
            hint="Install a newer onnx, or export the model again with --opset 18.",
        )
    unknown = sorted(
        {n.op_type for n in model.graph.node if not onnx.defs.has(n.op_type, version, "")}
    )
    if unknown:
        raise ExportError(
            f"{path} has operators that ONNX does not know at opset {version}: {_few(unknown)}.",
            hint="Export the model again, with standard operators only.",
        )


def check_precision(model: onnx.ModelProto, path: Path) -> None:
    """Check that what the graph computes is float32.

    Raises:
        ExportError: If it computes in float16, bfloat16 or float64.
    """
    kinds = {v.name: v.type.tensor_type.elem_type for v in _inferred(model)}
    narrow = sorted(
        {
            _NARROW[kinds[name]]
            for node in model.graph.node
            if node.op_type not in {"Cast", "Constant", "Identity"}
            for name in node.output
            if kinds.get(name) in _NARROW
        }
    )
    if narrow:
        raise ExportError(
            f"{path} computes in {' and '.join(narrow)}.",
            hint="Give the float32 model; --target onnx-fp16 makes a half precision one of it.",
        )


def _inferred(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return [*graph.input, *graph.output, *graph.value_info]


def _check_finite(model: onnx.ModelProto, path: Path) -> None:
    broken = []
    for tensor in _stored_tensors(model):
        if tensor.data_type not in {TensorProto.FLOAT, *_NARROW}:
            continue
        with np.errstate(invalid="ignore"):
            values = to_array(tensor).astype(np.float64)
        is_bound = values.size == 1 and not np.isnan(values).any()  # Of a Clip: may be infinite.
        if not is_bound and not np.isfinite(values).all():
            broken.append(tensor.name or "a constant")
    if broken:
        raise ExportError(
            f"{path} has weights that are not finite: {_few(broken)}.",
            hint="Its training diverged, or the file is damaged; take an earlier checkpoint.",
        )
