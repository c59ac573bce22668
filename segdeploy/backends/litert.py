"""LiteRT (the former TensorFlow Lite): converted by litert-torch, run by ai-edge-litert on the CPU.

Its packages pin older ones of everybody else's, so it lives in a second environment
(`backends.isolation`); nothing of it is imported here. One size and one image a call: a payload's
arena is planned for one shape.

An app sees the contract's own names in the signature `serving_default`: `tensor` float32 NCHW or
`image` uint8 NHWC; `logits` NCHW. Inside, the converter computes in NHWC.
How payloads are made is in `litert_build`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.backends.litert_build import SIGNATURE, convert, quantize, with_metadata
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
)
from segdeploy.core.files import write_bytes
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Limits, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.quiet import captured_log, tail
from segdeploy.frameworks.threads import num_threads
from segdeploy.measure.regions import Region, enter


class LiteRTSession:
    """An interpreter with its arena, on the CPU."""

    def __init__(
        self, interpreter: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._interpreter = interpreter
        self.inputs = inputs
        self.outputs = outputs
        signature = interpreter.get_signature_runner(SIGNATURE)
        given = signature.get_output_details()
        self._taken = signature.get_input_details()[inputs[0].name]["index"]
        self._given = [given[spec.name]["index"] for spec in outputs]

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        self.bind(batch)()
        enter(Region.DEVICE_TO_HOST)
        return {
            spec.name: self._interpreter.get_tensor(index)
            for spec, index in zip(self.outputs, self._given, strict=True)
        }

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once; the batch is copied in each time."""
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)

        def call() -> None:
            if self._interpreter is None:
                raise ArtifactError("The session is closed.")
            enter(Region.HOST_TO_DEVICE)
            self._interpreter.set_tensor(self._taken, contiguous)
            enter(Region.RUN)
            self._interpreter.invoke()

        return call

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None


class LiteRTBackend(Backend):
    """Builds and opens `model.tflite`."""

    name = "litert"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8)
    payload_name = "model.tflite"
    packages = ("litert-torch", "litert-converter", "ai-edge-litert", "ai-edge-quantizer", "torch")
    limits = Limits(dynamic=False, batches=False)
    environment = "litert"

    def require(self) -> None:
        """Raise BackendUnavailableError if the runtime is missing; a build asks for more."""
        _find("ai_edge_litert", "ai-edge-litert")

    def build(self, request: BuildRequest) -> None:
        """Convert the checkpoint's module at one size; int8 is quantised after that.

        Raises:
            BuildError: If the converter or the quantizer fails; with the tail of its log.
            BackendUnavailableError: If the converter is missing.
        """
        _find("litert_torch", "litert-torch")
        with captured_log() as log:
            try:
                content = convert(request)
                if request.precision is Precision.INT8:
                    content = quantize(content, request)
                content = with_metadata(content, request.options.get("facts", {}))
            except (RuntimeError, TypeError, ValueError, KeyError, NotImplementedError) as error:
                text = f"{tail(log)}\n{type(error).__name__}: {error}"[-2000:]
                raise BuildError(
                    f"litert-torch cannot build {request.payload.name}.", log=text.strip()
                ) from error
        write_bytes(request.payload, content)

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the artifact on the `cpu`.

        Raises:
            ArtifactError: If the payload cannot be read or contradicts the manifest.
            BackendUnavailableError: If the device is not the CPU.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"LiteRT is set up for the CPU here, not for '{device}'.", hint="Use --device cpu."
            )
        manifest = folder.manifest
        interpreter = _open_interpreter(folder.payload)
        _check_contract(interpreter, (manifest.inputs, manifest.outputs), folder.payload)
        return LiteRTSession(interpreter, manifest.inputs, manifest.outputs)


def _find(module: str, package: str) -> None:
    """Raise BackendUnavailableError if a package is not in this environment."""
    if importlib.util.find_spec(module) is None:
        raise BackendUnavailableError(
            f"LiteRT needs {package}, which {sys.executable} has not.",
            hint="LiteRT has an environment of its own: segdeploy doctor prints the commands that "
            "make it.",
        )


def _open_interpreter(payload: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(str(payload), num_threads=num_threads())
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ArtifactError(
            f"LiteRT cannot open {payload}: {error}", hint="Export it again."
        ) from error
    return interpreter


def _check_contract(
    interpreter: Any, wanted: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]], payload: Path
) -> None:
    if SIGNATURE not in interpreter.get_signature_list():
        raise ArtifactError(f"{payload} has no signature {SIGNATURE}.", hint="Export it again.")
    runner = interpreter.get_signature_runner(SIGNATURE)
    found = [
        {name: (np.dtype(one["dtype"]).name, tuple(map(int, one["shape"])))
         for name, one in details.items()}
        for details in (runner.get_input_details(), runner.get_output_details())
    ]  # fmt: skip
    promised = [{spec.name: (spec.dtype, spec.shape) for spec in specs} for specs in wanted]
    if found != promised:
        raise ArtifactError(
            f"{payload} takes and gives {found}, but the manifest says {promised}.",
            hint="Export it again.",
        )


LITERT = LiteRTBackend()
