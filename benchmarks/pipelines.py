"""Ways from a decoded uint8 image to its label map, each in a process of its own.

`Race` runs several in turn: blocks in ABBA order, one pipeline at work at a time and the others
stopped (their threads would spin), the first call of a block thrown away. A pipeline is a function
(options, image) -> call, where the call returns the label map (H, W); `PIPELINES` names them. What
it opens is kept for the next image. Started as a module, this file is the child.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segdeploy.core.child import Array, Child, Worker, child_environment

Image = NDArray[np.uint8]
Call = Callable[[], NDArray[Any]]
Options = Mapping[str, Any]
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def tutorial_onnxruntime(options: Options, image: Image) -> Call:
    """Return what tutorials do: NumPy normalise, ONNX Runtime fp32 to logits, NumPy argmax."""
    session = _open_onnxruntime(options["path"], options["threads"])
    name = session.get_inputs()[0].name

    def call() -> NDArray[Any]:
        pixels = (image.astype(np.float32) / 255.0 - MEAN) / STD
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        logits = session.run(None, {name: batch})[0]
        return np.asarray(logits.argmax(axis=1)[0].astype(np.uint8))

    return call


@cache
def _open_onnxruntime(path: str, threads: int) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def plain_pytorch(options: Options, image: Image) -> Call:
    """Return what needs no export at all: the module on a batch, argmax, as tutorials write it.

    Options: `checkpoint`; `compile`, whether `torch.compile` takes it with its defaults.
    """
    import torch

    torch.set_num_threads(options["threads"])
    module = _open_module(options["checkpoint"], options["compile"])
    mean, std = (torch.from_numpy(each)[:, None, None] for each in (MEAN, STD))

    def call() -> NDArray[Any]:
        with torch.inference_mode():
            pixels = torch.from_numpy(image).permute(2, 0, 1).float().div(255)
            found = module(((pixels - mean) / std)[None])
            logits = found["out"] if isinstance(found, dict) else found  # torchvision's models.
            return np.asarray(logits.argmax(dim=1)[0].to(torch.uint8).numpy())

    return call


@cache
def _open_module(checkpoint: str, is_compiled: bool) -> Any:
    # Its pool of compilers would sit there while others are timed.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    import torch

    from segdeploy.core.folder import load_checkpoint
    from segdeploy.zoo.checkpoint import load_module

    module = load_module(load_checkpoint(Path(checkpoint)))
    return torch.compile(module) if is_compiled else module


def plain_openvino(options: Options, image: Image) -> Call:
    """Return what OpenVINO's first pages do: compile with defaults; NumPy in front and behind."""
    compiled = _compile_plainly(options["path"], options["threads"])
    output = compiled.output(0)

    def call() -> NDArray[Any]:
        pixels = (image.astype(np.float32) / 255.0 - MEAN) / STD
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        return np.asarray(compiled(batch)[output].argmax(axis=1)[0].astype(np.uint8))

    return call


@cache
def _compile_plainly(path: str, threads: int) -> Any:
    import openvino

    return openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads})


def expert_openvino(options: Options, image: Image) -> Call:
    """Return the best that OpenVINO's documentation leads to: all in one compiled graph.

    PrePostProcessor in front (uint8 NHWC, mean and scale), argmax behind, latency hint.
    """
    compiled = _compile_expertly(options["path"], options["hint"], options["threads"], image.shape)
    request = compiled.create_infer_request()
    infer = _OpenVinoCall(request, image[None])
    return lambda: np.array(infer()[0])


class _OpenVinoCall:
    """A request on memory of ours, which it does not keep alive; returns a view of its output.

    The next call overwrites what the view shows.
    """

    def __init__(self, request: Any, batch: NDArray[Any]) -> None:
        import openvino

        self._request = request
        self._batch = np.require(batch, requirements=["C", "W"])  # OpenVINO takes no other.
        request.set_input_tensor(openvino.Tensor(self._batch, shared_memory=True))

    def __call__(self) -> NDArray[Any]:
        self._request.infer(share_outputs=True)
        return np.asarray(self._request.get_output_tensor().data)


@cache
def _compile_expertly(path: str, hint: str, threads: int, shape: tuple[int, ...]) -> Any:
    import openvino
    from openvino import opset13
    from openvino.preprocess import PrePostProcessor

    core = openvino.Core()
    model = core.read_model(path)
    logits = model.outputs[0].get_node().input_value(0)
    # For INT8 graphs ArgMax is TopK(1): OpenVINO has no other.
    best = opset13.topk(logits, openvino.op.Constant(np.array(1)), 1, "max", "none", "i32")
    labels = opset13.convert(opset13.squeeze(best.output(1), np.array([1])), "u8")
    model = openvino.Model([labels], model.get_parameters(), "labels")
    steps = PrePostProcessor(model)
    taken = steps.input()
    taken.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    taken.tensor().set_shape([1, *shape])
    taken.model().set_layout(openvino.Layout("NCHW"))
    to_float = taken.preprocess().convert_element_type(openvino.Type.f32)
    to_float.mean((MEAN * 255).tolist()).scale((STD * 255).tolist())
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": hint,
    }
    return core.compile_model(steps.build(), "CPU", settings)


def segdeploy_artifact(options: Options, image: Image) -> Call:
    """Return an artifact's own way, as `predict` goes it, in this process as all others here."""
    call: Call = _open_artifact(options["path"]).bind(image)
    return call


@cache
def _open_artifact(path: str) -> Any:
    os.environ["SEGDEPLOY_IN_PROCESS"] = "1"
    from segdeploy.backends.predictor import open_predictor

    return open_predictor(Path(path))


def onnxruntime_logits(options: Options, image: Image) -> Call:
    """Return a run of an ONNX file by ONNX Runtime as it is: normalised batch to first output."""
    session = _open_onnxruntime(options["path"], options["threads"])
    feed = {session.get_inputs()[0].name: _normalized(image)}
    return lambda: np.asarray(session.run(None, feed)[0])


def openvino_logits(options: Options, image: Image) -> Call:
    """Return a run of an OpenVINO or ONNX file by OpenVINO in f32 (what is quantised: int8)."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options["threads"],
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    model = core.read_model(options["path"])
    batch = _normalized(image)
    model.reshape(list(batch.shape))
    return _OpenVinoCall(core.compile_model(model, "CPU", settings).create_infer_request(), batch)


def segdeploy_logits(options: Options, image: Image) -> Call:
    """Return a run of an artifact that takes a tensor and gives logits, as `bench` times it."""
    from segdeploy.backends import open_session
    from segdeploy.core.folder import load_folder

    session = open_session(load_folder(Path(options["path"])), "cpu", isolated=False)
    batch = _normalized(image)
    run, logits = session.bind(batch), session.run(batch)["logits"]

    def call() -> NDArray[Any]:
        run()
        return logits

    return call


def _normalized(image: Image) -> NDArray[np.float32]:
    pixels = (image.astype(np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


PIPELINES: dict[str, Callable[[Options, Image], Call]] = {
    "plain_pytorch": plain_pytorch,
    "tutorial_onnxruntime": tutorial_onnxruntime,
    "plain_openvino": plain_openvino,
    "expert_openvino": expert_openvino,
    "segdeploy": segdeploy_artifact,
    "onnxruntime_logits": onnxruntime_logits,
    "openvino_logits": openvino_logits,
    "segdeploy_logits": segdeploy_logits,
}


class _PipelineWorker(Worker):
    """The child: one pipeline, bound to one image at a time."""

    def bind(
        self, request: dict[str, Any], arrays: list[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        """Make the call for an image, run it once and return the label map."""
        image = arrays[0].copy()  # Writable, as the buffer of a camera or decoder is.
        self._call = PIPELINES[request["pipeline"]](request["options"], image)
        return {}, [np.ascontiguousarray(self._call())]

    def sample(
        self, request: dict[str, Any], _arrays: list[Array]
    ) -> tuple[dict[str, Any], list[Array]]:
        """Run for a while; return the samples in ms and the peak memory so far."""
        from segdeploy.measure import peak_memory_mib, sample_ms

        self._call()
        samples = sample_ms(self._call, request["seconds"])
        return {"samples_ms": samples, "peak_memory_mib": peak_memory_mib()}, []


class Race:
    """Pipelines at the start: each a child process, all with the same number of threads."""

    def __init__(self, entries: Mapping[str, tuple[str, Options]], threads: int) -> None:
        self._entries = {
            name: (pipeline, {**options, "threads": threads})
            for name, (pipeline, options) in entries.items()
        }
        self._threads = threads
        self._children: dict[str, Child] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name in self._entries:
            child = Child("benchmarks.pipelines", environment=child_environment(self._threads))
            self._children[name] = self._stack.enter_context(child)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def bind(self, image: Image) -> dict[str, NDArray[np.uint8]]:
        """Let every pipeline take an image; return their label maps."""
        found = {}
        for name, (pipeline, options) in self._entries.items():
            request = {"do": "bind", "pipeline": pipeline, "options": options}
            found[name] = self._children[name].ask(request, [image], limit_s=600.0)[1][0]
        return found

    def run(self, *, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
        """Return the samples and the median of each round, in ms, and the peak memory in MiB."""
        found: dict[str, dict[str, Any]] = {
            name: {"samples_ms": [], "rounds_ms": []} for name in self._children
        }
        try:
            for child in self._children.values():
                child.pause()
            self._take_turns(found, rounds, seconds)
        finally:
            for child in self._children.values():
                child.resume()
        return found

    def _take_turns(self, found: dict[str, dict[str, Any]], rounds: int, seconds: float) -> None:
        for turn in range(rounds + 1):
            order = list(self._children) if turn % 2 else list(self._children)[::-1]
            for name in order:
                request = {"do": "sample", "seconds": seconds}
                self._children[name].resume()
                answer, _ = self._children[name].ask(request, limit_s=600.0)
                self._children[name].pause()
                if turn:  # The first round warms up.
                    found[name]["samples_ms"] += answer["samples_ms"]
                    found[name]["rounds_ms"].append(float(np.median(answer["samples_ms"])))
                found[name]["peak_memory_mib"] = answer["peak_memory_mib"]


if __name__ == "__main__":
    _PipelineWorker().serve()
