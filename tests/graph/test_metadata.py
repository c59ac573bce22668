from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from segdeploy.core.errors import ArtifactError
from segdeploy.graph.metadata import set_metadata, strip_metadata
from segdeploy.graph.proto import graph_bytes, load_graph

Run = Callable[[onnx.ModelProto, NDArray[Any]], list[NDArray[Any]]]


def test_stripping_removes_paths_and_keeps_the_arithmetic(
    small_model: onnx.ModelProto, run: Run, batch: NDArray[np.float32]
) -> None:
    chatty = onnx.ModelProto()
    chatty.CopyFrom(small_model)
    secret = "/home/somebody/train.py"
    chatty.doc_string = chatty.graph.doc_string = secret
    for node in chatty.graph.node:
        node.doc_string = secret
        node.metadata_props.add(key="stack_trace", value=secret)
    stripped = strip_metadata(chatty)
    assert secret.encode() not in graph_bytes(stripped)
    np.testing.assert_array_equal(run(stripped, batch)[0], run(small_model, batch)[0])


def test_facts_come_back_from_the_file(small_model: onnx.ModelProto, tmp_path: Path) -> None:
    facts = {"model": "unet", "classes": ["sky", "road"], "preprocess": {"scale": 0.5}}
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_bytes(set_metadata(small_model, facts)))
    props = {p.key: p.value for p in load_graph(path).metadata_props}
    assert props["segdeploy.model"] == "unet"
    assert json.loads(props["segdeploy.classes"]) == ["sky", "road"]
    assert json.loads(props["segdeploy.preprocess"]) == {"scale": 0.5}


@pytest.mark.parametrize("content", [b"", b"not an onnx file", b"\x08\x07"])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not an ONNX file"):
        load_graph(path)
