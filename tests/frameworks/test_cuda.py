"""The driver's C interface: arguments arrive whole, memory comes back, errors are told.

The library is a small stand-in with the driver's own signatures, compiled here; its "device memory"
is the host's. It shows that ctypes passes what the C side expects (64-bit addresses, sizes,
handles), which a fake in Python could not.
"""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from segdeploy.core.errors import ArtifactError, BackendUnavailableError
from segdeploy.frameworks import cuda
from segdeploy.frameworks.cuda import CudaError, Device, Driver, Gpu

SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef int CUresult; typedef int CUdevice; typedef uint64_t CUdeviceptr;
typedef struct context *CUcontext; typedef struct stream *CUstream;
static int live, retained; static CUcontext current;
static const uintptr_t CONTEXT = 0x7f00aabbccddeeff, STREAM = 0x7e00112233445566;
CUresult cuInit(unsigned flags) { return flags; }
CUresult cuDeviceGetCount(int *count) { *count = 2; return 0; }
CUresult cuDeviceGet(CUdevice *device, int index) { *device = index + 40; return 0; }
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    if (device < 40) return 101;
    strncpy(name, device == 40 ? "Stand-in A" : "Stand-in B", size); return 0; }
CUresult cuDeviceGetAttribute(int *value, int which, CUdevice device) {
    if (device < 40) return 101;
    *value = which == 75 ? 9 : which == 76 ? 0 : -1; return 0; }
CUresult cuDriverGetVersion(int *version) { *version = 13010; return 0; }
CUresult cuGetErrorString(CUresult status, const char **text) {
    *text = status == 2 ? "out of memory" : "other"; return 0; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    retained += device == 40; *context = (CUcontext)CONTEXT; return 0; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { retained -= device == 40; return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; return 0; }
CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    if ((uintptr_t)current != CONTEXT) return 201;
    *stream = (CUstream)STREAM; return flags; }
CUresult cuStreamSynchronize(CUstream s) { return (uintptr_t)s == STREAM ? 0 : 400; }
CUresult cuStreamDestroy_v2(CUstream s) { return (uintptr_t)s == STREAM ? 0 : 400; }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    if (size > (1UL << 33)) return 2;
    *address = (CUdeviceptr)(uintptr_t)malloc(size); live++; return 0; }
CUresult cuMemFree_v2(CUdeviceptr address) { free((void *)(uintptr_t)address); live--; return 0; }
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream s) {
    if ((uintptr_t)s != STREAM) return 400;
    memcpy((void *)(uintptr_t)to, from, size); return 0; }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream s) {
    if ((uintptr_t)s != STREAM) return 400;
    memcpy(to, (void *)(uintptr_t)from, size); return 0; }
int buffers_alive(void) { return live; }
int contexts_retained(void) { return retained; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    strncpy(text, "580.65.06", size); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = (void *)STREAM; return index > 1; }
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = 8UL << 30; memory[2] = 3UL << 30; memory[1] = memory[0] - memory[2];
    return (uintptr_t)handle != STREAM; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(SOURCE)
    made = folder / "libcuda-stand-in.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", str(folder / "driver.c"), "-o", str(made)], check=True
    )
    return str(made)


@pytest.fixture
def driver(library: str, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(cuda, "_LIBRARIES", (library,))
    monkeypatch.setattr(cuda, "_NVML", library)
    return Driver()


def test_a_gpu_is_described(driver: Driver) -> None:
    assert driver.describe(1) == Gpu("Stand-in B", "9.0", "580.65.06", "13.1")
    assert cuda.find_gpu(0) == Gpu("Stand-in A", "9.0", "580.65.06", "13.1")
    assert cuda.gpu_memory_mib() == 3 * 1024
    with pytest.raises(CudaError, match="2 GPUs, asked for 2"):
        driver.describe(2)
    with pytest.raises(
        BackendUnavailableError, match=r"an engine needs an NVIDIA GPU.*asked for 5"
    ):
        cuda.require_gpu(5, "an engine")


def test_memory_goes_there_and_back_and_is_freed(driver: Driver) -> None:
    device = Device(driver, 0)
    assert device.stream == 0x7E00112233445566
    sent = np.arange(1000, dtype=np.float32).reshape(10, 100)
    addresses = [device.allocate(sent.nbytes), device.allocate(0)]
    device.upload(sent, addresses[0])
    found = np.empty_like(sent)
    device.download(addresses[0], found)
    device.wait()
    np.testing.assert_array_equal(found, sent)
    device.free(addresses[1])
    assert driver._library.buffers_alive() == 1
    with pytest.raises(ArtifactError, match=r"cannot hold 16384\.0 MiB more.*out of memory"):
        device.allocate(1 << 34)
    device.close()
    device.close()
    assert driver._library.buffers_alive() == 0
    assert driver._library.contexts_retained() == 0


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARIES", ("libcuda-absent.so.1",))
    monkeypatch.setattr(cuda, "_NVML", "libnvml-absent.so.1")
    assert cuda.find_gpu() is None
    assert cuda.driver_version() is None
    assert cuda.gpu_memory_mib() is None
    with pytest.raises(BackendUnavailableError, match=r"libcuda-absent\.so\.1.*error 35") as caught:
        cuda.require_gpu(0, "TensorRT")
    assert caught.value.exit_code == 4
