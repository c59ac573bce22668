"""One rank of `--nproc N`: `python -m segdeploy.train.worker SETTINGS_JSON`."""

from __future__ import annotations

import os
import sys

import msgspec

from segdeploy.core.errors import SegDeployError
from segdeploy.train.config import TrainConfig
from segdeploy.train.launch import EXIT_INTERRUPTED


def main() -> int:
    """Train as one rank; return the exit code."""
    settings = msgspec.json.decode(sys.argv[1])
    config = msgspec.convert(settings["config"], TrainConfig)
    from segdeploy.train.run import run_training

    try:
        run_training(config, resume=settings["resume"], is_worker=True)
    except SegDeployError as error:
        sys.stderr.write(f"rank {os.environ['RANK']}: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
