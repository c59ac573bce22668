"""Core ML: an fp16 ML program for iOS 16 and macOS 13 on; built anywhere, run on Apple devices.

The .mlpackage is a folder, stored as one zip file with fixed time stamps and identifiers.
coremltools converts on Linux too but cannot run there: `open` says so, and so does `verify`. Each
package is therefore checked when it is built (`coreml_check`): its ends, its types, and its
numbers, by evaluating the written program with torch.

Where Core ML's types differ from the contract's:

- `tensor` is a reserved word of its language: that input is called `input_tensor`.
- uint8 tensors do not exist: `image` is an image input (CVPixelBuffer), normalised in the graph.
- labels are int32; the session here gives them as the contract's uint8 or uint16.

Interpolation to a size that is not constant is refused by the converter, so one size is offered,
and one image a call.
"""

from __future__ import annotations

import platform
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from segdeploy.backends.batch import check_batch
from segdeploy.core.contract import InputKind, TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError, SegDeployError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.session import Array, Backend, BuildRequest, Limits, Session
from segdeploy.core.target import Precision
from segdeploy.frameworks.packages import find_packages, import_package
from segdeploy.frameworks.quiet import captured_log, tail
from segdeploy.measure.regions import Region, enter

PACKAGE = "model.mlpackage"
INPUT_NAMES = {InputKind.TENSOR: "input_tensor", InputKind.IMAGE: "image"}
"""What the inputs of a contract are called in a package."""


def require_coremltools() -> ModuleType:
    """Import and return coremltools; it says on import which versions it was not tested with.

    Raises:
        BackendUnavailableError: If it is not installed or cannot be loaded.
    """
    with captured_log("coremltools"):
        return import_package("coreml", "coremltools")


class CoreMlSession:
    """A package loaded by Core ML itself; macOS only."""

    def __init__(
        self,
        model: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        unpacked: tempfile.TemporaryDirectory[str],
    ) -> None:
        self._model = model
        self._unpacked = unpacked
        self.inputs = inputs
        self.outputs = outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name, in the contract's types."""
        enter(Region.HOST_TO_DEVICE)
        placed = self._place(batch)
        enter(Region.RUN)
        found = self._predict(placed)
        enter(Region.DEVICE_TO_HOST)
        return {spec.name: np.asarray(found[spec.name]).astype(spec.dtype) for spec in self.outputs}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once."""
        placed = self._place(batch)

        def call() -> None:
            self._predict(placed)

        return call

    def close(self) -> None:
        """Free the model and remove the unpacked package."""
        self._model = None
        self._unpacked.cleanup()

    def _place(self, batch: Array) -> dict[str, Any]:
        check_batch(batch, self.inputs[0])
        kind = InputKind(self.inputs[0].name)
        if kind is InputKind.TENSOR:
            return {INPUT_NAMES[kind]: np.array(batch)}
        from PIL import Image

        return {INPUT_NAMES[kind]: Image.fromarray(batch[0])}

    def _predict(self, placed: dict[str, Any]) -> dict[str, Any]:
        if self._model is None:
            raise ArtifactError("The session is closed.")
        try:
            found: dict[str, Any] = self._model.predict(placed)
        except Exception as error:
            raise ArtifactError(f"Core ML cannot run this model: {error}") from error
        return found


class CoreMlBackend(Backend):
    """Builds `model.mlpackage.zip` anywhere, and opens it on macOS."""

    name = "coreml"
    precisions: tuple[Precision, ...] = (Precision.FP16,)
    payload_name = f"{PACKAGE}.zip"
    packages = ("coremltools", "torch")
    limits = Limits(dynamic=False, batches=False)

    def require(self) -> None:
        """Raise BackendUnavailableError if coremltools is missing."""
        find_packages("coreml", "coremltools")

    def build(self, request: BuildRequest) -> None:
        """Convert the checkpoint's module and check the package that was written.

        Raises:
            BuildError: If coremltools fails, or the package is not what was asked for.
            CheckpointError: If the weights do not fit the model.
        """
        from segdeploy.backends.coreml_build import build_package
        from segdeploy.backends.coreml_check import check_package

        require_coremltools()
        with captured_log("coremltools") as log:
            try:
                module, sample = build_package(request)
                check_package(request, module, sample)
            except (SegDeployError, OSError):
                raise
            except Exception as error:
                raise BuildError(
                    f"coremltools cannot convert {request.checkpoint.manifest.model}.",
                    log=f"{tail(log)[-800:]}\n{type(error).__name__}: {str(error)[-1200:]}",
                ) from error

    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Load the artifact's package with Core ML, which chooses among CPU, GPU and Neural Engine.

        Raises:
            ArtifactError: If the package cannot be read.
            BackendUnavailableError: If this is not macOS, or the device is CUDA.
        """
        if device != "cpu":
            raise BackendUnavailableError(
                f"Core ML has no device '{device}'.", hint="Use --device cpu: Core ML chooses."
            )
        if platform.system() != "Darwin":
            raise BackendUnavailableError(
                "Core ML runs on macOS and iOS only; this package was checked when it was built, "
                "but not run.",
                hint="Copy the run folder to a Mac: segdeploy verify there.",
            )
        manifest = folder.manifest
        unpacked = unpack(folder.payload)
        try:
            model = require_coremltools().models.MLModel(str(Path(unpacked.name) / PACKAGE))
        except Exception as error:
            unpacked.cleanup()
            raise ArtifactError(
                f"Core ML cannot open {folder.payload}: {error}", hint="Export it again."
            ) from error
        return CoreMlSession(model, manifest.inputs, manifest.outputs, unpacked)


def unpack(payload: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder that holds the package.

    Raises:
        ArtifactError: If the payload is no zip file.
    """
    folder = tempfile.TemporaryDirectory(prefix="segdeploy-")
    try:
        with zipfile.ZipFile(payload) as archive:
            archive.extractall(folder.name)  # It leaves out what points outside the folder.
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        folder.cleanup()
        raise ArtifactError(
            f"Cannot unpack {payload}: {error}.", hint="Export it again."
        ) from error
    return folder


COREML = CoreMlBackend()
