"""Per-layer times by the profilers that the runtimes bring: ONNX Runtime, OpenVINO, PyTorch.

A profiler slows what it watches, and a fused layer has the name of one of its parts: shares say
where to look, latencies come from `bench` without a profile. Of several calls, each layer's median
is kept; the first call is thrown away. A layer may run more than once in a call (a shared module, a
loop): what counts is its sum per call.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from segdeploy.backends import find_backend
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Checkpoint, ModelFolder
from segdeploy.core.session import Array

if TYPE_CHECKING:
    from torch import nn

Profile = dict[str, Any]
"""{"runtime", "total_ms" (of one call), "layers": [{"name", "type", "path", "ms"}]}."""
_LEAST_CALLS, _MOST_CALLS = 3, 50
_KERNEL = "_kernel_time"


def profile_folder(folder: ModelFolder, batch: Array, seconds: float) -> Profile:
    """Return the layers of an artifact or checkpoint, in the order they ran, on the CPU.

    Raises:
        ConfigError: If its runtime has no profiler; the hint names those that have one.
    """
    backend = find_backend(folder)
    name = "pytorch" if backend is None else backend.name
    if name not in _PROFILERS:
        raise ConfigError(
            f"{name} has no profiler of its layers.",
            hint="Profile an ONNX or OpenVINO artifact, or the checkpoint (eager PyTorch).",
        )
    return {"runtime": name, **_PROFILERS[name](folder, batch, seconds)}


def _onnx(folder: ModelFolder, batch: Array, seconds: float) -> Profile:
    from segdeploy.backends.onnx import graph_source
    from segdeploy.backends.onnx_providers import PROVIDERS
    from segdeploy.frameworks.onnxruntime import require_onnxruntime, session_options

    runtime, options = require_onnxruntime(), session_options()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = runtime.InferenceSession(
            graph_source(folder, "cpu"), options, providers=[PROVIDERS["cpu"]]
        )
        feed = {folder.manifest.inputs[0].name: batch}
        total, num_calls = _repeat(lambda: session.run(None, feed), seconds)
        events = json.loads(Path(session.end_profiling()).read_bytes())
    return {"total_ms": total, "layers": read_onnx_events(events, num_calls)}


def read_onnx_events(events: list[dict[str, Any]], num_calls: int) -> list[dict[str, Any]]:
    """Return the layers of ONNX Runtime's own trace of some calls."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
            times[key].append(event["dur"] / 1000)
    return [_layer(name, kind, ms, num_calls, [kind, name]) for (name, kind), ms in times.items()]


def _openvino(folder: ModelFolder, batch: Array, seconds: float) -> Profile:
    from segdeploy.backends.openvino import (
        compile_settings,
        compile_shaped,
        has_open_batch_only,
        runtime_core,
    )
    from segdeploy.core.target import ExportTarget
    from segdeploy.frameworks.packages import import_package

    openvino = import_package("openvino", "openvino")
    precision = ExportTarget.parse(folder.manifest.target or "").precision
    settings = {**compile_settings(precision), "PERF_COUNT": True}
    spec = folder.manifest.inputs[0]
    batch_size = len(batch) if has_open_batch_only(spec) else None
    model = runtime_core().read_model(folder.payload)
    request = compile_shaped(model, batch_size, settings).create_infer_request()
    request.set_tensor(spec.name, openvino.Tensor(batch))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)

    def read() -> None:
        for each in request.get_profiling_info():
            if each.real_time.total_seconds() > 0:
                times[each.node_name, each.node_type].append(each.real_time.total_seconds() * 1e3)

    total, num_calls = _repeat(request.infer, seconds, after=read)
    layers = [_layer(name, kind, ms, num_calls, [kind, name]) for (name, kind), ms in times.items()]
    return {"total_ms": total, "layers": layers}


def _pytorch(folder: ModelFolder, batch: Array, seconds: float) -> Profile:
    from segdeploy.zoo import load_module

    if not isinstance(folder, Checkpoint):
        raise ConfigError(f"{folder.path} is not a checkpoint.")
    return profile_module(load_module(folder, "cpu").eval(), batch, seconds)


def profile_module(module: nn.Module, batch: Array, seconds: float) -> Profile:
    """Return `total_ms` and the layers of a live module; it is left with hooks on its layers."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    tensor = torch.from_numpy(batch)
    with torch.inference_mode():
        module(tensor)
        kinds = _name_layers(module)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            total, num_calls = _repeat(lambda: module(tensor), seconds)
    layers = read_torch_events(profiler.events() or (), kinds, num_calls)
    return {"total_ms": total, "layers": layers}


def read_torch_events(
    events: Iterable[Any], kinds: dict[str, str], num_calls: int
) -> list[dict[str, Any]]:
    """Return the layers of PyTorch's trace of some calls; `kinds` are the classes of modules."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = _name_of(event, kinds)
        if name:
            times[name].append(event.cpu_time_total / 1000)
    return [
        _layer(name, kinds[name], ms, num_calls, name.split("."))
        if name in kinds
        else _layer(name, name, ms, num_calls, ["outside modules", name])
        for name, ms in times.items()
    ]


def _name_layers(module: nn.Module) -> dict[str, str]:
    """Let every module without children say when it runs; return their classes by name."""
    from torch.profiler import record_function

    kinds = {}
    for name, each in module.named_modules():
        if next(each.children(), None) is not None:
            continue
        kinds[name] = type(each).__name__
        record = record_function(name)
        each.register_forward_pre_hook(_entering(record))
        each.register_forward_hook(_leaving(record))
    return kinds


def _entering(record: Any) -> Callable[..., None]:
    def begin(*_: Any) -> None:  # What a hook returns would replace the input.
        record.__enter__()

    return begin


def _leaving(record: Any) -> Callable[..., None]:
    def end(*_: Any) -> None:
        record.__exit__(None, None, None)

    return end


def _name_of(event: Any, kinds: dict[str, str]) -> str | None:
    """Return a layer's name, or that of an operation that no module or operation called."""
    if event.name in kinds:
        return str(event.name)
    is_outermost = event.name.startswith("aten::") and event.cpu_parent is None
    return str(event.name) if is_outermost else None


def _repeat(
    call: Callable[[], object], seconds: float, after: Callable[[], object] = lambda: None
) -> tuple[float, int]:
    """Call a few times for about `seconds`.

    Return the median time in ms, the first call's not among them, and the number of all calls.
    `after` each call, outside its time, the caller may note what it took.
    """
    begin = perf_counter()
    times: list[float] = []
    while len(times) <= _LEAST_CALLS or (
        perf_counter() - begin < seconds and len(times) <= _MOST_CALLS
    ):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1000)
        after()
    return statistics.median(times[1:]), len(times)


def _layer(
    name: str, kind: str, ms: list[float], num_calls: int, path: list[str]
) -> dict[str, Any]:
    return {"name": name, "type": kind, "path": path, "ms": _per_call(ms, num_calls)}


def _per_call(ms: list[float], num_calls: int) -> float:
    """Return the median over calls of what a layer took in one, the first call's left out.

    A layer that did not run equally often in each call has its mean.
    """
    times, rest = divmod(len(ms), num_calls)
    if rest:
        return sum(ms) / num_calls
    sums = [sum(ms[start : start + times]) for start in range(0, len(ms), times)]
    return statistics.median(sums[1:] or sums)


_PROFILERS: dict[str, Callable[[ModelFolder, Array, float], Profile]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "pytorch": _pytorch,
}
