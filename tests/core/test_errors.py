"""The error tree is a contract: exit codes, hints, and the way through worker processes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from segdeploy.core import errors
from segdeploy.core.errors import BuildError, SegDeployError

EXIT_CODES = {
    "ConfigError": 2,
    "UnknownNameError": 2,
    "DataError": 2,
    "CheckpointError": 2,
    "ArtifactError": 2,
    "ManifestError": 2,
    "DigestMismatchError": 2,
    "ExportError": 2,
    "UnsupportedTargetError": 2,
    "BuildError": 2,
    "DownloadError": 2,
    "RunLockedError": 2,
    "TrainError": 2,
    "BackendUnavailableError": 4,
    "ParityError": 1,
    "GateError": 1,
    "InconclusiveError": 3,
}
PARENTS = {
    "UnknownNameError": "ConfigError",
    "ManifestError": "ArtifactError",
    "DigestMismatchError": "ArtifactError",
    "UnsupportedTargetError": "ExportError",
    "BuildError": "ExportError",
}


def _descendants(cls: type[SegDeployError]) -> Iterator[type[SegDeployError]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def test_every_error_of_the_tree_has_its_documented_exit_code() -> None:
    ours = [c for c in _descendants(SegDeployError) if c.__module__ == errors.__name__]
    assert {c.__name__: c.exit_code for c in ours} == EXIT_CODES


@pytest.mark.parametrize(("child", "parent"), PARENTS.items())
def test_children_are_caught_as_their_parent(child: str, parent: str) -> None:
    assert issubclass(getattr(errors, child), getattr(errors, parent))


@pytest.mark.parametrize("name", EXIT_CODES)
def test_pickling_keeps_type_message_hint_and_notes(name: str) -> None:
    error = getattr(errors, name)("asked A, found B", hint="do C")
    error.add_note("rank 1")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.message, copy.hint, str(copy)) == (error.message, error.hint, str(error))
    assert copy.args == error.args
    assert copy.__notes__ == ["rank 1"]


def test_a_message_comes_before_its_hint_and_stands_alone_without_one() -> None:
    assert str(SegDeployError("found B", hint="do C")) == "found B\ndo C"
    assert str(SegDeployError("found B")) == "found B"


def test_a_build_error_shows_and_pickles_the_tail_of_its_log() -> None:
    error = BuildError("failed", hint="try X", log="line 9\nline 10")
    assert str(error) == "failed\ntry X\nline 9\nline 10"
    copy = pickle.loads(pickle.dumps(error))
    assert copy.log == error.log
    assert str(copy) == str(error)
