"""Profiles and regions of real runtimes: every convolution of the model has its row."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.bench.flame import flame_svg
from segdeploy.bench.profile import profile_artifact
from segdeploy.bench.profilers import profile_module, read_onnx_events, read_torch_events
from segdeploy.bench.sustained_plot import sustained_svg
from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.cli.app import run_app
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import Checkpoint, save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import BenchResult
from segdeploy.core.task import Task
from segdeploy.zoo import load_module

SIZE = (64, 96)
PLAN = BenchPlan(SIZE, threads=1, seconds=0.05)


CONVOLUTIONS = 2


def save_graph(file: Path) -> None:
    """Write two convolutions with what the contract says at both ends."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (3, 8, 3, 3)))
    ]
    nodes = [
        helper.make_node("Conv", ["tensor", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], name="between"),
        helper.make_node("Conv", ["b", "w2"], ["logits"], name="second", pads=[1] * 4),
    ]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])
        for name in ("tensor", "logits")
    ]
    graph = helper.make_graph(nodes, "two", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), file)


def save_openvino(file: Path) -> None:
    import openvino

    graph = file.with_suffix(".onnx")
    save_graph(graph)
    openvino.save_model(openvino.Core().read_model(graph), file, compress_to_fp16=False)
    graph.unlink()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with onnx-fp32, openvino-fp32 and an empty torchscript-fp32, written by hand."""
    folder = tmp_path_factory.mktemp("run")
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    for target, save, names in (
        ("onnx-fp32", save_graph, ("model.onnx",)),
        ("openvino-fp32", save_openvino, ("model.xml", "model.bin")),
        ("torchscript-fp32", Path.touch, ("model.ts",)),  # It is refused before it is opened.
    ):
        manifest = Manifest(
            kind="artifact", model="none", task=Task.MULTICLASS, classes=("a", "b", "c"),
            preprocess=PreprocessSpec(), inputs=inputs, outputs=outputs, io=IoContract(),
            files=dict.fromkeys(names, ""), target=target,
        )  # fmt: skip

        def fill(at: Path, save: Callable[[Path], None] = save, name: str = names[0]) -> None:
            save(at / name)

        save_folder(folder / target, manifest, fill)
    return folder


def test_every_convolution_of_an_onnx_graph_is_a_layer(run: Path) -> None:
    found = profile_artifact(run / "onnx-fp32", PLAN)
    kinds = Counter(layer["type"] for layer in found.layers)
    assert kinds["Conv"] + kinds["FusedConv"] == CONVOLUTIONS
    assert found.layers == sorted(found.layers, key=lambda layer: -layer["ms"])
    assert found.total_ms > 0
    saved = json.loads((run / "onnx-fp32" / "profile.json").read_text())
    assert saved == found.to_dict()
    assert sum(layer["ms"] for layer in saved["layers"]) + saved["other_ms"] == pytest.approx(
        saved["total_ms"]
    )
    assert ET.parse(run / "onnx-fp32" / "profile.svg").getroot().tag.endswith("svg")  # noqa: S314


def test_every_convolution_of_openvino_is_a_layer(run: Path) -> None:
    found = profile_artifact(run / "openvino-fp32", PLAN, save=False)
    kinds = Counter(layer["type"] for layer in found.layers)
    convolutions = sum(count for kind, count in kinds.items() if "Convolution" in kind)
    assert convolutions == CONVOLUTIONS
    assert not (run / "openvino-fp32" / "profile.json").exists()


def test_every_convolution_of_a_checkpoint_is_a_layer(undecided_checkpoint: Checkpoint) -> None:
    from torch import nn

    found = profile_artifact(undecided_checkpoint.path, PLAN, save=False)
    module = load_module(undecided_checkpoint)
    names = {name for name, each in module.named_modules() if isinstance(each, nn.Conv2d)}
    layers = {layer["name"]: layer for layer in found.layers}
    assert names <= set(layers)
    assert {layers[name]["type"] for name in names} == {"Conv2d"}
    assert "aten::upsample_bilinear2d" in layers, "what no module does is there as well"


def test_a_runtime_without_a_profiler_names_those_that_have_one(run: Path) -> None:
    with pytest.raises(ConfigError, match="torchscript has no profiler") as caught:
        profile_artifact(run / "torchscript-fp32", PLAN, save=False)
    assert "ONNX or OpenVINO" in caught.value.hint
    with pytest.raises(ConfigError, match="on the CPU"):
        profile_artifact(run / "onnx-fp32", BenchPlan(device="cuda"))


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"end_to_end": True}, "--end-to-end"), ({"launches": 2}, "--launches"),
        ({"streams": 2}, "--streams"), ({"sustained_s": 1.0}, "--sustained"),
        ({"in_process": True}, "--in-process"), ({"warmup_s": 0.5}, "--warmup"),
        ({"batch_sizes": (1, 4)}, "--batch-size"),
    ],
)  # fmt: skip
def test_what_a_profile_cannot_heed_is_refused(
    run: Path, change: dict[str, Any], option: str
) -> None:
    with pytest.raises(ConfigError, match=f"--profile.*{option}"):
        profile_artifact(run / "onnx-fp32", replace(PLAN, **change), save=False)


def test_the_command_refuses_it_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run / name) for name in ("onnx-fp32", "openvino-fp32")]
    options = ["--profile", "--end-to-end", "--launches", "3"]
    monkeypatch.setattr("sys.argv", ["segdeploy", "bench", *paths, *options])
    assert run_app() == 2
    said = capsys.readouterr().err
    assert said.count("--profile is of one batch") == 1
    assert "--end-to-end, --launches" in said.replace("\n", " ")


def test_the_command_answers_with_the_layers_and_reports_what_has_none(run: Path) -> None:
    command = [sys.executable, "-m", "segdeploy", "bench", str(run / "onnx-fp32"),
               str(run / "torchscript-fp32"), "--profile", "--json", "--size", "64x96",
               "--seconds", "0.05", "--threads", "1", "--no-save"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "torchscript has no profiler" in done.stderr
    (document,) = json.loads(done.stdout)
    assert document["runtime"] == "onnx"
    shares = sum(layer["share"] for layer in document["layers"])
    rest = document["other_ms"] / document["total_ms"]
    assert shares + rest == pytest.approx(1.0)


def test_onnx_runtimes_trace_is_read_without_its_first_call() -> None:
    events: list[dict[str, Any]] = [
        {"cat": "Session", "name": "model_run", "dur": 9},
        *(
            {"cat": "Node", "name": "conv_kernel_time", "dur": us, "args": {"op_name": "Conv"}}
            for us in (9000, 1000, 2000, 3000)
        ),
        {"cat": "Node", "name": "conv_fence_before", "dur": 5, "args": {"op_name": "Conv"}},
    ]
    (layer,) = read_onnx_events(events, 4)
    assert layer == {"name": "conv", "type": "Conv", "path": ["Conv", "conv"], "ms": 2.0}
    (looped,) = read_onnx_events(events, 2)  # Twice in each of two calls.
    assert looped["ms"] == 5.0


class Event:
    """What is read of an event of PyTorch's profiler."""

    def __init__(self, name: str, us: float, parent: object = None) -> None:
        self.name, self.cpu_time_total, self.cpu_parent = name, us, parent


def test_what_runs_several_times_in_a_call_has_the_sum_of_them() -> None:
    events = [
        event
        for slow in (10, 1, 2, 3)  # The first call is left out.
        for event in (
            Event("relu", 1000.0 * slow), Event("relu", 500.0 * slow), Event("conv", 700.0),
            Event("aten::relu", 900.0, parent="relu"), Event("aten::sigmoid", 200.0),
            Event("aten::sigmoid", 100.0),
        )
    ]  # fmt: skip
    events.append(Event("aten::copy_", 400.0))  # In one of four calls.
    found = read_torch_events(events, {"relu": "ReLU", "conv": "Conv2d"}, 4)
    assert {layer["name"]: layer["ms"] for layer in found} == pytest.approx(
        {"relu": 3.0, "conv": 0.7, "aten::sigmoid": 0.3, "aten::copy_": 0.1}
    )


def test_a_module_that_is_shared_has_its_time_of_the_whole_call() -> None:
    import torch
    from torch import Tensor, nn

    class Pause(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.004)  # Never shorter.
            return x

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pause = Pause()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.pause(x)
            return torch.sigmoid(x)

    found = profile_module(Shared().eval(), np.zeros((1, 3, 8, 8), np.float32), 0.0)
    layers = {layer["name"]: layer["ms"] for layer in found["layers"]}
    assert 15.9 <= layers["pause"] <= 1.001 * found["total_ms"]
    assert "aten::sigmoid" in layers


def test_a_flame_is_as_wide_as_the_time_of_its_parts() -> None:
    layers = [
        {"path": ["a", "x<y"], "ms": 3.0}, {"path": ["a", "z"], "ms": 1.0},
        {"path": ["b"], "ms": 2.0},
    ]  # fmt: skip
    picture = flame_svg("demo", 8.0, layers)
    assert "demo: 8.00 ms a call" in picture
    assert "demo: 4.00 ms a call" in flame_svg("demo", 4.0, layers), "two ran side by side"
    root = ET.fromstring(picture)  # noqa: S314
    name = "{http://www.w3.org/2000/svg}"
    widths = {
        group.findtext(f"{name}title", "").split(":")[0]: float(
            group.find(f"{name}rect").attrib["width"]  # type: ignore[union-attr]
        )
        for group in root.iter(f"{name}g")
    }
    assert widths == {"demo": 1200, "a": 600, "x<y": 450, "z": 150, "b": 300, "other": 300}


def test_a_sustained_run_is_drawn() -> None:
    rows = [(float(s), 10.0, 12.0, 5) for s in range(120)]
    root = ET.fromstring(sustained_svg("a & b", rows))  # noqa: S314
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [120, 120]


def test_the_books_of_every_call_stay_within_it(run: Path, tiny_checkpoint: Checkpoint) -> None:
    plan = BenchPlan(SIZE, threads=1, seconds=0.05, warmup_s=0, end_to_end=True)
    paths = [run / "onnx-fp32", run / "openvino-fp32", tiny_checkpoint.path]
    outcome = measure_interleaved(paths, plan, save=False)
    assert not outcome.failures
    for result in outcome.results:
        check_books(result)
    onnx_copy, openvino_copy, torch_copy = (
        max(result.region_samples_ms["device_to_host"]) for result in outcome.results
    )
    assert onnx_copy == 0, "its outputs are the arrays that the caller gets"
    assert min(openvino_copy, torch_copy) > 0


def check_books(result: BenchResult) -> None:
    books = result.region_samples_ms
    assert list(books) == ["preprocess", "host_to_device", "run", "device_to_host", "postprocess"]
    for index, whole in enumerate(result.samples_ms):
        parts = [ms[index] for ms in books.values()]
        assert 0 < sum(parts) <= whole
        assert min(books[name][index] for name in ("preprocess", "run", "postprocess")) > 0
    assert result.regions_ms is not None
    assert result.to_dict()["regions_ms"]["run"] > 0
