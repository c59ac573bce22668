"""Who works in a run folder, and whether as a new run or as one that goes on.

torchrun and SLURM start a group again with the command line that it had, so a restarted group goes
on by itself where there is something to go on with. torchrun counts restarts per machine, only
where the rank died; hence the ranks ask each other, after they have met.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import MANIFEST
from segdeploy.core.lock import run_lock
from segdeploy.frameworks.distributed import Group
from segdeploy.frameworks.launch_env import Launch
from segdeploy.train.config import TrainConfig, check_same_recipe
from segdeploy.train.folder import check_start

_ORPHANS_S = 30.0
"""What goes on may follow a kill, whose loader processes hold the lock until they notice: they look
every 5 seconds."""


def check_launch(config: TrainConfig, launch: Launch) -> None:
    """Check that the recipe fits the processes that others have started.

    Raises:
        ConfigError: If it asks for processes of its own, or its batch cannot be shared.
    """
    if config.nproc not in {1, launch.world}:
        raise ConfigError(
            f"{launch.source} has started {launch.world} processes, and nproc = {config.nproc} "
            "asks for others.",
            hint="Use one of the two; --nproc 1 overrides a recipe.",
        )
    if config.batch_size % (launch.world * config.accumulate):
        raise ConfigError(
            f"batch_size {config.batch_size} is over all processes and not divisible by "
            f"{launch.world} of them, each with {config.accumulate} parts.",
            hint=f"Use a multiple of {launch.world * config.accumulate}.",
        )


def goes_on(run: Path, restarts: int) -> bool:
    """Return True if the run was started again and has a state to go on from."""
    return restarts > 0 and (run / "last" / MANIFEST).is_file()


@contextmanager
def claimed(config: TrainConfig, *, resume: bool, restarts: int = 0) -> Iterator[None]:
    """Hold the run folder for the block, after refusing what would destroy or change a run.

    Raises:
        ConfigError: If the folder holds another run, or none to resume.
        RunLockedError: If another process works in it.
    """
    run = Path(config.out)
    check_start(run, resume=resume)
    if resume:
        check_same_recipe(config)
    with run_lock(run, wait_s=_ORPHANS_S if resume or restarts else 0.0):
        yield


def claim_together(
    config: TrainConfig, group: Group, launch: Launch, held: ExitStack, *, resume: bool
) -> bool:
    """Let the main rank claim the folder into `held`; return whether the run goes on.

    Raises:
        SegDeployError: In all ranks, if it cannot.
    """
    restarts = int(group.any(launch.restarts > 0))
    resume = resume or group.any(group.is_main and goes_on(Path(config.out), restarts))
    with group.together():
        if group.is_main:
            held.enter_context(claimed(config, resume=resume, restarts=restarts))
    return resume
