"""The door to ONNX Runtime: absent, it is a BackendUnavailableError with the install line."""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType
from typing import Any

from segdeploy.core.errors import BackendUnavailableError
from segdeploy.frameworks.interrupts import postponed_interrupts
from segdeploy.frameworks.processor import has_vnni
from segdeploy.frameworks.threads import num_threads

_SILENT = 4  # Severity "fatal": the runtime's own messages reach us as exceptions.


def find_onnxruntime() -> None:
    """Check, without importing anything, that onnxruntime is installed.

    Raises:
        BackendUnavailableError: If it is not.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendUnavailableError(
            "This needs onnxruntime, which is not installed.",
            hint="Install it: pip install 'segdeploy[cpu]' (or 'segdeploy[gpu]')",
        )


def require_onnxruntime() -> ModuleType:
    """Import and return onnxruntime.

    Raises:
        BackendUnavailableError: If it is not installed or cannot be loaded.
    """
    find_onnxruntime()
    # It reports to its vendor, leaves files in HOME and TMPDIR, and complains where it cannot.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with postponed_interrupts():
            import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime is installed but cannot be loaded: {error}",
            hint="Install it again: pip install --force-reinstall onnxruntime",
        ) from error
    found: ModuleType = onnxruntime
    return found


def session_options() -> Any:
    """Return options that all our sessions share: silent, and threads as the environment says.

    Unlike torch, ONNX Runtime does not read OMP_NUM_THREADS itself.
    """
    options = require_onnxruntime().SessionOptions()
    options.log_severity_level = _SILENT
    if not has_vnni():
        # On x86 without VNNI the U8S8 kernels saturate; this picks exact ones. Where VNNI is, it
        # picks them as well, and they take up to 2.7x the time.
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads = num_threads() or 0  # 0 leaves it to the runtime.
    return options
