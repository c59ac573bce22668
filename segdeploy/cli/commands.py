"""All commands: importing this module registers them, and loads no framework."""

from __future__ import annotations

from segdeploy.cli import (
    list,  # noqa: A004  the command's own name
    train,
)

__all__ = ["list", "train"]
