"""Who this process is among those that were started together, read from the environment alone.

torchrun, OpenMPI and SLURM say the same few facts in their own variables. The one that stands
nearest to the process is asked first: torchrun's workers keep the variables of the `srun` that
started torchrun, and OpenMPI's keep those of a daemon that SLURM started. No torch is needed here,
so that commands which run without it know whether they are a rank.

Sources: torch.distributed.elastic "Environment Variables"; `mpirun` of Open MPI 4; `srun` and
`sbatch` of SLURM, "Output environment variables".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segdeploy.core.errors import ConfigError

Source = Literal["alone", "torchrun", "openmpi", "slurm"]


@dataclass(frozen=True)
class Launch:
    """Rank r of `world` processes that meet at `address`:`port`; `local_rank` counts on a machine.

    `restarts` is how often the same command line was started again, by torchrun or by SLURM.
    """

    source: Source = "alone"
    rank: int = 0
    local_rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    restarts: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    @property
    def is_shared(self) -> bool:
        """True in a process that was started beside others."""
        return self.world > 1


Environment = Mapping[str, str]


def read_launch(env: Environment) -> Launch:
    """Return what the environment says; a process that nobody launched is alone.

    Raises:
        ConfigError: If variables are missing, or contradict each other; names them.
    """
    if "RANK" in env:
        launch = _read_torchrun(env)
    elif "OMPI_COMM_WORLD_RANK" in env:
        launch = _read_openmpi(env)
    elif _is_slurm_task(env):
        launch = _read_slurm(env)
    elif "WORLD_SIZE" in env:
        raise ConfigError(
            "WORLD_SIZE is set, but RANK is not.",
            hint="Start the processes with torchrun or srun, or unset WORLD_SIZE.",
        )
    else:
        return Launch(restarts=_count_restarts(env))
    _check_rank(launch)
    return launch


def is_main_process(env: Environment) -> bool:
    """Return True in the process that may show its progress; a launcher's mistake hides nothing."""
    try:
        return read_launch(env).is_main
    except ConfigError:
        return True


def _read_torchrun(env: Environment) -> Launch:
    """Read torchrun's variables; others set them as well, most often without LOCAL_RANK."""
    world = _number(env, "WORLD_SIZE")
    return Launch(
        "torchrun",
        rank=_number(env, "RANK"),
        local_rank=_number(env, "LOCAL_RANK", 0),
        world=world,
        address=_text(env, "MASTER_ADDR") if world > 1 else "127.0.0.1",
        port=_number(env, "MASTER_PORT") if world > 1 else 0,
        restarts=_count_restarts(env),
    )


_PORT = 29_500  # torchrun's own default.


def _read_openmpi(env: Environment) -> Launch:
    world = _number(env, "OMPI_COMM_WORLD_SIZE")
    is_one_machine = _number(env, "OMPI_COMM_WORLD_LOCAL_SIZE") == world
    return Launch(
        "openmpi",
        rank=_number(env, "OMPI_COMM_WORLD_RANK"),
        local_rank=_number(env, "OMPI_COMM_WORLD_LOCAL_RANK"),
        world=world,
        address=_text(
            {"MASTER_ADDR": "127.0.0.1", **env} if is_one_machine else env, "MASTER_ADDR"
        ),
        port=_number(env, "MASTER_PORT", _PORT),
        restarts=_count_restarts(env),
    )


_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""SLURM numbers steps that no user started from the top: batch script, interactive shell, ..."""


def _is_slurm_task(env: Environment) -> bool:
    """Return True in a task of `srun`.

    A batch script and the shell of `salloc` have SLURM_PROCID and the job's SLURM_NTASKS as well,
    but are one process that nobody comes to meet.
    """
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _read_slurm(env: Environment) -> Launch:
    """Read the variables of the step: those of the job count tasks that may never be started."""
    world = _number(env, "SLURM_STEP_NUM_TASKS")
    if _number(env, "WORLD_SIZE", world) != world:
        raise ConfigError(
            f"WORLD_SIZE is {env['WORLD_SIZE']}, but srun started {world} tasks "
            "(SLURM_STEP_NUM_TASKS).",
            hint="Unset WORLD_SIZE: it is read from SLURM.",
        )
    job, step = _number(env, "SLURM_JOB_ID"), _number(env, "SLURM_STEP_ID")
    return Launch(
        "slurm",
        rank=_number(env, "SLURM_PROCID"),
        local_rank=_number(env, "SLURM_LOCALID"),
        world=world,
        address=env.get("MASTER_ADDR") or first_host(_text(env, "SLURM_STEP_NODELIST")),
        # Below the ports that the system gives away, and another for each step on a machine.
        port=_number(env, "MASTER_PORT", 10_000 + (job + 1009 * step) % 20_000),
        restarts=_count_restarts(env),
    )


def first_host(nodes: str) -> str:
    """Return the first name of SLURM's list of hosts: `node[07-09,12],login1` -> `node07`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    name = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group()) if first else ""
    if not name or re.search(r"[\[\]]", name):
        raise ConfigError(
            f"SLURM_STEP_NODELIST names no host: '{nodes}'.", hint="Set MASTER_ADDR to rank 0's."
        )
    return name


def _count_restarts(env: Environment) -> int:
    """Count restarts of a group of torchrun and of a requeued SLURM job."""
    return _number(env, "TORCHELASTIC_RESTART_COUNT", 0) + _number(env, "SLURM_RESTART_COUNT", 0)


def _check_rank(launch: Launch) -> None:
    if launch.rank >= launch.world or launch.local_rank >= launch.world:
        raise ConfigError(
            f"The rank {launch.rank} (local rank {launch.local_rank}) is not below the number of "
            f"processes, {launch.world}, as {launch.source} variables say.",
            hint="Ranks count from 0: set RANK, LOCAL_RANK and WORLD_SIZE, or let torchrun do it.",
        )


def _text(env: Environment, name: str) -> str:
    if not env.get(name):
        raise ConfigError(
            f"This process was started as one of several, but {name} is not set.",
            hint=f"Set {name}, or start the processes with torchrun, srun or --nproc.",
        )
    return env[name]


def _number(env: Environment, name: str, default: int | None = None) -> int:
    if default is not None and not env.get(name):
        return default
    text = _text(env, name)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ConfigError(
            f"{name} is '{text}', which is no number from 0 on.",
            hint=f"Unset {name}, or start the processes with torchrun, srun or --nproc.",
        )
    return int(text)
