"""The NVIDIA driver, by ctypes: which GPU is here, device memory, one stream.

`libcuda.so.1` comes with every driver, so running an engine needs no further package (torch,
cuda-python and the CUDA runtime all stand on it). The primary context is used: it is the one that
TensorRT's own CUDA runtime uses, so its engines see our memory. NVML tells the driver's version and
the memory in use without making a context.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from segdeploy.core.errors import ArtifactError, BackendUnavailableError

_LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
_NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_NO_DRIVER = "no NVIDIA driver here ({}); CUDA's runtime calls it error 35"


@dataclass(frozen=True)
class Gpu:
    """What an engine is bound to."""

    name: str
    capability: str
    driver: str
    cuda: str


class CudaError(Exception):
    """A call of the driver failed; the message names it and the driver's own words."""


class Driver:
    """The loaded library; every call is checked."""

    def __init__(self) -> None:
        self._library = _load()
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            CudaError: If it answers with an error.
        """
        status = int(getattr(self._library, name)(*arguments))
        if status:
            raise CudaError(f"{name}: CUDA error {status}{self._words(status)}")

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        return f" ({text.value.decode()})" if text.value else ""

    def describe(self, index: int) -> Gpu:
        """Return name, compute capability and driver of a GPU.

        Raises:
            CudaError: If there is none of this index.
        """
        count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if index >= count.value:
            raise CudaError(f"CUDA error {_NO_DEVICE}: {count.value} GPUs, asked for {index}")
        self.call("cuDeviceGet", ctypes.byref(device), index)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        numbers = []
        for which in (_MAJOR, _MINOR):
            found = ctypes.c_int()
            self.call("cuDeviceGetAttribute", ctypes.byref(found), which, device)
            numbers.append(str(found.value))
        self.call("cuDriverGetVersion", ctypes.byref(version))
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Gpu(name.value.decode(), ".".join(numbers), driver_version() or "unknown", cuda)


def _load() -> Any:
    reason = ""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reason = reason or str(error)
    raise CudaError(_NO_DRIVER.format(reason))


def driver_version() -> str | None:
    """Return the driver's version as `nvidia-smi` shows it, e.g. `580.65`; None if unknown."""
    try:
        library = ctypes.CDLL(_NVML)
        if library.nvmlInit_v2():
            return None
        text = ctypes.create_string_buffer(96)
        failed = library.nvmlSystemGetDriverVersion(text, len(text))
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode() or None


def find_gpu(index: int = 0) -> Gpu | None:
    """Return the GPU, or None where there is none (or no driver)."""
    try:
        return Driver().describe(index)
    except CudaError:
        return None


def require_gpu(index: int, what: str) -> tuple[Driver, Gpu]:
    """Return the driver and the GPU.

    Raises:
        BackendUnavailableError: If either is missing; `what` says what needs it.
    """
    try:
        driver = Driver()
        return driver, driver.describe(index)
    except CudaError as error:
        raise BackendUnavailableError(
            f"{what} needs an NVIDIA GPU: {error}.",
            hint="Run it on a machine with an NVIDIA GPU and driver, or use another target.",
        ) from error


class Device:
    """The primary context of one GPU, one stream, and the buffers that were asked for."""

    def __init__(self, driver: Driver, index: int) -> None:
        self._driver = driver
        self._device = ctypes.c_int()
        driver.call("cuDeviceGet", ctypes.byref(self._device), index)
        context, self._stream = ctypes.c_void_p(), ctypes.c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        driver.call("cuCtxSetCurrent", context)
        driver.call("cuStreamCreate", ctypes.byref(self._stream), 0)
        self._buffers: set[int] = set()

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream.value or 0)

    def allocate(self, num_bytes: int) -> int:
        """Return the address of device memory; freed by `free`, or with the device.

        Raises:
            ArtifactError: If the GPU has not so much left.
        """
        address = ctypes.c_uint64()
        try:
            self._driver.call(
                "cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, num_bytes))
            )
        except CudaError as error:
            raise ArtifactError(
                f"The GPU cannot hold {num_bytes / 2**20:.1f} MiB more: {error}.",
                hint="Use a smaller batch or size.",
            ) from error
        self._buffers.add(address.value)
        return address.value

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Start copying a contiguous array to the device; it must live until `wait`."""
        self._driver.call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes), self._stream,
        )  # fmt: skip

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Start copying from the device into a contiguous array; it is filled after `wait`."""
        self._driver.call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes), self._stream,
        )  # fmt: skip

    def wait(self) -> None:
        """Return when the stream has done all it was given."""
        self._driver.call("cuStreamSynchronize", self._stream)

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._buffers.discard(address)
        self._driver.call("cuMemFree_v2", ctypes.c_uint64(address))

    def close(self) -> None:
        """Free everything; twice is once."""
        if self._stream.value:
            for address in tuple(self._buffers):
                self.free(address)
            self._driver.call("cuStreamDestroy_v2", self._stream)
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._stream = ctypes.c_void_p()


def gpu_memory_mib(index: int = 0) -> float | None:
    """Return the memory in use on a GPU by all processes, in MiB; None if unknown."""
    numbers = (ctypes.c_ulonglong * 3)()  # total, free, used
    handle = ctypes.c_void_p()
    try:
        library = ctypes.CDLL(_NVML)
        if library.nvmlInit_v2():
            return None
        failed = library.nvmlDeviceGetHandleByIndex_v2(
            index, ctypes.byref(handle)
        ) or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(numbers))
        library.nvmlShutdown()
    except (OSError, AttributeError):
        return None
    return None if failed else numbers[2] / 2**20
