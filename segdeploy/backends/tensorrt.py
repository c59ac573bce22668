"""TensorRT: engines for one kind of NVIDIA GPU, built from the finished ONNX graph.

fp16 is a cast of that graph and int8 is Q/DQ in the fp16-cast graph (`rest`), so nothing is left in
float32 but the two ends. An engine is code and is bound to where it was built: it is refused
elsewhere before TensorRT reads it (`tensorrt_plan`). Open only engines of people you trust.

Building needs no GPU with TensorRT-RTX; running always does.
"""

from __future__ import annotations

from typing import Any

from segdeploy.backends.tensorrt_plan import describe_place, read_plan, refuse_elsewhere
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Backend, BuildRequest, Limits, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.cuda import Device, find_gpu, require_gpu
from segdeploy.frameworks.tensorrt import (
    PACKAGES,
    BuilderLog,
    find_tensorrt,
    make_log,
    require_tensorrt,
)


class TensorRTBackend(Backend):
    """Builds and opens `model.plan`."""

    name = "tensorrt"
    source = "onnx"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16, Precision.INT8)
    payload_name = "model.plan"
    packages = PACKAGES
    limits = Limits(dynamic=False, bounded=True)
    rest = Precision.FP16
    is_symmetric = True
    home = "cuda"

    def require(self) -> None:
        """Raise BackendUnavailableError if neither TensorRT nor TensorRT-RTX is installed."""
        find_tensorrt()

    def versions(self) -> dict[str, str]:
        """Return the packages' versions, and the GPU and driver: an engine is bound to them."""
        from segdeploy.backends.tensorrt_build import workspace_limit

        gpu = find_gpu()
        here = {} if gpu is None else {"gpu": gpu.name, "driver": gpu.driver}
        if (limit := workspace_limit()) is not None:
            here["workspace_mib"] = str(limit)
        return {**super().versions(), **here}

    def build(self, request: BuildRequest) -> None:
        """Build the engine of `request.graph`, for the GPU that is here.

        Raises:
            BuildError: If the parser or the builder refuses it.
            BackendUnavailableError: If TensorRT cannot be loaded.
        """
        from segdeploy.backends.tensorrt_build import build_plan

        build_plan(request)

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the engine on `cuda` or `cuda:N`.

        Raises:
            ArtifactError: If it is no engine, of another place, or contradicts the manifest.
            BackendUnavailableError: If TensorRT, the driver or the GPU is missing, or `cpu` is
                asked for.
        """
        from segdeploy.backends.tensorrt_session import EngineSession

        header, plan = read_plan(folder.payload)
        trt = require_tensorrt()
        kind, _, number = device.partition(":")
        index = int(number or 0)
        driver, gpu = require_gpu(index, f"TensorRT (device '{device}')")
        if kind != "cuda":
            raise BackendUnavailableError(
                f"TensorRT runs on NVIDIA GPUs only, and the device is '{device}'.",
                hint="Give --device cuda.",
            )
        refuse_elsewhere(header, describe_place(trt, gpu), str(folder.payload))
        log = make_log(trt)
        place = Device(driver, index)
        try:
            engine = _load_engine(trt, plan, log, folder)
            manifest = folder.manifest
            return EngineSession(engine, place, manifest.inputs, manifest.outputs, log)
        except BaseException:
            place.close()
            raise


def _load_engine(trt: Any, plan: bytes, log: BuilderLog, folder: ModelFolder) -> Any:
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"TensorRT cannot load {folder.payload}.\n{log.tail()}",
            hint="Export it again on this machine.",
        )
    check_engine(trt, engine, folder.manifest.inputs, folder.manifest.outputs)
    return engine


def check_engine(
    trt: Any, engine: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Check that an engine takes and gives what the manifest says.

    Raises:
        ArtifactError: If a name or the input's type differs.
    """
    from segdeploy.backends.tensorrt_session import numpy_type

    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    taken = {n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
    found = taken, set(names) - taken
    wanted = {s.name for s in inputs}, {s.name for s in outputs}
    types = {s.name: numpy_type(engine.get_tensor_dtype(s.name)).name for s in (*inputs, *outputs)
             if s.name in names}  # fmt: skip
    wrong = {
        s.name: types[s.name]
        for s in (*inputs, *outputs)
        if s.name in types
        and types[s.name] != s.dtype
        and (s.dtype, types[s.name]) != ("uint16", "int32")  # TensorRT has no uint16.
    }
    if found != wanted or wrong:
        raise ArtifactError(
            f"The engine takes and gives {[sorted(each) for each in found]} ({wrong or types}), "
            f"but the manifest says {[sorted(each) for each in wanted]}.",
            hint="Export it again.",
        )


TENSORRT = TensorRTBackend()
