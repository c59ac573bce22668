"""Running an engine: one execution context, one stream, buffers that grow.

`run` copies in, runs, copies out and waits. `bind` copies in once: its call is what a pipeline pays
that keeps its images on the GPU. Buffers belong to the session and are only ever enlarged, so that
nothing is allocated while a size repeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, DataError
from segdeploy.core.session import Array
from segdeploy.frameworks.tensorrt import BuilderLog
from segdeploy.measure.regions import Region, enter


class DeviceLike(Protocol):
    """What a session needs of a GPU; `frameworks.cuda.Device` is it."""

    @property
    def stream(self) -> int:
        """The stream's handle."""

    def allocate(self, num_bytes: int) -> int:
        """Return the address of device memory."""

    def free(self, address: int) -> None:
        """Free it."""

    def upload(self, array: Array, address: int) -> None:
        """Start a copy to the device."""

    def download(self, address: int, array: Array) -> None:
        """Start a copy from the device."""

    def wait(self) -> None:
        """Wait for the stream."""

    def close(self) -> None:
        """Free everything."""


class EngineSession:
    """An engine on one GPU.

    Args:
        engine: TensorRT's ICudaEngine.
        device: Where it runs.
        inputs: The manifest's.
        outputs: The manifest's; an int32 that stands for a narrower label is narrowed.
        log: What TensorRT said; the words of its failures.
    """

    def __init__(
        self,
        engine: Any,
        device: DeviceLike,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        log: BuilderLog,
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._engine, self._device, self._log = engine, device, log
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ArtifactError(
                "TensorRT cannot make an execution context: the GPU's memory is too small, or full."
                f"\n{log.tail()}"
            )
        self._shape: tuple[int, ...] | None = None
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> (address, bytes)

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        enter(Region.HOST_TO_DEVICE)
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)
        name = self.inputs[0].name
        hosts = self._prepare(contiguous.shape)
        address = self._buffer(name, contiguous.nbytes)
        self._device.upload(contiguous, address)
        enter(Region.RUN, self._device.wait)
        self._enqueue(address)
        enter(Region.DEVICE_TO_HOST, self._device.wait)
        for spec in self.outputs:
            self._device.download(self._buffers[spec.name][0], hosts[spec.name])
        self._device.wait()
        return {s.name: hosts[s.name].astype(s.dtype, copy=False) for s in self.outputs}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch, which is on the GPU already, and waits."""
        check_batch(batch, self.inputs[0])
        contiguous = np.ascontiguousarray(batch)
        self._prepare(contiguous.shape)
        address = self._device.allocate(contiguous.nbytes)  # Its own: `run` must not overwrite it.
        self._device.upload(contiguous, address)
        self._device.wait()

        def call() -> None:
            self._prepare(contiguous.shape)
            self._enqueue(address)
            self._device.wait()

        return call

    def close(self) -> None:
        """Free the context, the engine, then the device's memory."""
        self._context = self._engine = None
        self._device.close()

    def _prepare(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Tell the context the shape; return host arrays for the outputs."""
        if self._context is None:
            raise ArtifactError("The session is closed.")
        if shape != self._shape:
            self._check_profile(shape)
            if not self._context.set_input_shape(self.inputs[0].name, shape):
                raise ArtifactError(f"TensorRT refuses the shape {shape}.\n{self._log.tail()}")
            self._shape = shape
        hosts = {}
        for spec in self.outputs:
            found = tuple(self._context.get_tensor_shape(spec.name))
            host = np.empty(found, numpy_type(self._engine.get_tensor_dtype(spec.name)))
            self._context.set_tensor_address(spec.name, self._buffer(spec.name, host.nbytes))
            hosts[spec.name] = host
        return hosts

    def _check_profile(self, shape: tuple[int, ...]) -> None:
        least, _, largest = self._engine.get_tensor_profile_shape(self.inputs[0].name, 0)
        low, high = tuple(least), tuple(largest)
        if not all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True)):
            raise DataError(
                f"The engine takes {low} to {high}, found {shape}.",
                hint="Export it for a range that has this size: --size LEAST..LARGEST.",
            )

    def _enqueue(self, address: int) -> None:
        self._context.set_tensor_address(self.inputs[0].name, address)
        if not self._context.execute_async_v3(self._device.stream):
            raise ArtifactError(f"TensorRT cannot run the engine.\n{self._log.tail()}")

    def _buffer(self, name: str, num_bytes: int) -> int:
        address, size = self._buffers.get(name, (0, -1))
        if size < num_bytes:
            if size >= 0:
                self._device.free(address)
                del self._buffers[name]
            address = self._device.allocate(num_bytes)
            self._buffers[name] = address, num_bytes
        return address


def numpy_type(kind: Any) -> np.dtype[Any]:
    """Return NumPy's type for a TensorRT DataType.

    Raises:
        ArtifactError: If NumPy has none.
    """
    name = str(kind).rpartition(".")[2].lower()
    known = {"float": "float32", "half": "float16", "bool": "bool"}
    try:
        return np.dtype(known.get(name, name))
    except TypeError as error:
        raise ArtifactError(f"The engine gives {kind}, which NumPy has no type for.") from error
