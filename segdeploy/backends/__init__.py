"""Deployment formats: one file each, in one table; `open_session` opens any model folder."""

from __future__ import annotations

from typing import Any

from segdeploy.core.errors import BackendUnavailableError
from segdeploy.core.folder import Checkpoint, ModelFolder
from segdeploy.core.registry import Registry
from segdeploy.core.session import Backend, Session, check_device
from segdeploy.core.target import ExportTarget

BACKENDS: Registry[Backend] = Registry(
    "target",
    {
        "onnx": "segdeploy.backends.onnx:ONNX",
        "torchscript": "segdeploy.backends.torchscript:TORCHSCRIPT",
    },
    entry_point_group="segdeploy.backends",
)


def open_session(folder: ModelFolder, device: str = "cpu") -> Session:
    """Open a checkpoint (eager PyTorch fp32) or an artifact (its own runtime) on `cpu` or `cuda`.

    Raises:
        BackendUnavailableError: If the runtime or the device is missing here.
        ArtifactError: If the payload cannot be opened.
        ConfigError: If there is no such device at all.
    """
    check_device(device)
    if isinstance(folder, Checkpoint):
        from segdeploy.backends.pytorch import PYTORCH

        return PYTORCH.open(folder, device)
    backend = BACKENDS.get(ExportTarget.parse(folder.manifest.target or "").backend)
    backend.require()
    return backend.open(folder, device)


def describe_targets() -> list[dict[str, Any]]:
    """Return {name, available, hint} of every target; tells only whether it can work here."""
    rows = []
    for name in BACKENDS:
        backend = BACKENDS.get(name)
        try:
            backend.require()
            hint = ""
        except BackendUnavailableError as error:
            hint = error.hint
        rows += [
            {"name": f"{name}-{precision}", "available": not hint, "hint": hint}
            for precision in backend.precisions
        ]
    return rows


__all__ = ["BACKENDS", "Backend", "Session", "describe_targets", "open_session"]
