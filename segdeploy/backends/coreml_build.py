"""How a Core ML package is made: capture, convert, and one zip file with always the same bytes.

torch.export, not a trace: of a trace coremltools 9 cannot read the integers of newer torch (unet's
padding). Every input is declared float32, since iOS 16 would take it as fp16 by default; the
program casts at its ends and computes in fp16 between them.
"""

from __future__ import annotations

import io
import json
import tempfile
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdeploy.backends.contract_module import ContractModule
from segdeploy.backends.coreml import INPUT_NAMES, PACKAGE, require_coremltools
from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.errors import BuildError
from segdeploy.core.files import canonical_json, write_bytes
from segdeploy.core.session import BuildRequest
from segdeploy.zoo import load_module

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODEL, _WEIGHTS = "com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights"
_OWN_KEYS = ("conversion_date",)


class CoreMlModule(ContractModule):
    """The contract in Core ML's terms: images arrive as float (1, 3, H, W), labels are int32."""

    def __init__(self, module: nn.Module, request: BuildRequest) -> None:
        manifest = request.checkpoint.manifest
        super().__init__(
            module, request.io, manifest.task, len(manifest.classes), manifest.preprocess
        )
        self.label_type = torch.int32

    def _normalize(self, image: Tensor) -> Tensor:
        pixels = image.flip(1) if self.is_bgr else image
        mean, std = self.mean.view(1, -1, 1, 1), self.std.view(1, -1, 1, 1)
        return (pixels * self.image_scale - mean) / std


def build_package(request: BuildRequest) -> tuple[CoreMlModule, Tensor]:
    """Write `request.payload`; return the module that it was made from, and a sample input.

    Raises:
        BuildError: If no size was given.
    """
    if request.size is None:
        raise BuildError("Core ML is built for one size, and got none.")
    module = CoreMlModule(load_module(request.checkpoint), request)
    module.eval()
    sample = torch.zeros(1, 3, *request.size)
    with torch.no_grad():
        program = torch.export.export(module, (sample,)).run_decompositions({})
    drop_aliases(program)
    model = _convert(program, request)
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / PACKAGE
        model.save(str(package))
        write_bytes(request.payload, _zip(package, request))
    return module, sample


def drop_aliases(program: torch.export.ExportedProgram) -> None:
    """Remove `aten.alias`, which does nothing, and which coremltools does not know."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    program.graph_module.recompile()


def _convert(program: torch.export.ExportedProgram, request: BuildRequest) -> Any:
    tools = require_coremltools()
    name, shape = INPUT_NAMES[request.io.input], (1, 3, *(request.size or ()))
    if request.io.input is InputKind.IMAGE:
        taken = tools.ImageType(name=name, shape=shape, color_layout=tools.colorlayout.RGB)
    else:
        taken = tools.TensorType(name=name, shape=shape, dtype=np.float32)
    logits = tools.TensorType(name="logits", dtype=np.float32)
    labels = tools.TensorType(name="labels", dtype=np.int32)
    confidence = tools.TensorType(name="confidence", dtype=np.float32)
    outputs = {
        OutputKind.LOGITS: [logits],
        OutputKind.LOW_LOGITS: [tools.TensorType(name="low_logits", dtype=np.float32)],
        OutputKind.LABELS: [labels],
        OutputKind.LABELS_CONFIDENCE: [labels, confidence],
    }
    return tools.convert(
        program,
        convert_to="mlprogram",
        inputs=[taken],
        outputs=outputs[request.io.output],
        compute_precision=tools.precision.FLOAT16,
        minimum_deployment_target=tools.target.iOS16,
        skip_model_load=True,
    )


def _zip(package: Path, request: BuildRequest) -> bytes:
    """Return the package as a zip without compression, which would differ between zlib versions."""
    files = {
        file.relative_to(package).as_posix(): file.read_bytes()
        for file in package.rglob("*")
        if file.is_file()
    }
    files["Manifest.json"] = _manifest()
    files[f"Data/{_MODEL}"] = _finish_spec(files[f"Data/{_MODEL}"], request)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{PACKAGE}/{name}", _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, also where it is written elsewhere.
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _manifest() -> bytes:
    """Return Manifest.json with identifiers of the names, in place of random ones."""
    entries = {
        _identifier(path): {
            "author": "com.apple.CoreML",
            "description": text,
            "name": path.rpartition("/")[2],
            "path": path,
        }
        for path, text in (
            (_MODEL, "CoreML Model Specification"),
            (_WEIGHTS, "CoreML Model Weights"),
        )
    }
    plain = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _identifier(_MODEL),
    }
    return json.dumps(plain, indent=4, sort_keys=True).encode()


def _identifier(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"segdeploy:{path}"))


def _finish_spec(content: bytes, request: BuildRequest) -> bytes:
    """Put our facts into the specification in place of the date."""
    spec = require_coremltools().proto.Model_pb2.Model()
    spec.ParseFromString(content)
    metadata = spec.description.metadata
    for key in list(metadata.userDefined):
        if key.rpartition(".")[2] in _OWN_KEYS:
            del metadata.userDefined[key]
    facts = request.options.get("facts", {})
    for name, value in facts.items():
        text = value if isinstance(value, str) else canonical_json(value).decode()
        metadata.userDefined[f"segdeploy.{name}"] = text
    metadata.author = "segdeploy"
    metadata.shortDescription = (
        f"{request.checkpoint.manifest.model}: semantic segmentation, "
        f"{len(request.checkpoint.manifest.classes)} classes"
    )
    found: bytes = spec.SerializeToString(deterministic=True)
    return found
