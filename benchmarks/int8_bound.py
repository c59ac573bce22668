"""How fast int8 can be on this machine: what its convolutions reach, and what a model needs.

    .venv/bin/python -m benchmarks.int8_bound [--threads 2]

OpenVINO runs one large convolution in f32, bf16 and int8, dense (1x1) and depthwise (5x5): the best
of many runs is what the machine gives. The multiplications of the LRASPP of `image_to_labels` at
520x520, divided by that, are a time that no int8 graph of it goes below here, beside what is
measured and what 3.5 times the speed of the tutorials' pipeline would need. Writes
benchmarks/results/int8_bound.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.render_parts import cpu_of, read
from segdeploy.core.files import write_json
from segdeploy.graph.proto import attribute, initializers, load_graph
from segdeploy.measure import describe_environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "int8_bound.json"
GRAPH = Path("runs/image-to-labels/photo/onnx-fp32+520x520/model.onnx")
TIMES = 3.5
"""Asked of the way from image to label map, against the tutorials' pipeline."""
KINDS = {"f32": ("f32", False), "bf16": ("bf16", False), "int8": ("f32", True)}
LAYERS = {"dense": (512, 512, 1, 65, 1), "depthwise": (960, 1, 5, 65, 960)}


def reach(layer: str, kind: str, threads: int) -> float:
    """Return the multiplications per nanosecond of a layer's best run."""
    import openvino
    from openvino import opset13

    hint, is_int8 = KINDS[kind]
    width, inner, side, size, groups = LAYERS[layer]
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (width, inner, side, side)).astype(np.int8)
    image = opset13.parameter([1, width if groups > 1 else inner, size, size], np.float32)
    source: Any = image
    if is_int8:
        grid = [opset13.constant(np.float32(v)) for v in (0, 2.55, 0, 2.55)]
        source = opset13.fake_quantize(image, *grid, 256)
        scale = np.full((width, 1, 1, 1), 0.01, np.float32)
        values = opset13.multiply(opset13.convert(opset13.constant(weight), "f32"), scale)
    else:
        values = opset13.constant(weight.astype(np.float32))
    pads = [side // 2] * 2
    if groups > 1:
        values = opset13.reshape(values, np.array([groups, 1, 1, side, side]), special_zero=False)
        result = opset13.group_convolution(source, values, [1, 1], pads, pads, [1, 1])
    else:
        result = opset13.convolution(source, values, [1, 1], pads, pads, [1, 1])
    settings = {
        "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True,
    }  # fmt: skip
    model = openvino.Model([opset13.result(result)], [image], layer)
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    best = float("inf")
    for _ in range(60):
        request.infer()
        for each in request.get_profiling_info():
            if "Convolution" in each.node_type:
                best = min(best, each.real_time.total_seconds())
    return width * inner * side**2 * size**2 / best / 1e9


def multiplications(model: onnx.ModelProto) -> dict[str, int]:
    """Return the multiplications of dense and of depthwise convolutions, by shape inference."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    stored = initializers(graph)
    sizes = {v.name: v.type.tensor_type.shape.dim for v in [*graph.value_info, *graph.output]}
    found = {"dense": 0, "depthwise": 0}
    for node in graph.node:
        if node.op_type == "Conv":
            pixels = int(np.prod([dim.dim_value for dim in sizes[node.output[0]][2:]]))
            layer = "depthwise" if attribute(node, "group", 1) > 1 else "dense"
            found[layer] += pixels * int(np.prod(stored[node.input[1]].dims))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    needed = multiplications(load_graph(GRAPH))
    rate = {
        layer: {kind: reach(layer, kind, options.threads) for kind in KINDS} for layer in LAYERS
    }
    bound = {
        kind: sum(needed[layer] / rate[layer][kind] / 1e6 for layer in LAYERS) for kind in KINDS
    }
    environment, photo = describe_environment(), read("image_to_labels")["photo"]
    if (cpu_of(photo["environment"]), photo["threads"]) != (cpu_of(environment), options.threads):
        parser.error("first run benchmarks.image_to_labels here, with as many threads")
    rows = {row["pipeline"]: row for row in photo["rows"]}
    tutorial = next(row for name, row in rows.items() if name.startswith("tutorial"))
    ours = rows["segdeploy: openvino-int8"]
    found = {
        "threads": options.threads,
        "multiplications": needed,
        "per_ns": rate,
        "bound_ms": bound,
        "measured_ms": {"p50": ours["p50_ms"], "min": ours["min_ms"]},
        "asked_ms": {"p50": tutorial["p50_ms"] / TIMES, "min": tutorial["min_ms"] / TIMES},
        "environment": environment,
    }
    write_json(RESULTS, found)
    print(json.dumps({k: v for k, v in found.items() if k != "environment"}, indent=2))


if __name__ == "__main__":
    main()
