"""The protocols between stages and runtimes: Backend builds and opens, Session runs.

A precision belongs to the graph; a backend only runs it. One `BuildRequest` carries everything,
so that `build` never grows arguments.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds, TensorSpec
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import ModelFolder, installed_versions
from segdeploy.core.target import Precision

Array = NDArray[Any]


def check_device(name: str) -> None:
    """Check the spelling of a device: `cpu`, `cuda[:N]` or `tensorrt[:N]`; it may be missing.

    `tensorrt` is a GPU as well: ONNX Runtime's TensorRT provider in place of its CUDA one.

    Raises:
        ConfigError: If it is none of these.
    """
    if re.fullmatch(r"cpu|(cuda|tensorrt)(:\d{1,3})?", name, re.ASCII) is None:
        raise ConfigError(
            f"Unknown device '{name}'.",
            hint="Use cpu, cuda or cuda:N; tensorrt or tensorrt:N for ONNX Runtime's provider.",
        )


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build, from what, into which file.

    `checkpoint` is always the model's reference; `graph` is the ONNX file to build from, for
    backends whose `source` is "onnx" (already in the right precision and contract). `size` is
    (H, W), or None for dynamic H and W, within `bounds` where these are given. `calibration` are
    float32 (1, 3, H, W) batches in .npy files, for int8 of backends that calibrate by themselves.
    """

    checkpoint: ModelFolder
    payload: Path
    precision: Precision
    io: IoContract
    size: tuple[int, int] | None = None
    bounds: SizeBounds | None = None
    graph: Path | None = None
    calibration: tuple[Path, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """An opened payload. Not thread-safe; `close` frees it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a batch must be."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name for one batch (float32 NCHW, or uint8 NHWC)."""

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once and waits until the outputs are there."""

    def close(self) -> None:
        """Free the session."""


@dataclass(frozen=True)
class Limits:
    """What a format can express; what it cannot is refused before anything is built.

    `dynamic` is any H and W, `bounded` is H and W within `SizeBounds`; every format takes one fixed
    size. `batches` is False where one image is taken a call.
    """

    inputs: tuple[InputKind, ...] = tuple(InputKind)
    outputs: tuple[OutputKind, ...] = tuple(OutputKind)
    dynamic: bool = True
    bounded: bool = False
    batches: bool = True


class Backend(ABC):
    """One deployment format: how it is built and opened.

    Attributes:
        name: The word before the precision in a target.
        source: What `build` reads: the "checkpoint" itself, or an "onnx" graph.
        precisions: What it offers.
        payload_name: File name of the payload.
        other_files: Files that belong to the payload, where the format has more than one.
        packages: Whose versions decide what is built; another version builds again.
        limits: What it can express.
        is_isolated: Whether its sessions live in a child process: foreign runtimes may crash.
        environment: Name of the second environment that holds its packages where this one cannot.
        rest: Precision of what an int8 graph leaves unquantised.
        is_symmetric: Whether its int8 graphs must be symmetric, with zero point 0.
        home: Device that it is verified on after an export.
        recipe: Raised when the same request gives another payload: older ones are built again.
    """

    name: str
    source: Literal["checkpoint", "onnx"] = "checkpoint"
    precisions: tuple[Precision, ...]
    payload_name: str
    other_files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    limits: Limits = Limits()
    is_isolated: bool = True
    environment: str | None = None
    rest: Precision = Precision.FP32
    is_symmetric: bool = False
    home: str = "cpu"
    recipe: int = 0

    @abstractmethod
    def require(self) -> None:
        """Raise BackendUnavailableError (hint = install line) if it cannot work here.

        In the process that builds or runs; a backend with an `environment` is asked there.
        """

    def versions(self) -> dict[str, str]:
        """Return what decides what is built, besides the request: by default its packages."""
        return installed_versions(self.packages)

    @abstractmethod
    def build(self, request: BuildRequest) -> None:
        """Write `request.payload`; runs in a child process.

        Raises:
            BuildError: If the converter fails.
        """

    @abstractmethod
    def open(self, folder: ModelFolder, device: str = "cpu") -> Session:
        """Open the payload of a folder on `cpu` or `cuda`.

        Raises:
            ArtifactError: If the payload cannot be read.
            BackendUnavailableError: If runtime or device is missing.
        """
