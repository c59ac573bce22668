"""The fingerprint of a machine: what a latency depends on besides the artifact.

Everything is read from the system's own files where they are readable; what is not readable (in a
container, on another system) is None, never a guess. No framework is imported. malloc's settings
are part of it: they moved eager PyTorch from 50 to 39 ms on the development machine.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from segdeploy.core.folder import installed_versions
from segdeploy.frameworks.threads import affinity, cpu_limit_cores

# What decides which kernels a runtime picks; the full list of flags is long and says no more.
_FLAGS = (
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl",
    "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_VARIABLE_PREFIXES = ("MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "ORT_", "SEGDEPLOY_")
_PLACES = "SEGDEPLOY_PYTHON_"  # Where things lie on this machine is nobody's business.
_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES", "CUDA_VISIBLE_DEVICES")
_UNLIMITED = 2**60  # cgroup v1 writes a number near 2**63 for "no limit".


def describe_environment() -> dict[str, Any]:
    """Return the fingerprint as a JSON-like value; unknown entries are None."""
    return {
        "cpu": cpu_model(),
        "cpu_flags": _cpu_flags(),
        "num_cores": os.cpu_count(),
        "affinity": affinity(),
        "cpu_limit_cores": cpu_limit_cores(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "frequency_mhz": frequency_mhz(),
        "load_average": _load_average(),
        "memory_mib": _memory_mib("MemTotal"),
        "memory_available_mib": _memory_mib("MemAvailable"),
        "memory_limit_mib": memory_limit_mib(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": installed_versions(),
        "gpus": describe_gpus(),
        "variables": _variables(),
    }


def memory_limit_mib() -> float | None:
    """Return the cgroup's memory limit in MiB, or None if unlimited."""
    found = _read(Path("/sys/fs/cgroup/memory.max"))
    if found is None:
        found = _read(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    limit = _number(found)
    return limit / 2**20 if limit is not None and limit < _UNLIMITED else None


def peak_memory_mib() -> float | None:
    """Return this process's largest resident set so far (VmHWM) in MiB, or None if unknown."""
    value = _fields(Path("/proc/self/status")).get("VmHWM", "")
    kib = _number(value.removesuffix(" kB"))
    return kib / 1024 if kib is not None else None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the CPU's name and generation, e.g. `AMD EPYC (family 26, model 2)`; None if unknown.

    Clouds sell CPUs of several generations under one name, and their times cannot be compared.
    Linux tells family and model (x86), implementer and the parts of all cores (Arm); macOS has the
    generation in the name.
    """
    fields = _fields(cpuinfo)
    name = fields.get("model name") or fields.get("Model")
    generation = ""
    if "cpu family" in fields and "model" in fields:
        generation = f"family {fields['cpu family']}, model {fields['model']}"
    elif "CPU implementer" in fields and "CPU part" in fields:  # Phones and boards mix cores.
        parts = " ".join(sorted(set(_values(cpuinfo, "CPU part"))))
        generation = f"implementer {fields['CPU implementer']}, part {parts}"
    if generation:
        return f"{name} ({generation})" if name else generation
    return name or _ask_sysctl("machdep.cpu.brand_string") or platform.processor() or None


def _ask_sysctl(name: str) -> str | None:
    """Return what macOS knows under a name; None elsewhere."""
    if platform.system() != "Darwin":
        return None
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _cpu_flags() -> list[str] | None:
    fields = _fields(Path("/proc/cpuinfo"))
    found = (fields.get("flags") or fields.get("Features") or "").split()
    return [flag for flag in _FLAGS if flag in found] if found else None


def frequency_mhz() -> float | None:
    """Return the clock of the first core now, or None if unknown."""
    current = _number(_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")))
    if current is not None:
        return current / 1000
    return _number(_fields(Path("/proc/cpuinfo")).get("cpu MHz"))


def _load_average() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _memory_mib(name: str) -> float | None:
    kib = _number(_fields(Path("/proc/meminfo")).get(name, "").removesuffix(" kB"))
    return kib / 1024 if kib is not None else None


def query_gpus(fields: str) -> list[str]:
    """Return a line of comma-separated fields for each GPU that `nvidia-smi` lists."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


def describe_gpus() -> list[dict[str, Any]]:
    """Return name, memory and driver of each NVIDIA GPU that `nvidia-smi` lists."""
    rows = [line.split(", ") for line in query_gpus("name,memory.total,driver_version")]
    return [
        {"name": row[0], "memory_mib": _number(row[1]), "driver": row[2]}
        for row in rows
        if len(row) == 3
    ]


def _variables() -> dict[str, str]:
    """Return the environment variables that change speed."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if (name.startswith(_VARIABLE_PREFIXES) and not name.startswith(_PLACES))
        or name in _VARIABLES
    }


def _fields(path: Path) -> dict[str, str]:
    """Return the first value of each `name: value` line of a file under /proc."""
    fields: dict[str, str] = {}
    for name, value in _lines(path):
        fields.setdefault(name, value)
    return fields


def _values(path: Path, wanted: str) -> list[str]:
    """Return the value of every line of one name."""
    return [value for name, value in _lines(path) if name == wanted]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in (_read(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
