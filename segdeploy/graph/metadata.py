"""What a graph says about itself.

The exporter leaves source paths and stack traces of the machine that exported in every node; they
are removed, for privacy and so that equal models are equal files. Put in instead: the model's own
words (classes, preprocessing, contract) as JSON, so that a lone `model.onnx` explains itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from segdeploy.core.files import canonical_json
from segdeploy.graph.pass_contract import PassContract
from segdeploy.graph.proto import copy_model

CONTRACT = PassContract("Metadata")
PREFIX = "segdeploy."


def strip_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without doc strings and metadata; names and arithmetic are unchanged."""
    stripped = copy_model(model)
    graph = stripped.graph
    for part in (
        stripped, graph, *graph.node, *graph.initializer, *graph.input, *graph.output,
        *graph.value_info,
    ):  # fmt: skip
        part.ClearField("metadata_props")
        part.doc_string = ""
        part.ClearField("doc_string")
    return stripped


def set_metadata(model: onnx.ModelProto, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """Return the graph with `segdeploy.NAME` entries: text as it is, all else as JSON."""
    named = copy_model(model)
    props = {p.key: p.value for p in named.metadata_props}
    for name, value in facts.items():
        text = value if isinstance(value, str) else canonical_json(value).decode()
        props[PREFIX + name] = text
    helper.set_model_props(named, dict(sorted(props.items())))
    return CONTRACT.check_after(model, named)
