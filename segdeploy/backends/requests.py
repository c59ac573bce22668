"""A build request as plain values, on its way into a child process, and the build itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.contract import IoContract, SizeBounds
from segdeploy.core.errors import BuildError, SegDeployError
from segdeploy.core.folder import load_folder
from segdeploy.core.session import Backend, BuildRequest
from segdeploy.core.target import Precision


def build_here(backend: Backend, request: BuildRequest) -> None:
    """Let a backend write its payload in this process: the one place where converters run.

    Raises:
        BuildError: Also where the converter raises something of its own, or writes nothing.
    """
    try:
        backend.build(request)
    except (SegDeployError, OSError):
        raise
    except (Exception, SystemExit) as error:
        raise BuildError(
            f"{backend.name} failed to build {request.payload.name}: {type(error).__name__}.",
            log=str(error)[-2000:],
        ) from error
    for name in (backend.payload_name, *backend.other_files):
        file = request.payload.parent / name
        if not file.is_file() or not file.stat().st_size:
            raise BuildError(f"{backend.name} wrote no {name}.")


def encode(value: Any) -> Any:
    """Make what msgspec has no form for plain: paths, model folders."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def encode_request(request: BuildRequest) -> dict[str, Any]:
    """Return a request as plain values; the checkpoint by its path."""
    fields = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    fields["checkpoint"] = str(request.checkpoint.path.resolve())
    plain: dict[str, Any] = msgspec.to_builtins(fields, enc_hook=encode)
    return plain


def decode_request(plain: dict[str, Any]) -> BuildRequest:
    """Return the request of `encode_request`; the parent has checked the checkpoint's files."""
    return BuildRequest(
        checkpoint=load_folder(Path(plain["checkpoint"]), check_files=False),
        payload=Path(plain["payload"]),
        precision=Precision(plain["precision"]),
        io=msgspec.convert(plain["io"], IoContract),
        size=msgspec.convert(plain["size"], tuple[int, int] | None),
        bounds=msgspec.convert(plain["bounds"], SizeBounds | None),
        graph=Path(plain["graph"]) if plain["graph"] else None,
        calibration=tuple(Path(name) for name in plain["calibration"]),
        options=plain["options"],
    )
