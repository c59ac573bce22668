"""The door to TensorRT: `tensorrt` or its sibling `tensorrt_rtx`, whichever imports.

Both speak one Python API. Known differences, all met here or where they are used: TensorRT 10 has
to be told that a network is strongly typed (11 knows nothing else); TensorRT-RTX has no use for a
timing cache (its kernels are compiled on the GPU that runs them). The registry's `tensorrt`
packages are small programs that fetch the libraries from the vendor's own index: without them the
import fails, and this says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from segdeploy.core.errors import BackendUnavailableError
from segdeploy.frameworks.interrupts import postponed_interrupts

FLAVOURS = ("tensorrt", "tensorrt_rtx")
PACKAGES = (
    "tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "tensorrt-cu13-bindings",
)  # fmt: skip
_INSTALL = "Install it: pip install 'segdeploy[gpu]' (on a machine with an NVIDIA GPU)."
_OLDEST = 10
_MAX_LINES = 400


def find_tensorrt() -> str:
    """Return the name of the module that is installed, without importing it.

    Raises:
        BackendUnavailableError: If neither is.
    """
    for name in FLAVOURS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise BackendUnavailableError("This needs TensorRT, which is not installed.", hint=_INSTALL)


def require_tensorrt() -> ModuleType:
    """Import and return TensorRT, or TensorRT-RTX.

    Raises:
        BackendUnavailableError: If it is missing, too old, or cannot load its libraries.
    """
    name = find_tensorrt()
    try:
        with postponed_interrupts():
            found = importlib.import_module(name)
    except Exception as error:  # Its loader raises OSError, RuntimeError, FileNotFoundError.
        raise BackendUnavailableError(
            f"{name} is installed but cannot be loaded: {error}",
            hint=f"Its libraries (libnvinfer, libnvonnxparser) must be found. {_INSTALL}",
        ) from error
    version = str(getattr(found, "__version__", ""))
    if not hasattr(found, "Builder") or not version:
        raise BackendUnavailableError(
            f"The module {name} that Python finds is not TensorRT.", hint=_INSTALL
        )
    major = version.partition(".")[0]
    if name == "tensorrt" and major.isdigit() and int(major) < _OLDEST:
        raise BackendUnavailableError(
            f"TensorRT {version} is too old: strongly typed networks need {_OLDEST} or newer.",
            hint=_INSTALL,
        )
    return found


@dataclass
class BuilderLog:
    """What TensorRT said: `logger` is handed to it, `tail` is for error messages."""

    logger: Any = None
    lines: list[str] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        """Keep a line; the chatty severities are dropped."""
        if severity in {"INTERNAL_ERROR", "ERROR", "WARNING"} and len(self.lines) < _MAX_LINES:
            line = f"[{severity}] {message}"
            if line not in self.lines[-2:]:  # It repeats itself once a layer.
                self.lines.append(line)

    def tail(self, num_lines: int = 20) -> str:
        """Return the last lines, those of errors before all others."""
        errors = [line for line in self.lines if "ERROR]" in line]
        return "\n".join((errors or self.lines)[-num_lines:])


def make_log(trt: ModuleType) -> BuilderLog:
    """Return a log and the ILogger that fills it; it has to live as long as what it is given to."""
    log = BuilderLog()

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            log.add(str(severity).rpartition(".")[2], msg)

    log.logger = _Logger()
    return log
