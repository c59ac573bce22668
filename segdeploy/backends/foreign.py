"""The original of a foreign model, run as it came: the reference of everything made from it.

ONNX Runtime runs the file's own nodes, operator set and weights in fp32 on the CPU with every
graph optimisation off, so that a fault of a pass or of an optimiser shows against it. Three things
are done around it, in NumPy: the axes of a channels-last model are moved, logits before a final
softmax are fetched as they stand, coarse logits are resized. None of them goes through the graph
passes that are to be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    ExportError,
)
from segdeploy.core.folder import ModelFolder
from segdeploy.core.foreign import ORIGINAL, ForeignGraph, Layout, read_facts
from segdeploy.core.session import Array, Session
from segdeploy.frameworks.onnxruntime import require_onnxruntime, session_options

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class ForeignSession:
    """The original, with the contract of every checkpoint: `tensor` in, `logits` out."""

    def __init__(
        self,
        runtime: Any,
        facts: ForeignGraph,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
    ) -> None:
        self._runtime = runtime
        self._facts = facts
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return {"logits": float32 (N, K, H, W)}."""
        check_batch(batch, self.inputs[0])
        logits = self._call(self._place(batch))
        if self._facts.output_layout is Layout.NHWC:
            logits = logits.transpose(_TO_NCHW)
        size = batch.shape[2:]
        if self._facts.upsample:
            logits = resize_bilinear(logits, size)
        if logits.shape[2:] != size:
            found, fed = ("x".join(map(str, each)) for each in (logits.shape[2:], size))
            raise ArtifactError(f"The original gives a map of {found} for an image of {fed}.")
        return {self.outputs[0].name: np.ascontiguousarray(logits)}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs the original once on this batch."""
        check_batch(batch, self.inputs[0])
        placed = self._place(batch)

        def call() -> None:
            self._call(placed)

        return call

    def close(self) -> None:
        """Free the runtime's session."""
        self._runtime = None

    def _place(self, batch: Array) -> Array:
        return place_batch(batch, self._facts.layout, is_uint8=self._facts.is_uint8)

    def _call(self, batch: Array) -> Array:
        if self._runtime is None:
            raise ArtifactError("The session is closed.")
        try:
            logits: Array = self._runtime.run([self._facts.output], {self._facts.input: batch})[0]
        except Exception as error:
            raise ArtifactError(
                f"The original cannot run a batch of shape {batch.shape}: {error}"
            ) from error
        return logits


def place_batch(batch: Array, layout: Layout, *, is_uint8: bool) -> Array:
    """Return a float32 NCHW batch as an original takes it."""
    if is_uint8:
        batch = np.rint(batch).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(batch.transpose(_TO_NHWC) if layout is Layout.NHWC else batch)


def open_original(path: Path, tensor_in: str, tensor_out: str) -> Any:
    """Return an onnxruntime session on an original file that gives one tensor of it.

    Raises:
        ArtifactError: If ONNX Runtime cannot open it.
    """
    from segdeploy.graph.ends import keep_path
    from segdeploy.graph.original import load_original
    from segdeploy.graph.proto import graph_bytes

    runtime = require_onnxruntime()
    options = session_options()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    original = load_original(path)
    try:
        content = graph_bytes(keep_path(original, tensor_in, tensor_out))
    except BuildError as error:
        raise ExportError(f"{path}: {error.message}", hint=error.hint) from error
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime cannot open {path}: {error}") from error


def resize_bilinear(values: Array, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Return maps (N, K, h, w) at (H, W): half-pixel centres, clamped borders, in float64."""
    found = values.astype(np.float64)
    for axis, new in ((2, size[0]), (3, size[1])):
        old = found.shape[axis]
        if new == old:
            continue
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(centre.astype(np.intp), max(old - 2, 0))
        high = np.minimum(low + 1, old - 1)
        weight = (centre - low).reshape([-1 if d == axis else 1 for d in range(4)])
        found = found.take(low, axis) * (1 - weight) + found.take(high, axis) * weight
    return found.astype(np.float32)


class ForeignBackend:
    """Opens the checkpoint of a foreign model."""

    name = "foreign"

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the original on the CPU.

        Raises:
            ArtifactError: If ONNX Runtime cannot open it.
            BackendUnavailableError: If a package is missing, or for another device.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"The original of a foreign model is run on the CPU, not on '{device}'.",
                hint="Use --device cpu, or an artifact that was made from it.",
            )
        facts = read_facts(folder)
        runtime = open_original(folder.path / ORIGINAL, facts.input, facts.output)
        return ForeignSession(runtime, facts, folder.manifest.inputs, folder.manifest.outputs)


FOREIGN = ForeignBackend()
