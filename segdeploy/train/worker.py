"""One rank of `--nproc N`: `python -m segdeploy.train.worker SETTINGS_JSON`."""

from __future__ import annotations

import os
import sys
import threading

import msgspec

from segdeploy.core.ending import end_process
from segdeploy.core.errors import SegDeployError
from segdeploy.train.config import TrainConfig
from segdeploy.train.launch import EXIT_INTERRUPTED, STOP_SIGNAL


def main() -> int:
    """Train as one rank; return the exit code."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
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


def _stop_with_parent() -> None:
    """Wait until the parent has closed our stdin: it is gone, and with it the lock of the run."""
    os.read(0, 1)
    os.kill(os.getpid(), STOP_SIGNAL)


if __name__ == "__main__":
    end_process(main())
