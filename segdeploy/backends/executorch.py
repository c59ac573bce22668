"""ExecuTorch: XNNPACK's kernels in a small runtime, for phones; fp32, and int8 by PT2E.

torch.export captures the module, PT2E quantises it (symmetric, weights per channel, ranges from
calibration images), XNNPACK takes what it can into delegates, the portable kernels run the rest.
What stays outside is written to `delegation.json`: with a range of sizes that is every bilinear
resize, since XNNPACK resizes to constant sizes only, and unet's padding with it; at one size the
whole network is one delegate.

The runtime itself takes any size whose tensors fit into its memory plan, also smaller than the
range: a size that the bounds do not name is refused here, so that every platform refuses the same.
The contract (uint8 in, labels out) lies outside of what is quantised. The portable kernels have no
uint16: from 256 classes on, labels are int32 in the program and uint16 from the session here.

The pybindings keep one thread pool in the process; all sessions of a process share it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import InputKind, SizeBounds, TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, DataError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Limits, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.packages import find_packages, import_package
from segdeploy.frameworks.quiet import captured_log
from segdeploy.frameworks.threads import num_threads
from segdeploy.measure.regions import Region, enter

if TYPE_CHECKING:
    import torch

_RUNS = "forward"


def require_runtime() -> ModuleType:
    """Import and return ExecuTorch's Python bindings, with their threads set.

    Raises:
        BackendUnavailableError: If they are not installed or cannot be loaded.
    """
    with captured_log():
        found = import_package(
            "executorch", "executorch", "executorch.extension.pybindings.portable_lib"
        )
    threads = num_threads()
    if threads is not None and found._threadpool_get_thread_count() != threads:  # noqa: SLF001
        found._unsafe_reset_threadpool(threads)  # noqa: SLF001  The only way to set it.
    return found


class ExecuTorchSession:
    """A loaded program and its one method."""

    def __init__(
        self,
        program: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        bounds: SizeBounds | None,
    ) -> None:
        self._program: Any = program  # Its memory holds the method's weights.
        self._method: Any = program.load_method(_RUNS)
        self.inputs = inputs
        self.outputs = outputs
        self._bounds = bounds

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        enter(Region.HOST_TO_DEVICE)
        placed = self._place(batch)
        enter(Region.RUN)
        found = self._call(placed)
        enter(Region.DEVICE_TO_HOST)
        return {
            spec.name: np.array(tensor.numpy(), spec.dtype)
            for spec, tensor in zip(self.outputs, found, strict=True)
        }

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once."""
        placed = self._place(batch)

        def call() -> None:
            self._call(placed)

        return call

    def close(self) -> None:
        """Free the program."""
        self._method = self._program = None

    def _place(self, batch: Array) -> torch.Tensor:
        import torch

        check_batch(batch, self.inputs[0])
        _check_bounds(batch, self.inputs[0], self._bounds)
        return torch.from_numpy(np.require(batch, requirements=["C", "W"]))

    def _call(self, tensor: torch.Tensor) -> Any:
        if self._method is None:
            raise ArtifactError("The session is closed.")
        try:
            return self._method([tensor])
        except RuntimeError as error:
            raise ArtifactError(
                f"ExecuTorch cannot run a batch of shape {tuple(tensor.shape)}: {error}"
            ) from error


def _check_bounds(batch: Array, spec: TensorSpec, bounds: SizeBounds | None) -> None:
    is_image = spec.name == InputKind.IMAGE.value
    height, width = batch.shape[1:3] if is_image else batch.shape[2:4]
    if bounds is None or bounds.has(len(batch), height, width):
        return
    raise DataError(
        f"This artifact takes {bounds} (least, usual, largest) in batches up to "
        f"{bounds.max_batch}, found {len(batch)} x {height}x{width}.",
        hint="Resize the image, or export it with other bounds: --size LEAST..LARGEST.",
    )


class ExecuTorchBackend(Backend):
    """Builds `model.pte` and opens it with ExecuTorch's Python bindings."""

    name = "executorch"
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.INT8)
    payload_name = "model.pte"
    packages = ("executorch", "torchao", "torch")
    limits = Limits(dynamic=False, bounded=True)

    def require(self) -> None:
        """Raise BackendUnavailableError if executorch or torchao is missing."""
        find_packages("executorch", "executorch", "torchao")

    def build(self, request: BuildRequest) -> None:
        """Capture, quantise and lower the checkpoint's module; write `delegation.json` beside it.

        Raises:
            BuildError: If torch.export, PT2E or the lowering fails.
            CheckpointError: If the weights do not fit the model.
        """
        from segdeploy.backends.executorch_build import build_program

        build_program(request)

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Load the artifact's program on the CPU.

        Raises:
            ArtifactError: If the payload cannot be read or contradicts the manifest.
            BackendUnavailableError: If executorch is missing, or the device is not the CPU.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"ExecuTorch's XNNPACK runs on the CPU, not on '{device}'.",
                hint="Use --device cpu.",
            )
        runtime = require_runtime()
        manifest = folder.manifest
        try:
            program = runtime._load_program(str(folder.payload))  # noqa: SLF001
            meta = program.method_meta(_RUNS)
            _check_contract(meta, manifest.inputs, manifest.outputs, str(folder.payload))
            return ExecuTorchSession(program, manifest.inputs, manifest.outputs, manifest.bounds)
        except RuntimeError as error:
            raise ArtifactError(
                f"ExecuTorch cannot open {folder.payload}: {error}", hint="Export it again."
            ) from error


_SCALAR_TYPES = {0: "uint8", 3: "uint16", 6: "float32"}
"""What ExecuTorch's numbers of types stand for in a contract; 3 is int32."""


def _check_contract(
    meta: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], what: str
) -> None:
    """Compare types and shapes; those of a range are the largest, and names are not stored."""
    found = [_describe(meta.input_tensor_meta(i)) for i in range(meta.num_inputs())]
    found += [_describe(meta.output_tensor_meta(i)) for i in range(meta.num_outputs())]
    wanted = [(spec.dtype, spec.shape) for spec in (*inputs, *outputs)]
    if len(found) == len(wanted) and all(
        have[0] == want[0] and _may_be(have[1], want[1])
        for have, want in zip(found, wanted, strict=True)
    ):
        return
    raise ArtifactError(
        f"{what} takes and gives {found}, but the manifest says {wanted}.",
        hint="Export it again.",
    )


def _describe(meta: Any) -> tuple[str, tuple[int, ...]]:
    return _SCALAR_TYPES.get(meta.dtype(), f"type {meta.dtype()}"), tuple(meta.sizes())


def _may_be(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(
        want in (None, have) for have, want in zip(found, wanted, strict=True)
    )


EXECUTORCH = ExecuTorchBackend()
