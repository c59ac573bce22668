"""What the outcome of a stage depends on, as a digest: equal key, same work.

Every key holds the installed versions: an upgraded runtime is another one, and may answer another
way. A data set is its files' names, sizes and times, since reading them is the work that is to be
saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import segdeploy
from segdeploy.backends import BACKENDS
from segdeploy.backends.isolation import versions_elsewhere
from segdeploy.core.errors import ConfigError, SegDeployError
from segdeploy.core.files import digest_of, sha256_file
from segdeploy.core.folder import installed_versions
from segdeploy.data import open_dataset
from segdeploy.measure import describe_environment
from segdeploy.measure.fingerprint import fingerprint


def stage_key(stage: str, *parts: Any) -> str:
    """Return the key of a stage that depends on these parts, and on what is installed."""
    return digest_of([stage, segdeploy.__version__, runtime_versions(), parts])


@cache
def machine_key() -> str:
    """Return the digest of what makes times of this machine comparable."""
    return digest_of(fingerprint(describe_environment()))


def runtime_versions() -> dict[str, str]:
    """Return the versions of all packages that can change a result, as far as installed.

    Those of a second environment have its name in front: `litert/torch`.
    """
    found = installed_versions()
    for name in BACKENDS:
        with suppress(ConfigError):  # A broken plug-in is told where its target is asked for.
            backend = BACKENDS.get(name)
            found |= installed_versions(backend.packages)
            found |= versions_elsewhere(backend)
    return found


def data_key(spec: str | None, split: str) -> str:
    """Return what changes when a file of a data set's split does."""
    if spec is None:
        return ""
    try:
        dataset = open_dataset(spec, split)
    except SegDeployError as error:  # The stage itself says so.
        return digest_of([spec, split, error.message])
    root = spec.partition(":")[2]
    files = set(_files(dataset)) or (set(Path(root).rglob("*")) if root else set())
    told = [_describe(file) for file in sorted(files)]
    return digest_of([spec, split, dataset.classes, told])


def _files(value: Any) -> Iterator[Path]:
    """Yield the paths that a data set holds, in whatever form its layout has."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        yield from _files(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _files(each)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _files(getattr(value, each.name))


def _describe(file: Path) -> list[Any]:
    try:
        found = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), found.st_size, found.st_mtime_ns]


def file_key(file: Path) -> str:
    """Return the sha256 of a result file; empty where it cannot be read."""
    try:
        return sha256_file(file)
    except OSError:
        return ""


def results_key(folder: Path) -> dict[str, str]:
    """Return what a report reads of a run folder: the JSON files of each model folder."""
    found = sorted(folder.glob("*/*.json"))
    return {file.relative_to(folder).as_posix(): file_key(file) for file in found}
