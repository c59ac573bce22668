"""All commands, in the order of a model's way: importing this module registers them.

It loads no framework; a command imports its stage when it runs.
"""

from __future__ import annotations

from segdeploy.cli import (  # isort: skip  the order is the order of --help
    demo,
    data,
    train,
    import_weights,
    export,
    lint,
    verify,
    evaluate,
    bench,
    gate,
    run,
    history,
    tune,
    predict,
    compare,
    report,
    show,
    list,  # noqa: A004  the command's own name
    zoo,
    doctor,
)

__all__ = [
    "bench", "compare", "data", "demo", "doctor", "evaluate", "export", "gate", "history",
    "import_weights", "lint", "list", "predict", "report", "run", "show", "train", "tune",
    "verify", "zoo",
]  # fmt: skip
