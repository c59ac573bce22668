"""`model.plan`: what the engine is and where it was built, then the engine itself.

An engine runs only with the TensorRT version, on the kind of GPU and with the driver that it was
built with; TensorRT itself says so in a log line about a magic number, or crashes. So the payload
begins with a little-endian uint32 (length), that many bytes of JSON, then TensorRT's own bytes: the
layout that some other tools write too. The JSON is compared before TensorRT sees anything.
trtexec and the C++ runtime want the engine alone; `strip_header` cuts it out.

TensorRT-RTX compiles its kernels on the GPU that runs them: its engines are bound to the version
only.
"""

from __future__ import annotations

import json
import platform
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from segdeploy.core.errors import ArtifactError
from segdeploy.core.files import canonical_json
from segdeploy.frameworks.cuda import Gpu

_LENGTH = struct.Struct("<I")
_MAX_HEADER = 1 << 24
NO_GPU = Gpu("none", "none", "none", "none")


@dataclass(frozen=True)
class Place:
    """Where an engine is built or shall run."""

    flavour: str
    tensorrt: str
    platform: str
    gpu: str
    capability: str
    driver: str
    cuda: str


def describe_place(trt: ModuleType, gpu: Gpu | None) -> Place:
    """Return this place; without a GPU its words are "none"."""
    found = gpu or NO_GPU
    return Place(
        trt.__name__,
        str(trt.__version__),
        f"{platform.system()}-{platform.machine()}".lower(),
        found.name,
        found.capability,
        found.driver,
        found.cuda,
    )


def pack_plan(header: dict[str, Any], engine: bytes) -> bytes:
    """Return the payload: equal headers and engines give equal bytes."""
    text = canonical_json(header)
    return _LENGTH.pack(len(text)) + text + engine


def read_plan(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return (header, engine) of a payload.

    Raises:
        ArtifactError: If it cannot be read or is not one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"Cannot read {path}: {error.strerror or error}.") from error
    try:
        return _split(content)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is not a TensorRT engine that segdeploy wrote.",
            hint="A bare engine does not say where it was built. Export it again.",
        ) from error


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return (header, engine); any of the usual errors if it is not so made."""
    (length,) = _LENGTH.unpack_from(content)
    if not 2 <= length <= _MAX_HEADER or _LENGTH.size + length >= len(content):
        raise ValueError("no header")
    header: dict[str, Any] = json.loads(content[_LENGTH.size : _LENGTH.size + length])
    if header["format"] != 1:
        raise ValueError("another format")
    Place(**header["built"])
    return header, content[_LENGTH.size + length :]


def strip_header(path: Path, to: Path) -> None:
    """Write the engine alone, for trtexec and the C++ runtime.

    Raises:
        ArtifactError: If `path` is no payload of ours.
    """
    to.write_bytes(read_plan(path)[1])


def refuse_elsewhere(header: dict[str, Any], here: Place, what: str) -> None:
    """Check that an engine was built for this place; `what` names it.

    Raises:
        ArtifactError: If anything that binds an engine differs; the message names all of it.
    """
    built = Place(**header["built"])
    bound = ["flavour", "tensorrt", "platform"]
    if built.flavour != "tensorrt_rtx":
        bound += ["gpu", "capability", "driver"]
    then, now = asdict(built), asdict(here)
    differing = [
        f"{_WORDS[name]} {then[name]} (here {now[name]})"
        for name in bound
        if then[name] != now[name]
    ]
    if differing:
        raise ArtifactError(
            f"{what} was built for another place: {', '.join(differing)}.",
            hint="An engine is no portable file: export it again on the machine that runs it.",
        )


_WORDS = {
    "flavour": "library",
    "tensorrt": "TensorRT",
    "platform": "system",
    "gpu": "GPU",
    "capability": "compute capability",
    "driver": "driver",
}
