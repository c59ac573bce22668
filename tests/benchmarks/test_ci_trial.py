"""The parts of the CI trial that do not measure: what is planted, and in which order."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.ci_trial import plan_jobs, with_convolutions


def test_the_planted_work_changes_no_answer() -> None:
    weights = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (("image", 3), ("out", 2))
    ]
    node = helper.make_node("Conv", ["image", "w"], ["out"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    graph.initializer.append(numpy_helper.from_array(weights, "w"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    slow = with_convolutions(model, 4)
    onnx.checker.check_model(slow)
    assert len(slow.graph.node) == 5
    batch = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    first, second = (
        onnxruntime.InferenceSession(
            each.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, {"image": batch})[0]
        for each in (model, slow)
    )
    np.testing.assert_array_equal(first, second)


def test_slow_jobs_are_spread_among_the_others_and_each_commit_has_one_job() -> None:
    jobs = plan_jobs(50, 5)
    assert len(jobs) == 55
    assert [index for index, (name, _) in enumerate(jobs) if name.startswith("slow")] == [
        10, 21, 32, 43, 54,
    ]  # fmt: skip
    assert len({head for name, head in jobs if name.startswith("docs")}) == 50
