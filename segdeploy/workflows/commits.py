"""What git and the CI say of the commit that is checked out; None where neither knows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_COMMIT_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
_BRANCH_VARIABLES = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
_SHOWN_COMMITS = 20
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def current_commit(repository: Path | None = None) -> str | None:
    """Return the commit that is checked out; without git, what the CI says of it."""
    return _git(repository, "rev-parse", "HEAD") or _variable(_COMMIT_VARIABLES)


def current_branch(repository: Path | None = None) -> str | None:
    """Return the branch that the CI names (its checkouts are detached), else git's."""
    named = _variable(_BRANCH_VARIABLES) or _git(repository, "rev-parse", "--abbrev-ref", "HEAD")
    return None if named == "HEAD" else named


def commits_between(
    since: str | None, until: str | None, repository: Path | None = None
) -> list[str] | None:
    """Return `sha subject` of the commits after one up to another, newest first; None: unknown.

    They come from a file that anybody may have written: what is no commit's name is not given to
    git, which would take `--output=FILE` as an order.
    """
    if not all(name is not None and _COMMIT.fullmatch(name) for name in (since, until)):
        return None
    wanted = ("log", f"--max-count={_SHOWN_COMMITS}", "--format=%h %s", "--end-of-options")
    answer = _git(repository, *wanted, f"{since}..{until}", "--")
    return None if answer is None else answer.splitlines()


def _variable(names: Sequence[str]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _git(repository: Path | None, *arguments: str) -> str | None:
    """Return what git says, or None where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=repository, capture_output=True, text=True, timeout=20,  # noqa: S607  the user's own git
            check=False, errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
