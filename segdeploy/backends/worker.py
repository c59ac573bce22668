"""The child process of `isolation`: builds payloads, opens and runs sessions, for one parent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.child import Array, Worker
from segdeploy.core.contract import IoContract, SizeBounds
from segdeploy.core.errors import ArtifactError, BuildError, SegDeployError
from segdeploy.core.folder import installed_versions, load_folder
from segdeploy.core.session import Backend, BuildRequest, Session
from segdeploy.core.target import Precision

Answer = tuple[dict[str, Any], list[Array]]


class BackendWorker(Worker):
    """State between requests: the opened session and the bound call."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._call: Callable[[], None] | None = None

    def require(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Ask a backend whether it can work in this environment."""
        from segdeploy.backends import BACKENDS

        backend = BACKENDS.get(request["backend"])
        backend.require()
        return {"versions": installed_versions(backend.packages)}, []

    def build(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Let a backend write its payload."""
        from segdeploy.backends import BACKENDS

        backend = BACKENDS.get(request["backend"])
        backend.require()
        build_here(backend, decode_request(request["request"]))
        return {}, []

    def open(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Open a model folder, whose files the parent has checked."""
        from segdeploy.backends import open_session

        folder = load_folder(Path(request["path"]), check_files=False)
        self._session = open_session(folder, request["device"], isolated=False)
        return {}, []

    def run(self, _request: dict[str, Any], arrays: list[Array]) -> Answer:
        """Run a batch."""
        found = self._opened().run(arrays[0])
        return {}, [found[spec.name] for spec in self._opened().outputs]

    def bind(self, _request: dict[str, Any], arrays: list[Array]) -> Answer:
        """Keep a batch for `call`."""
        self._call = self._opened().bind(arrays[0])
        return {}, []

    def call(self, _request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Run the bound batch once."""
        if self._call is None:
            raise ArtifactError("Nothing is bound.")
        self._call()
        return {}, []

    def _opened(self) -> Session:
        if self._session is None:
            raise ArtifactError("The session is closed.")
        return self._session


def build_here(backend: Backend, request: BuildRequest) -> None:
    """Let a backend write its payload in this process: the one place where converters run.

    Raises:
        BuildError: Also where the converter raises something of its own, or writes nothing.
    """
    try:
        backend.build(request)
    except (SegDeployError, OSError):
        raise
    except Exception as error:
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


def main() -> None:
    """Serve the parent."""
    BackendWorker().serve()


if __name__ == "__main__":
    main()
