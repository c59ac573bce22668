"""The child process of `isolation`: builds payloads, opens and runs sessions, for one parent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdeploy.backends.requests import build_here, decode_request
from segdeploy.core.child import Array, Worker
from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import installed_versions, load_folder
from segdeploy.core.session import Session

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
        return {
            "versions": backend.versions(),
            "segdeploy": installed_versions(["segdeploy"]),
        }, []

    def build(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Let a backend write its payload."""
        from segdeploy.backends import BACKENDS

        backend = BACKENDS.get(request["backend"])
        backend.require()
        build_here(backend, decode_request(request["request"]))
        return {}, []

    def inspect(self, request: dict[str, Any], _arrays: list[Array]) -> Answer:
        """Find out what a foreign ONNX file is."""
        from segdeploy.backends.foreign_inspect import inspect_request

        return inspect_request(request), []

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


def main() -> None:
    """Serve the parent."""
    BackendWorker().serve()


if __name__ == "__main__":
    main()
