"""Foreign code in a process of its own: builds of every backend, sessions of foreign runtimes.

A backend whose packages cannot share this environment (`Backend.environment`) works in a second
one. Its interpreter is named by `SEGDEPLOY_PYTHON_<NAME>`, or stands in the usual place below the
user's data folder; `segdeploy doctor` prints the commands that make it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.backends.batch import check_batch
from segdeploy.backends.requests import build_here, encode_request
from segdeploy.core.child import Child, ChildFailedError, child_environment
from segdeploy.core.contract import TensorSpec
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError
from segdeploy.core.folder import NOTED_PACKAGES, ModelFolder, installed_versions
from segdeploy.core.foreign import ForeignGraph
from segdeploy.core.session import Array, Backend, BuildRequest
from segdeploy.measure.environment import memory_limit_mib

WORKER = "segdeploy.backends.worker"
IN_PROCESS = "SEGDEPLOY_IN_PROCESS"
"""Variable for debuggers: `1` builds and opens in the process itself, without any protection."""
BUILD_LIMIT_S, RUN_LIMIT_S, _REQUIRE_LIMIT_S = 1800.0, 600.0, 120.0
_MEMORY_SHARE = 0.9


def is_in_process(environment: str | None = None) -> bool:
    """Return whether isolation is switched off; what lives in a second environment cannot be."""
    return environment is None and os.environ.get(IN_PROCESS, "") not in {"", "0"}


def usual_python(environment: str) -> Path:
    """Return where the interpreter of a second environment stands if no variable names it."""
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "segdeploy" / "environments" / environment / "bin" / "python"


def python_variable(environment: str) -> str:
    """Return the variable that names the interpreter of a second environment."""
    return f"SEGDEPLOY_PYTHON_{environment.upper().replace('-', '_')}"


_PINNED = ("torch", "torchvision")


def setup_commands(environment: str, extras: str) -> list[str]:
    """Return the commands that make a second environment with these extras of segdeploy.

    Torch is pinned to the version that runs here: both environments then trace the same module,
    and pip does not fetch a CUDA build of several GB because the range is open.
    """
    folder = usual_python(environment).parents[1]
    source = Path(__file__).parents[2]
    is_checkout = (source / "pyproject.toml").is_file()
    pinned = [f"{n}=={v.partition('+')[0]}" for n, v in installed_versions(_PINNED).items()]
    version = installed_versions(["segdeploy"])["segdeploy"]
    package = (
        ["--editable", f"{source}[{extras}]"]
        if is_checkout
        else [f"segdeploy[{extras}]=={version}"]
    )
    pip = [str(folder / "bin" / "pip"), "install", *pinned, *package]
    return [shlex.join([sys.executable, "-m", "venv", str(folder)]), shlex.join(pip)]


def find_python_of(environment: str | None, extras: str = "") -> str:
    """Return the interpreter that a backend works in; None is this one.

    Raises:
        BackendUnavailableError: If the second environment is not there; the hint makes it.
    """
    if environment is None:
        return sys.executable
    named = os.environ.get(python_variable(environment))
    python = Path(named) if named else usual_python(environment)
    if os.access(python, os.X_OK) and python.is_file():
        return str(python)
    raise BackendUnavailableError(
        f"{environment} needs an environment of its own, and {python} is no interpreter.",
        hint=f"Make it:\n  {_commands(environment, extras)}\n"
        f"or set {python_variable(environment)} to the python of one.",
    )


def find_python(folder: ModelFolder) -> str:
    """Return the interpreter that a model folder is run by."""
    from segdeploy.backends import find_backend

    backend = find_backend(folder)
    return sys.executable if backend is None else find_python_of(backend.environment)


def require_elsewhere(backend: Backend) -> dict[str, str]:
    """Return the versions of a backend's packages in its second environment.

    Raises:
        BackendUnavailableError: If the environment or a package in it is missing, or it holds
            another segdeploy than this one.
    """
    python = find_python_of(backend.environment)
    try:
        with _start(python, None) as child:
            answer, _ = child.ask(
                {"do": "require", "backend": backend.name}, limit_s=_REQUIRE_LIMIT_S
            )
    except (ChildFailedError, OSError) as error:
        raise _unusable(backend, python, error) from error
    ours, theirs = installed_versions(["segdeploy"]), answer["segdeploy"]
    if theirs != ours:
        raise BackendUnavailableError(
            f"{python} has segdeploy {theirs.get('segdeploy', 'of unknown version')}, and this is "
            f"{ours.get('segdeploy', 'of unknown version')}: the two would not understand each "
            "other.",
            hint=f"Make its environment again:\n  {_commands(backend.environment)}",
        )
    versions: dict[str, str] = answer["versions"]
    return versions


def versions_elsewhere(backend: Backend) -> dict[str, str]:
    """Return the versions in a backend's second environment as its files tell them, unopened.

    Keys are `environment/package`; empty for a backend that has none, or where it is missing.
    """
    if backend.environment is None:
        return {}
    try:
        python = Path(find_python_of(backend.environment))
    except BackendUnavailableError:
        return {}
    places = [str(place) for place in python.parents[1].glob("lib/python3*/site-packages")]
    return {
        f"{backend.environment}/{name}": found.version
        for name in (*NOTED_PACKAGES, *backend.packages)
        for found in metadata.distributions(name=name, path=places)
    }


def _unusable(
    backend: Backend, python: str, error: ChildFailedError | OSError
) -> BackendUnavailableError:
    how = f"its process {error.reason}" if isinstance(error, ChildFailedError) else str(error)
    log = f"{error.log}\n" if isinstance(error, ChildFailedError) and error.log else ""
    return BackendUnavailableError(
        f"{python} cannot work for {backend.name}: {how}.",
        hint=f"{log}Make its environment again:\n  {_commands(backend.environment)}",
    )


def _commands(environment: str | None, extras: str = "") -> str:
    name = environment or ""
    return "\n  ".join(setup_commands(name, extras or name))


def memory_limit() -> float | None:
    """Return the usual memory limit of a child: most of what this process may use, in MiB."""
    found = memory_limit_mib()
    if found is None:
        try:
            found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
        except (ValueError, OSError):
            return None
    return _MEMORY_SHARE * found


def _start(python: str, memory_mib: float | None, threads: int | None = None) -> Child:
    return Child(
        WORKER,
        python=python,
        environment=child_environment(threads, python),
        memory_mib=memory_limit() if memory_mib is None else memory_mib,
    )


@dataclass(frozen=True)
class Builder:
    """Builds payloads, each in a process of its own: what one left behind changes no other.

    `limit_s` is the longest time of one build in seconds, `memory_mib` the most memory; None is
    most of what this process may use.
    """

    limit_s: float = BUILD_LIMIT_S
    memory_mib: float | None = None

    def build(self, backend: Backend, request: BuildRequest) -> None:
        """Let a backend write its payload.

        Raises:
            BuildError: If the converter fails, crashes, or hits a limit; with the tail of its log.
            SegDeployError: What the backend itself raises.
        """
        if is_in_process(backend.environment):
            build_here(backend, request)
            return
        plain = encode_request(request)
        with _start(find_python_of(backend.environment), self.memory_mib) as child:
            try:
                child.ask(
                    {"do": "build", "backend": backend.name, "request": plain},
                    limit_s=self.limit_s,
                )
            except ChildFailedError as error:
                raise BuildError(
                    f"{backend.name} failed to build {request.payload.name}: its process "
                    f"{error.reason}.",
                    log=error.log,
                ) from error


def inspect_foreign(path: Path, wanted: dict[str, Any]) -> ForeignGraph:
    """Return the facts of a foreign ONNX file, found in a child process.

    Raises:
        ArtifactError: If it cannot be read, or reading or running it crashes.
        SegDeployError: As `foreign_inspect.inspect_file`.
    """
    plain = {"do": "inspect", "path": str(path), "wanted": msgspec.to_builtins(wanted)}
    if is_in_process():
        from segdeploy.backends.foreign_inspect import inspect_request

        return msgspec.convert(inspect_request(plain), ForeignGraph)
    with _start(find_python_of(None), None) as child:
        try:
            answer, _ = child.ask(plain, limit_s=RUN_LIMIT_S)
        except ChildFailedError as error:
            raise ArtifactError(
                f"{path} cannot be read or run: the process {error.reason}.", hint=error.log
            ) from error
    return msgspec.convert(answer, ForeignGraph)


class IsolatedSession:
    """A session that lives in a child process."""

    def __init__(self, child: Child, folder: ModelFolder, limit_s: float = RUN_LIMIT_S) -> None:
        self._child = child
        self._limit_s = limit_s
        self._folder = folder
        self.inputs: tuple[TensorSpec, ...] = folder.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = folder.manifest.outputs

    def run(self, batch: Array) -> dict[str, Array]:
        """Return the outputs by name."""
        check_batch(batch, self.inputs[0])
        _, arrays = self._ask({"do": "run"}, [batch])
        return {spec.name: array for spec, array in zip(self.outputs, arrays, strict=True)}

    def bind(self, batch: Array) -> Callable[[], None]:
        """Return a call that runs this batch once; the way to the child is part of its time."""
        check_batch(batch, self.inputs[0])
        self._ask({"do": "bind"}, [batch])

        def call() -> None:
            self._ask({"do": "call"})

        return call

    def close(self) -> None:
        """End the child."""
        self._child.stop()

    def _ask(self, request: dict[str, Any], arrays: list[Array] | None = None) -> Any:
        try:
            return self._child.ask(request, arrays or [], limit_s=self._limit_s)
        except ChildFailedError as error:
            self.close()
            raise _failed(self._folder, error) from error
        except (ValueError, OSError) as error:
            raise ArtifactError(
                "The session is closed.", hint="An interrupted call closes it: open it again."
            ) from error


def _failed(folder: ModelFolder, error: ChildFailedError) -> ArtifactError:
    log = f"The end of its log:\n{error.log}" if error.log else "It wrote no log."
    return ArtifactError(
        f"The runtime of {folder.path} crashed: its process {error.reason}.", hint=log
    )


def open_isolated(
    folder: ModelFolder, device: str, python: str, *, limit_s: float = RUN_LIMIT_S
) -> IsolatedSession:
    """Open a model folder in a child process; `limit_s` is the longest time of one answer.

    Raises:
        ArtifactError: If the runtime crashes, or the payload cannot be read.
        SegDeployError: What the backend itself raises.
    """
    child = _start(python, None)
    try:
        path = str(folder.path.resolve())
        child.ask({"do": "open", "path": path, "device": device}, limit_s=limit_s)
    except ChildFailedError as error:
        child.stop()
        raise _failed(folder, error) from error
    except BaseException:
        child.stop()
        raise
    return IsolatedSession(child, folder, limit_s)
