"""The protocols between stages and runtimes: Backend builds and opens, Session runs.

A precision belongs to the graph; a backend only runs it. One `BuildRequest` carries everything,
so that `build` never grows arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from segdeploy.core.contract import IoContract, TensorSpec
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.target import Precision

Array = NDArray[Any]


def check_device(name: str) -> None:
    """Check the spelling of a device: `cpu`, `cuda` or `cuda:N`; it may still be missing.

    Raises:
        ConfigError: If it is none of these.
    """
    if re.fullmatch(r"cpu|cuda(:\d{1,3})?", name, re.ASCII) is None:
        raise ConfigError(f"Unknown device '{name}'.", hint="Use cpu, cuda or cuda:N.")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What to build, from what, into which file.

    `checkpoint` is always the model's reference; `graph` is the ONNX file to build from, for
    backends whose `source` is "onnx" (already in the right precision and contract). `size` is
    (H, W), or None for dynamic N, H, W.
    """

    checkpoint: ModelFolder
    payload: Path
    precision: Precision
    io: IoContract
    size: tuple[int, int] | None = None
    graph: Path | None = None
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


class Backend(Protocol):
    """One deployment format: how it is built and opened.

    `source` is what `build` reads: the "checkpoint" itself, or an "onnx" graph.
    """

    name: str
    source: Literal["checkpoint", "onnx"]
    precisions: tuple[Precision, ...]
    payload_name: str

    def require(self) -> None:
        """Raise BackendUnavailableError (hint = install line) if it cannot work here."""

    def build(self, request: BuildRequest) -> None:
        """Write `request.payload`.

        Raises:
            BuildError: If the converter fails.
        """

    def open(self, folder: ModelFolder, device: str) -> Session:
        """Open the payload of a folder on `cpu` or `cuda`.

        Raises:
            ArtifactError: If the payload cannot be read.
            BackendUnavailableError: If runtime or device is missing.
        """
