"""Makes a folder in which `import tensorrt` is TensorRT's real Python API, without a GPU.

    python tests/tensorrt_cpu/install.py FOLDER && PYTHONPATH=FOLDER python ...

Two wheels of the registry: TensorRT's bindings, and the TensorRT-RTX libraries that come with ONNX
Runtime's provider of that name; `bridge.c` joins them. Networks, the ONNX parser, profiles and
building are the real thing; loading an engine needs a GPU, and says so (CUDA error 35). It shows
that our graphs parse and build, and that our code calls the API rightly; it shows no speed.

Exit 1 and one line on stderr say what is missing. The libraries have NVIDIA's own licence: they are
installed, never committed. A finished folder is left as it is; two processes wait for each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

WHEELS = ("tensorrt_cu13_bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0")
SONAMES = ("libnvinfer.so.11", "libnvonnxparser.so.11", "libnvinfer_plugin.so.11")
RTX = "onnxruntime_ep_nv_tensorrt_rtx"
BRIDGE = Path(__file__).with_name("bridge.c")
LIMIT_S = 900
INIT = f'''"""TensorRT's own bindings on the TensorRT-RTX libraries; see bridge.c."""
import ctypes
import pathlib

for _soname in {SONAMES!r}:
    _path = pathlib.Path(__file__).with_name(_soname)
    ctypes.CDLL(str(_path), mode=ctypes.RTLD_GLOBAL)
from tensorrt_bindings import *
from tensorrt_bindings import __version__
'''
PROBE = "import tensorrt as t; assert t.Builder(t.Logger()).create_builder_config() is not None"


class MissingError(Exception):
    """Something that it needs is not here; the text is one line."""


def install(folder: Path) -> None:
    """Fill the folder, unless it is finished.

    Raises:
        MissingError: If a wheel, the compiler or the platform is missing.
    """
    parts = [*WHEELS, *SONAMES, INIT, BRIDGE.read_text()]
    recipe = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    done = folder / "done"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.is_file() and done.read_text() == recipe:
            return
        shutil.rmtree(folder, ignore_errors=True)
        _fetch(folder)
        _build(folder)
        done.write_text(recipe)


def _fetch(folder: Path) -> None:
    _call(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-input",
         "--disable-pip-version-check", "--target", str(folder), *WHEELS],
        f"pip cannot install {' and '.join(WHEELS)}",
    )  # fmt: skip


def _build(folder: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise MissingError("no C compiler (cc, gcc)")
    module = folder / "tensorrt"
    module.mkdir()
    for soname in SONAMES:
        names = {
            "BRIDGE_TO_RTX": f"../{RTX}",
            "RTX_BUILDER": _only(folder / RTX, "libtensorrt_rtx.so.*"),
            "RTX_PARSER": _only(folder / RTX, "libtensorrt_onnxparser_rtx.so.*"),
        }
        defines = [f'-D{name}="{value}"' for name, value in names.items()]
        _call(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", *defines, "-o", str(module / soname),
             str(BRIDGE), "-ldl", f"-Wl,-soname,{soname}"],
            "the C compiler cannot build bridge.c",
        )  # fmt: skip
    (module / "__init__.py").write_text(INIT)
    _call([sys.executable, "-c", PROBE], "the module does not work", str(folder))


def _only(folder: Path, pattern: str) -> str:
    found = sorted(path.name for path in folder.glob(pattern))
    if len(found) != 1:
        raise MissingError(f"{folder.name} has {len(found)} files {pattern}, not one")
    return found[0]


def _call(command: list[str], what: str, path: str | None = None) -> None:
    variables = os.environ if path is None else {**os.environ, "PYTHONPATH": path}
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=LIMIT_S, env=variables
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        raise MissingError(f"{what}: {lines[-1]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{what}: {error}") from error


if __name__ == "__main__":
    try:
        install(Path(sys.argv[1]).resolve())
    except MissingError as missing:
        sys.exit(f"TensorRT for the CPU: {missing}")
