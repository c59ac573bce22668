"""All commands, in the order of a model's way: importing this module registers them.

It loads no framework; a command imports its stage when it runs.
"""

from __future__ import annotations

from segdeploy.cli import (  # isort: skip  the order is the order of --help
    demo,
    train,
    export,
    verify,
    evaluate,
    bench,
    predict,
    report,
    list,  # noqa: A004  the command's own name
    doctor,
)

__all__ = [
    "bench", "demo", "doctor", "evaluate", "export", "list", "predict", "report", "train", "verify",
]  # fmt: skip
