"""OpenVINO: an IR made from the finished ONNX graph, run on the CPU of Intel or AMD.

The file is the same kind of graph in every precision; what runs is chosen when it is compiled.
OpenVINO's own default is bf16 wherever the CPU has it, so the precision of the target is set, and
then asked back from the compiled graph: on a CPU without bf16 the hint is ignored in silence. What
an int8 graph leaves unquantised is f32. Writing has a silent default too, weights in fp16.

Signed activations go wrong without a word: of `Concat -> Q (S8, zero point 0) -> DQ -> Conv` its
low precision passes make something else (unet on CamVid: SNR 15 dB and 2.5 % flips where the graph
itself has 33 dB and 0.24 %). The same numbers as U8 with zero point 128 run as many int8
convolutions, in the same time, and give the graph's own result; the files hold that form.

`convert_model` reports to its vendor and writes the path of its input into the file; `read_model`
does neither. Names that OpenVINO gives by itself hold a counter of the process: they are replaced,
else the second graph of a process would have other bytes than the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.backends.openvino_weights import halve_weights
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError
from segdeploy.core.files import canonical_json
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Session
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.frameworks.packages import find_packages, import_package
from segdeploy.frameworks.processor import onednn_saturates
from segdeploy.frameworks.threads import num_threads
from segdeploy.measure.regions import Region, enter

_MOST_COMPILED = 4  # Batch sizes; each has its own copy of packed weights.
FACTS = "segdeploy"
"""Section of rt_info that holds the facts."""

_HINTS = {Precision.FP32: "f32", Precision.BF16: "bf16", Precision.INT8: "f32"}
_WEIGHTED = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
"""Layer types whose precision is the precision of the model."""

_RUNS_AS = {
    Precision.FP32: frozenset({"f32"}),
    Precision.BF16: frozenset({"bf16"}),
    Precision.INT8: frozenset({"i8", "u8"}),
}


class OpenVinoSession:
    """A model, compiled for each batch size that comes, with a request for each bound batch."""

    def __init__(
        self,
        compile_for: Callable[[int | None], Any],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._compile_for: Callable[[int | None], Any] | None = compile_for
        self._requests: dict[int | None, _Request] = {}
        self.inputs = inputs
        self.outputs = outputs
        self._is_used = False
        self._request(1)  # What cannot be compiled is told when it is opened.

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        check_batch(batch, self.inputs[0])
        request = self._request(batch.shape[0])
        self._is_used = True
        enter(Region.HOST_TO_DEVICE)
        request.place(batch)
        enter(Region.RUN)
        request.infer()
        enter(Region.DEVICE_TO_HOST)
        return {spec.name: request.read(spec.name) for spec in self.outputs}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once, in a request of its own."""
        check_batch(batch, self.inputs[0])
        request = self._request(batch.shape[0]).another()
        self._is_used = True
        request.place(batch)

        def call() -> None:
            self._check_open()
            request.infer()

        return call

    def close(self) -> None:
        """Free the runtime's models."""
        self._compile_for = None
        self._requests.clear()

    def _request(self, num_images: int) -> _Request:
        """Return the request of a batch size; the one that was used least lately makes room."""
        compile_for = self._check_open()
        size = num_images if has_open_batch_only(self.inputs[0]) else None
        request = self._requests.pop(size, None)
        if request is None:
            request = _Request(compile_for(size), self.inputs[0].name)
            if not self._is_used:
                self._requests.clear()  # What opening compiled is not what is wanted.
        self._requests[size] = request
        if len(self._requests) > _MOST_COMPILED:
            del self._requests[next(iter(self._requests))]
        return request

    def _check_open(self) -> Callable[[int | None], Any]:
        if self._compile_for is None:
            raise ArtifactError("The session is closed.")
        return self._compile_for


class _Request:
    """A request of a compiled model, and the array that its input tensor lives in."""

    def __init__(self, compiled: Any, input_name: str) -> None:
        self.compiled = compiled
        self._input_name = input_name
        self._request = compiled.create_infer_request()
        self._placed: tuple[Array, dict[str, Any]] | None = None
        self._own: Array | None = None

    def another(self) -> _Request:
        """Return one of the same model."""
        return _Request(self.compiled, self._input_name)

    def place(self, batch: Array) -> None:
        """Set the input tensor; not again where it is set already, as in a loop over one buffer."""
        if not batch.flags.writeable:  # Pillow's are not, and OpenVINO takes no such memory.
            batch = self._copy(batch)
        place = batch.__array_interface__  # Address, shape, strides and type.
        if self._placed is not None and place == self._placed[1]:
            return
        kept = np.require(batch, requirements=["C"])
        tensor = import_package("openvino", "openvino").Tensor(kept, shared_memory=True)
        self._request.set_tensor(self._input_name, tensor)
        self._placed = kept, kept.__array_interface__  # Alive: no other array comes to lie there.

    def _copy(self, batch: Array) -> Array:
        """Return a copy in memory that every such batch of this shape comes to lie in."""
        if self._own is None or self._own.shape != batch.shape:
            self._own = np.empty(batch.shape, batch.dtype)
        np.copyto(self._own, batch)
        return self._own

    def infer(self) -> None:
        """Run what was placed."""
        try:
            self._request.infer(share_outputs=True)  # Without: a copy of all outputs, unread.
        except RuntimeError as error:
            shape = None if self._placed is None else self._placed[0].shape
            raise ArtifactError(f"OpenVINO cannot run a batch of shape {shape}: {error}") from error

    def read(self, output_name: str) -> Array:
        """Return an output; the tensor is the request's own memory."""
        return np.array(self._request.get_tensor(output_name).data)


class OpenVinoBackend(Backend):
    """Builds `model.xml` with `model.bin`, and opens them on the CPU."""

    name = "openvino"
    source = "onnx"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.BF16, Precision.INT8)
    payload_name = "model.xml"
    other_files = ("model.bin",)
    packages = ("openvino",)
    recipe = 2

    def require(self) -> None:
        """Raise BackendUnavailableError if openvino is missing."""
        find_packages("openvino", "openvino")

    def build(self, request: BuildRequest) -> None:
        """Convert the finished graph.

        Raises:
            BuildError: If OpenVINO cannot read the graph, or would run int8 in f32.
        """
        openvino = import_package("openvino", "openvino")
        if request.graph is None:
            raise BuildError("OpenVINO is built from a graph, and none was given.")
        try:
            model = runtime_core().read_model(_readable(request.graph, request.precision))
        except (RuntimeError, ArtifactError) as error:
            raise BuildError(
                f"OpenVINO cannot read the graph of {request.checkpoint.manifest.model}.",
                log=str(error)[-2000:],
            ) from error
        _name_nodes(model)
        _set_facts(model, request.options.get("facts", {}))
        openvino.save_model(model, request.payload, compress_to_fp16=False)

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Compile the artifact's model for the CPU.

        Raises:
            ArtifactError: If the files cannot be read or contradict the manifest.
            BackendUnavailableError: If openvino is missing, the device is not the CPU, or this CPU
                does not run the target's precision.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"OpenVINO runs on the CPU here, not on '{device}'.", hint="Use --device cpu."
            )
        manifest = folder.manifest
        precision = ExportTarget.parse(manifest.target or "").precision
        try:
            model = runtime_core().read_model(folder.payload)
        except RuntimeError as error:
            raise _cannot_open(folder, error) from error
        if precision is Precision.INT8 and onednn_saturates():
            halve_weights(model)
        _check_contract(model, manifest.inputs, manifest.outputs, str(folder.payload))

        def compile_for(batch_size: int | None) -> Any:
            try:
                compiled = compile_shaped(model, batch_size, compile_settings(precision))
            except RuntimeError as error:
                raise _cannot_open(folder, error) from error
            check_executed(compiled, precision)
            return compiled

        return OpenVinoSession(compile_for, manifest.inputs, manifest.outputs)


@cache
def runtime_core() -> Any:
    """Return the one `openvino.Core` of this process; it lives until the process ends.

    Each core puts a signal stack in place, and frees it with no regard to those of other cores:
    after a few of them have come and gone, the next Ctrl-C would be a segmentation fault (2026.4).
    """
    return import_package("openvino", "openvino").Core()


def _cannot_open(folder: ModelFolder, error: RuntimeError) -> ArtifactError:
    return ArtifactError(f"OpenVINO cannot open {folder.payload}: {error}", hint="Export it again.")


def has_open_batch_only(spec: TensorSpec) -> bool:
    """Return whether an input is open in its batch size and nowhere else."""
    return spec.shape[0] is None and None not in spec.shape[1:]


def compile_shaped(model: Any, batch_size: int | None, settings: dict[str, Any]) -> Any:
    """Return a model compiled for the CPU and one batch size; None leaves it as it is.

    With every shape known the plugin plans memory and chooses kernels once, not in every call.
    """
    openvino = import_package("openvino", "openvino")
    if batch_size is not None:
        model = model.clone()
        (port,) = model.inputs
        model.reshape({port: openvino.PartialShape([batch_size, *list(port.partial_shape)[1:]])})
    return runtime_core().compile_model(model, "CPU", settings)


def compile_settings(precision: Precision) -> dict[str, Any]:
    """Return the properties that a model is compiled with: nothing is left to a default."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        # Layers with int8 weights and float inputs would get inputs in int8, which nobody asked.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    threads = num_threads()
    return settings if threads is None else {**settings, "INFERENCE_NUM_THREADS": threads}


def executed_types(compiled: Any) -> Counter[tuple[str, str]]:
    """Return how many layers of a compiled model run in which precision: {(layer, type): n}."""
    found: Counter[tuple[str, str]] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        found[facts["layerType"].astype(str), facts["runtimePrecision"].astype(str)] += 1
    return found


def check_executed(compiled: Any, precision: Precision) -> None:
    """Check that a compiled model really runs in a precision.

    Every layer with weights counts: all of them in the float precisions; in int8 some must be
    quantised (which of them is the graph's decision) and the rest f32.

    Raises:
        BackendUnavailableError: If it does not: the CPU cannot.
    """
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    found = {kind for layer, kind in executed_types(compiled) if layer in _WEIGHTED}
    runs_as = _RUNS_AS[precision]
    if precision is Precision.INT8:
        fits = (not found or bool(found & runs_as)) and found <= runs_as | {"f32"}
    else:
        fits = found <= runs_as
    if not fits or hint != _HINTS[precision]:
        ran = ", ".join(sorted(found)) or hint
        raise BackendUnavailableError(
            f"OpenVINO runs this {precision} model in {ran} on this CPU.",
            hint="Use a CPU that has it (bf16: AVX-512 or AMX), or another target, e.g. "
            "openvino-fp32.",
        )


def _readable(graph: Path, precision: Precision) -> bytes:
    """Return the graph as OpenVINO computes it fastest, and int8 without going wrong."""
    from segdeploy.graph.image_bytes import read_image_bytes
    from segdeploy.graph.image_rows import normalize_in_rows
    from segdeploy.graph.pool_in_steps import pool_in_steps
    from segdeploy.graph.proto import graph_bytes, load_graph
    from segdeploy.graph.u8_activations import use_u8_activations
    from segdeploy.graph.zero_points import fold_zero_points

    loaded = load_graph(graph)
    over_bytes = read_image_bytes(loaded)
    model = normalize_in_rows(over_bytes)
    if precision is not Precision.INT8:
        return graph_bytes(model)
    is_float = all(node.op_type != "QuantizeLinear" for node in model.graph.node)
    if is_float and over_bytes == loaded:
        raise BuildError(
            "OpenVINO would run this int8 graph in f32: its policy quantises weights alone and "
            "leaves all activations in float.",
            hint="Give another --int8-policy, or export openvino-fp32.",
        )
    return graph_bytes(pool_in_steps(fold_zero_points(use_u8_activations(model))))


def _name_nodes(model: Any) -> None:
    """Give every node whose name OpenVINO made up a name of its place in the graph."""
    nodes = model.get_ordered_ops()
    taken = {node.get_friendly_name() for node in nodes}
    for index, node in enumerate(nodes):
        if node.get_friendly_name() == node.get_name():
            name = f"{node.get_type_name()}_at_{index}"
            node.set_friendly_name(f"{name}_" if name in taken else name)


def _set_facts(model: Any, facts: dict[str, Any]) -> None:
    """Replace the metadata of the graph that it was made from, whose target was another."""
    info = model.get_rt_info()
    for section in [name for name in info.keys() if name == "framework"]:  # noqa: SIM118  no dict
        del info[section]
    for name, value in facts.items():
        text = value if isinstance(value, str) else canonical_json(value).decode()
        model.set_rt_info(text, [FACTS, name])


def _check_contract(
    model: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], what: str
) -> None:
    wanted = [(s.name, s.dtype, s.shape) for s in (*inputs, *outputs)]
    ports = (*model.inputs, *model.outputs)
    names = [name for name, _, _ in wanted] + [""] * len(ports)
    found = [_describe(port, name) for port, name in zip(ports, names, strict=False)]
    if len(found) == len(wanted) and all(
        have[:2] == want[:2] and _may_be(have[2], want[2])
        for have, want in zip(found, wanted, strict=True)
    ):
        return
    raise ArtifactError(
        f"{what} takes and gives {found}, but the manifest says {wanted}.",
        hint="Export it again.",
    )


def _describe(port: Any, wanted: str) -> tuple[str, str, tuple[int | None, ...]]:
    """Return name, type and shape; where two nodes became one, the port has the names of both."""
    shape = tuple(side.get_length() if side.is_static else None for side in port.partial_shape)
    name = wanted if wanted in port.names else port.any_name
    return name, port.element_type.to_dtype().name, shape


def _may_be(found: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Return whether sizes agree; those of an output that OpenVINO cannot derive are unknown."""
    return len(found) == len(wanted) and all(
        have in (None, want) for have, want in zip(found, wanted, strict=True)
    )


OPENVINO = OpenVinoBackend()
