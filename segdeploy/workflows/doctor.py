"""What this machine can build and run, and the install line for the rest.

Nothing here may fail: a package that is absent or broken is a finding, not an error. It works in
the base install, without torch and without a runtime.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from segdeploy.backends import BACKENDS, require_backend
from segdeploy.backends.isolation import find_python_of
from segdeploy.core.errors import SegDeployError
from segdeploy.core.folder import installed_versions
from segdeploy.measure import describe_environment, usable_cores

# Packages by the extra that brings them; the base is there whenever this runs.
_EXTRAS = {
    "torch": "torch", "torchvision": "torch", "onnx": "torch", "onnxscript": "torch",
    "safetensors": "torch", "onnxruntime": "cpu",
    "openvino": "openvino", "executorch": "executorch", "coremltools": "coreml", "ncnn": "ncnn",
    "pnnx": "ncnn", "tensorrt": "gpu",
}  # fmt: skip
_BASE = ("segdeploy", "numpy", "pillow", "msgspec", "rich", "typer")
_LOW_DISK_MIB = 2048
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """Something that works here or not; `hint` is how to get it."""

    name: str
    available: bool
    detail: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `doctor` found. Sizes are in MiB."""

    python: str
    system: str
    cpu: str | None
    cores: int
    memory_mib: float | None
    disk_free_mib: float | None
    torch_threads: int | None
    packages: list[Finding]
    targets: list[Finding]
    environments: list[Finding]
    devices: list[Finding]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `doctor`."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine and return what was found; never raises for what is missing."""
    environment = describe_environment()
    warnings: list[str] = []
    torch = _import("torch", warnings)
    disk = _disk_free_mib(warnings)
    _look_for_conflicts(warnings)
    if torch is not None:
        _look_at_torchvision(warnings)
    targets, environments = _find_targets()
    return Diagnosis(
        python=environment["python"],
        system=environment["os"],
        cpu=environment["cpu"],
        cores=usable_cores(),
        memory_mib=environment["memory_limit_mib"] or environment["memory_mib"],
        disk_free_mib=disk,
        torch_threads=torch.get_num_threads() if torch is not None else None,
        packages=_find_packages(),
        targets=targets,
        environments=environments,
        devices=_find_devices(torch, environment["gpus"], warnings),
        warnings=warnings,
    )


def _import(name: str, warnings: list[str]) -> Any:
    """Import a package that may be absent (None) or broken (None, and a warning)."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  a broken install raises anything, and is a finding
        warnings.append(f"{name} is installed but cannot be imported: {_first_line(error)}")
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _find_packages() -> list[Finding]:
    known = installed_versions()
    found = [Finding(name, True, _version(name) or "?") for name in _BASE]
    for name, extra in _EXTRAS.items():
        version = (
            known.get(name)
            or _version(name)
            or (known.get("onnxruntime-gpu") if extra == "cpu" else None)
        )
        hint = "" if version else f"pip install 'segdeploy[{extra}]'"
        found.append(Finding(name, version is not None, version or "", hint))
    return found


def _find_targets() -> tuple[list[Finding], list[Finding]]:
    """Return every backend x precision, by the backend's own `require`; and second environments.

    The commands that make an environment are said once, there; its targets point to it.
    """
    found: list[Finding] = []
    environments: list[Finding] = []
    for name in BACKENDS:
        precisions, environment = ["*"], None
        reason, hint = "", ""
        try:
            backend = BACKENDS.get(name)
            precisions = [str(precision) for precision in backend.precisions]
            environment = backend.environment
            require_backend(backend)
        except SegDeployError as error:
            reason, hint = error.message, error.hint
        except Exception as error:  # noqa: BLE001  a broken install raises anything
            reason = _first_line(error)
        if environment is not None:
            python = "" if reason else find_python_of(environment)
            environments.append(Finding(environment, not reason, reason or python, hint))
            hint = f"See the environment {environment}." if reason else ""
        found += [
            Finding(f"{name}-{precision}", not reason, reason, hint) for precision in precisions
        ]
    return found, environments


def _find_devices(torch: Any, gpus: list[dict[str, Any]], warnings: list[str]) -> list[Finding]:
    names = ", ".join(str(gpu["name"]) for gpu in gpus)
    found = [Finding("cpu", True)]
    usable = _attempt(
        lambda: bool(torch is not None and torch.cuda.is_available()), False, warnings
    )
    if usable:
        return [*found, Finding("cuda", True, names or "CUDA")]
    if not gpus:
        return [*found, Finding("cuda", False, "nvidia-smi finds no NVIDIA GPU")]
    hint = "Install a CUDA build of torch, or: pip install 'segdeploy[gpu]'"
    return [*found, Finding("cuda", False, f"{names}, but torch cannot use it", hint)]


def _attempt(look: Callable[[], bool], otherwise: bool, warnings: list[str]) -> bool:
    try:
        return look()
    except Exception as error:  # noqa: BLE001  a broken install raises anything, and is a finding
        warnings.append(_first_line(error))
        return otherwise


def _look_for_conflicts(warnings: list[str]) -> None:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if len(both) == 2:
        warnings.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "pip uninstall both, then install one."
        )
    if sys.version_info < _OLDEST_PYTHON:
        warnings.append(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old.")


def _look_at_torchvision(warnings: list[str]) -> None:
    """Find the wheel whose compiled operators do not load beside this torch."""
    if importlib.util.find_spec("torchvision") is None:
        return

    def has_operators() -> bool:
        from segdeploy.frameworks.torchvision import prepare_torchvision

        prepare_torchvision()
        return bool(importlib.import_module("torchvision.extension")._has_ops())  # noqa: SLF001

    if not _attempt(has_operators, True, warnings):
        warnings.append(
            f"torchvision {_version('torchvision')} was built for another torch than "
            f"{_version('torch')}: its compiled operators do not load. segdeploy works around it; "
            "timm, torchmetrics and others may fail to import."
        )


def _disk_free_mib(warnings: list[str]) -> float | None:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 2**20
    except OSError as error:
        warnings.append(f"The current folder cannot be looked at: {_first_line(error)}")
        return None
    if free < _LOW_DISK_MIB:
        warnings.append(f"Only {free:.0f} MiB are free here; a training run needs more.")
    return free
