"""Building an engine: a finished ONNX graph in, TensorRT's bytes out.

Every network is strongly typed: the graph says all precisions, and no builder flag could change one
(TensorRT 11 has none left). TF32 is on by default and would make float32 convolutions ten bits
wide, so it is switched off. Sizes: one fixed size is set on the network's input, which then has no
dynamic dimension at all; a range becomes one optimisation profile.

TensorRT has no uint16: such labels leave the engine as int32, and the session narrows them.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from segdeploy.backends.tensorrt_cache import (
    load_timing_cache,
    save_timing_cache,
    timing_cache_file,
)
from segdeploy.backends.tensorrt_plan import Place, describe_place, pack_plan
from segdeploy.core.contract import InputKind, SizeBounds
from segdeploy.core.errors import BuildError, ConfigError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.session import BuildRequest
from segdeploy.frameworks.cuda import find_gpu
from segdeploy.frameworks.tensorrt import BuilderLog, make_log, require_tensorrt

ENGINE = "engine.json"
"""Companion of the payload: its header for people, and what the builder said."""
WORKSPACE = "SEGDEPLOY_TENSORRT_WORKSPACE_MIB"
"""Variable: the most scratch memory that a kernel may take, in MiB; default: TensorRT's own."""
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class _Build:
    """What the steps of one build share."""

    trt: ModuleType
    log: BuilderLog
    request: BuildRequest

    def fail(self, what: str, hint: str = "") -> BuildError:
        """Return the error of a step, with the builder's own words."""
        name = self.request.payload.name
        return BuildError(f"TensorRT cannot build {name}: {what}", hint=hint, log=self.log.tail())


def build_plan(request: BuildRequest) -> None:
    """Write `request.payload` and its companion.

    Raises:
        BuildError: If the parser or the builder refuses the graph, in their own words.
    """
    trt = require_tensorrt()
    build = _Build(trt, make_log(trt), request)
    place = describe_place(trt, find_gpu())
    builder = trt.Builder(build.log.logger)
    network = _parse(build, builder, _readable_graph(request))
    config = builder.create_builder_config()
    _set_precision(trt, config)
    workspace = _limit_workspace(trt, config, request)
    shapes = _set_shapes(build, builder, network, config)
    file = timing_cache_file(place)
    cache = load_timing_cache(config, file)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise build.fail("its builder gave no engine.")
    save_timing_cache(config, file)
    header = _describe(request, place, network, shapes, workspace)
    write_bytes(request.payload, pack_plan(header, bytes(engine)))
    said = {"timing_cache": cache, "log": build.log.lines}
    write_json(request.payload.with_name(ENGINE), {**header, "build": said})


def _parse(build: _Build, builder: Any, graph: bytes) -> Any:
    trt = build.trt
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, build.log.logger)
    if not parser.parse(graph):
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        lines = [
            f"{each.node_name() or f'node {each.node()}'} ({each.node_operator()}): {each.desc()}"
            for each in found
        ]
        raise BuildError(
            f"TensorRT's parser refuses the graph of {build.request.payload.name}: "
            f"{'; '.join(lines) or 'it does not say why'}",
            hint="segdeploy lint MODEL.onnx --for tensorrt names the nodes and what to do.",
            log=build.log.tail(),
        )
    if network.num_inputs != 1:
        raise build.fail(f"its graph has {network.num_inputs} inputs, not one.")
    return network


def _set_precision(trt: ModuleType, config: Any) -> None:
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        config.clear_flag(tf32)


def _limit_workspace(trt: ModuleType, config: Any, request: BuildRequest) -> int | None:
    """Set the limit of the options, else of the variable; return it in MiB."""
    given = workspace_limit(request.options.get("workspace_mib"))
    if given is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, given << 20)
    return given


def workspace_limit(asked: object = None) -> int | None:
    """Return the limit in MiB that is asked for, or that the variable sets; None is none.

    Raises:
        ConfigError: If it is no positive whole number.
    """
    given = os.environ.get(WORKSPACE) or None if asked is None else asked
    if given is None:
        return None
    if not str(given).isdigit() or not int(str(given)):
        raise ConfigError(f"The workspace limit must be whole MiB, found '{given}'.")
    return int(str(given))


def _set_shapes(build: _Build, builder: Any, network: Any, config: Any) -> Shapes:
    """Fix the input's shape, or add the profile of a range; return (least, usual, largest)."""
    request, given = build.request, network.get_input(0)
    bounds = request.bounds
    if bounds is None:
        if request.size is None:
            raise build.fail("it needs one size, or a range of sizes.")
        bounds = SizeBounds(request.size, request.size, request.size)
    shapes = profile_shapes(bounds, request.io.input)
    fixed = tuple(given.shape)
    if any(
        have not in (-1, side)
        for shape in shapes for have, side in zip(fixed, shape, strict=True)
    ):  # fmt: skip
        raise build.fail(f"its graph takes {fixed}, and {shapes[0]} to {shapes[2]} is asked for.")
    if shapes[0] == shapes[2]:
        given.shape = shapes[0]
        return shapes
    profile = builder.create_optimization_profile()
    profile.set_shape(given.name, *shapes)
    if config.add_optimization_profile(profile) < 0:
        raise build.fail(f"it refuses the profile {shapes}.")
    return shapes


def profile_shapes(bounds: SizeBounds, kind: InputKind) -> Shapes:
    """Return the input's shapes (least, usual, largest); tuned for the largest batch."""

    def shape(batch: int, size: tuple[int, int]) -> tuple[int, ...]:
        return (batch, 3, *size) if kind is InputKind.TENSOR else (batch, *size, 3)

    most = bounds.max_batch
    return shape(1, bounds.least), shape(most, bounds.usual), shape(most, bounds.largest)


def _readable_graph(request: BuildRequest) -> bytes:
    """Return the graph's bytes; labels of uint16 become int32."""
    from onnx import TensorProto

    from segdeploy.graph.proto import graph_bytes, load_graph

    if request.graph is None:
        raise BuildError("TensorRT builds from an ONNX graph, and none was given.")
    model = load_graph(Path(request.graph))
    for value in model.graph.output:
        kind = value.type.tensor_type
        if kind.elem_type != TensorProto.UINT16:
            continue
        kind.elem_type = TensorProto.INT32
        for node in model.graph.node:
            if node.op_type == "Cast" and value.name in node.output:
                for found in node.attribute:
                    found.i = TensorProto.INT32
    return graph_bytes(model)


def _describe(
    request: BuildRequest, place: Place, network: Any, shapes: Shapes, workspace: int | None
) -> dict[str, Any]:
    """Return the header: nothing in it depends on time, paths or what was built before."""
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "format": 1,
        "facts": request.options.get("facts", {}),
        "built": asdict(place),
        "precision": str(request.precision),
        "tf32": False,
        "workspace_mib": workspace,
        "profile": {network.get_input(0).name: [list(shape) for shape in shapes]},
        "outputs": [value.name for value in outputs],
    }
