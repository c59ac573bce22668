"""The command line: one command = one file that parses, calls one function and renders."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `segdeploy` command."""
    from segdeploy.cli import commands  # noqa: F401  registers every command
    from segdeploy.cli.app import run_app

    sys.exit(run_app())
