"""The folders that `--output auto` builds forms in, and those that a killed process left behind.

Forms are artifacts of the run like any other, so that they find their parent; only their names are
nobody else's. A hidden folder `.NAME.TOKEN.auto` says so: it is there before the first form and is
locked as long as its process lives. One that nobody locks was left by a killed process, and the
forms of its token go with it. A folder that merely looks like a form has no such mark, and stays.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdeploy.core.contract import OutputKind
from segdeploy.core.errors import SegDeployError
from segdeploy.core.lock import run_lock

FORMS = (OutputKind.LOGITS, OutputKind.LABELS, OutputKind.LOW_LOGITS)
_MARK = re.compile(r"\.(.+)\.([0-9a-f]{8})\.auto", re.DOTALL)


@contextmanager
def own_names(folder: Path) -> Iterator[dict[OutputKind, str]]:
    """Yield a name for each form of an artifact; what stands there is removed at the end."""
    run, token = folder.parent, uuid.uuid4().hex[:8]
    is_new = not run.exists()
    try:
        with run_lock(run / f".{folder.name}.{token}.auto") as mark:
            try:
                yield _names(folder.name, token)
            finally:
                _remove(mark, folder.name, token)
    finally:
        if is_new:
            with suppress(OSError):
                run.rmdir()  # Only if it is empty: what failed leaves nothing behind.


def remove_left_forms(run: Path) -> None:
    """Remove the forms of processes that are no more."""
    for mark in run.glob(".*.auto"):
        match = _MARK.fullmatch(mark.name)
        if match is not None and mark.is_dir() and not mark.is_symlink():
            with suppress(SegDeployError), run_lock(mark):  # A lock that is held: it lives.
                _remove(mark, match[1], match[2])


def _names(artifact: str, token: str) -> dict[OutputKind, str]:
    return {form: f"{artifact}-{form}-{token}" for form in FORMS}


def _remove(mark: Path, artifact: str, token: str) -> None:
    for name in _names(artifact, token).values():
        shutil.rmtree(mark.with_name(name), ignore_errors=True)
    with suppress(OSError):
        mark.rmdir()
