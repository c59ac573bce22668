"""Contracts of graph passes: what breaks one is named, and what a pass may change is no breach."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from segdeploy.core.errors import BuildError
from segdeploy.graph.pass_contract import Need, PassContract
from segdeploy.graph.proto import opset_version


def _tiny() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["tensor"], ["middle"], name="a"),
            helper.make_node("Relu", ["middle"], ["logits"], name="b"),
        ],
        "tiny",
        [value("tensor", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [value("logits", TensorProto.FLOAT, ["N", 3, "H", "W"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "other"


def _fix_height(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 5


def _half_output(model: onnx.ModelProto) -> None:
    model.graph.node[1].CopyFrom(
        helper.make_node("Cast", ["middle"], ["logits"], name="b", to=TensorProto.FLOAT16)
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16


def _raise_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 20


def _add_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _share_a_name(model: onnx.ModelProto) -> None:
    model.graph.node[1].name = "a"


def _break(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nothing"


BREACHES = [
    (_rename_input, "changed the inputs from tensor FLOAT .N, 3, H, W. to other FLOAT"),
    (_fix_height, "changed the outputs from logits FLOAT .N, 3, H, W. to logits FLOAT .N, 3, 5, W"),
    (_half_output, "to logits FLOAT16"),
    (_raise_opset, "from opset 18 to 20"),
    (_add_domain, "operators of com.microsoft"),
    (_share_a_name, "no name of their own"),
    (_break, "invalid ONNX graph"),
]


@pytest.mark.parametrize(("breach", "said"), BREACHES)
def test_a_breach_is_named(breach: Callable[[onnx.ModelProto], None], said: str) -> None:
    before, after = _tiny(), _tiny()
    breach(after)
    contract = PassContract("The pass", opset=19)
    with pytest.raises(BuildError, match=f"The pass .*{said}"):
        contract.check_after(before, after)
    assert contract.check_after(before, _tiny()) == before


def test_what_a_pass_may_change_is_no_breach() -> None:
    before, after = _tiny(), _tiny()
    _rename_input(after)
    _half_output(after)
    after.opset_import[0].version = 19
    contract = PassContract("It", opset=19, changes_input=True, changes_output=True)
    assert opset_version(contract.check_after(before, after)) == 19


def test_nodes_must_have_names_where_a_pass_needs_them() -> None:
    shared = _tiny()
    _share_a_name(shared)
    with pytest.raises(BuildError, match="a name of its own"):
        PassContract("It", frozenset({Need.NAMED})).check_before(shared)
