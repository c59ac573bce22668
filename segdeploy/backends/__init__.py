"""Deployment formats: one file each, in one table; `open_session` opens any model folder."""

from __future__ import annotations

from typing import Any

from segdeploy.backends.isolation import (
    find_python_of,
    is_in_process,
    open_isolated,
    require_elsewhere,
)
from segdeploy.core.errors import ArtifactError, BackendUnavailableError
from segdeploy.core.folder import Checkpoint, ModelFolder
from segdeploy.core.foreign import is_foreign
from segdeploy.core.registry import Registry
from segdeploy.core.session import Backend, Session, check_device
from segdeploy.core.target import ExportTarget

BACKENDS: Registry[Backend] = Registry(
    "target",
    {
        "coreml": "segdeploy.backends.coreml:COREML",
        "executorch": "segdeploy.backends.executorch:EXECUTORCH",
        "litert": "segdeploy.backends.litert:LITERT",
        "ncnn": "segdeploy.backends.ncnn:NCNN",
        "onnx": "segdeploy.backends.onnx:ONNX",
        "tensorrt": "segdeploy.backends.tensorrt:TENSORRT",
        "torchscript": "segdeploy.backends.torchscript:TORCHSCRIPT",
        "openvino": "segdeploy.backends.openvino:OPENVINO",
        "aoti": "segdeploy.backends.aoti:AOTI",
    },
    entry_point_group="segdeploy.backends",
)


def find_backend(folder: ModelFolder) -> Backend | None:
    """Return the backend that runs a model folder; None for a checkpoint, which is eager PyTorch.

    Raises:
        UnknownNameError: If the artifact is of a backend that is not in the table.
    """
    if isinstance(folder, Checkpoint) or folder.manifest.target is None:
        return None
    return BACKENDS.get(ExportTarget.parse(folder.manifest.target).backend)


def open_session(
    folder: ModelFolder, device: str = "cpu", *, isolated: bool | None = None
) -> Session:
    """Open a checkpoint (eager PyTorch fp32) or an artifact (its own runtime) on `cpu` or `cuda`.

    Args:
        folder: What to open.
        device: `cpu`, `cuda` or `cuda:N`.
        isolated: Whether the runtime works in a child process, so that its crash is an error;
            default: foreign runtimes do.

    Raises:
        BackendUnavailableError: If the runtime or the device is missing here.
        ArtifactError: If the payload cannot be opened.
        ConfigError: If there is no such device at all.
    """
    check_device(device)
    backend = find_backend(folder)
    if is_foreign(folder):
        return _open_foreign(folder, device, isolated=isolated)
    if backend is None:
        from segdeploy.backends.pytorch import PYTORCH

        return PYTORCH.open(folder, device)
    if isolated is None:
        isolated = backend.is_isolated and not is_in_process(backend.environment)
    if isolated:
        try:
            return open_isolated(folder, device, find_python_of(backend.environment))
        except (ArtifactError, OSError):
            if backend.environment is not None:
                require_elsewhere(backend)  # The environment may be what is broken.
            raise
    backend.require()
    return backend.open(folder, device)


def _open_foreign(folder: ModelFolder, device: str, *, isolated: bool | None) -> Session:
    """Open the original of a foreign model; in a child, since nobody knows what it does."""
    if (not is_in_process()) if isolated is None else isolated:
        return open_isolated(folder, device, find_python_of(None))
    from segdeploy.backends.foreign import FOREIGN

    return FOREIGN.open(folder, device)


def require_backend(backend: Backend) -> dict[str, str]:
    """Check that a backend can work here, or in its own environment; return its versions.

    Raises:
        BackendUnavailableError: If it cannot; the hint says what to install, and where.
    """
    if backend.environment is not None:
        return require_elsewhere(backend)
    backend.require()
    return backend.versions()


def describe_targets() -> list[dict[str, Any]]:
    """Return {name, available, hint} of every target; tells only whether it can work here."""
    rows = []
    for name in BACKENDS:
        backend = BACKENDS.get(name)
        try:
            require_backend(backend)
            hint = ""
        except BackendUnavailableError as error:
            hint = error.hint
        rows += [
            {"name": f"{name}-{precision}", "available": not hint, "hint": hint}
            for precision in backend.precisions
        ]
    return rows


__all__ = [
    "BACKENDS",
    "Backend",
    "Session",
    "describe_targets",
    "find_backend",
    "open_session",
    "require_backend",
]
