"""Ranks from the variables that launchers really set; one row is what one process sees."""

from __future__ import annotations

import pytest

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.launch_env import Launch, first_host, read_launch


def _env(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split())


_ELASTIC = """GROUP_WORLD_SIZE={0} ROLE_NAME=default ROLE_WORLD_SIZE={1} WORLD_SIZE={1}
    TORCHELASTIC_RESTART_COUNT=0 TORCHELASTIC_MAX_RESTARTS=0 TORCHELASTIC_RUN_ID=4711
    TORCHELASTIC_USE_AGENT_STORE=True TORCH_NCCL_ASYNC_ERROR_HANDLING=1 OMP_NUM_THREADS=1 """
TORCHRUN = _env(
    _ELASTIC.format(1, 4) + "LOCAL_RANK=2 RANK=2 GROUP_RANK=0 ROLE_RANK=2 LOCAL_WORLD_SIZE=4 "
    "MASTER_ADDR=localhost MASTER_PORT=45373"
)
TORCHRUN_TWO_NODES = _env(
    _ELASTIC.format(2, 4) + "LOCAL_RANK=1 RANK=3 GROUP_RANK=1 ROLE_RANK=3 LOCAL_WORLD_SIZE=2 "
    "MASTER_ADDR=node01.cluster MASTER_PORT=29400"
)
# What sbatch gives its script; srun's tasks inherit it.
BATCH = _env("""
    SLURM_JOB_ID=73915 SLURM_JOBID=73915 SLURM_JOB_NAME=train SLURM_JOB_NODELIST=node[01-02]
    SLURM_NODELIST=node[01-02] SLURM_JOB_NUM_NODES=2 SLURM_NNODES=2 SLURM_NTASKS=8 SLURM_NPROCS=8
    SLURM_NTASKS_PER_NODE=4 SLURM_TASKS_PER_NODE=4(x2) SLURM_JOB_PARTITION=gpu SLURM_NODEID=0
    SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_GTIDS=0 SLURM_TASK_PID=5120 SLURM_SUBMIT_HOST=login1
    SLURMD_NODENAME=node01 SLURM_CPUS_ON_NODE=32 SLURM_JOB_CPUS_PER_NODE=32(x2)
""")
TASK = BATCH | _env("""
    SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_STEP_NODELIST=node[01-02] SLURM_STEP_NUM_NODES=2
    SLURM_STEP_NUM_TASKS=8 SLURM_STEP_TASKS_PER_NODE=4(x2) SLURM_PROCID=6 SLURM_LOCALID=2
    SLURM_NODEID=1 SLURM_GTIDS=4,5,6,7 SLURM_SRUN_COMM_HOST=10.0.0.1 SLURMD_NODENAME=node02
    SLURM_LAUNCH_NODE_IPADDR=10.0.0.1 SLURM_CPU_BIND=quiet,mask_cpu:0xFF SLURM_DISTRIBUTION=block
""")
UNEVEN = TASK | _env("""
    SLURM_JOB_NODELIST=node[01-03,07] SLURM_STEP_NODELIST=node[02-03,07] SLURM_STEP_NUM_NODES=3
    SLURM_STEP_NUM_TASKS=11 SLURM_STEP_TASKS_PER_NODE=4(x2),3 SLURM_NTASKS=15 SLURM_STEP_ID=2
    SLURM_PROCID=10 SLURM_LOCALID=2 SLURM_NODEID=2 SLURM_GTIDS=8,9,10
""")
ONE_TASK = TASK | _env("""
    SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1 SLURM_STEP_NODELIST=node01
    SLURM_STEP_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_GTIDS=0
""")
SALLOC = BATCH | _env("""
    SLURM_STEP_ID=4294967290 SLURM_STEPID=4294967290 SLURM_STEP_NUM_TASKS=1
    SLURM_STEP_NODELIST=node01 SLURM_STEP_TASKS_PER_NODE=1 SLURM_PTY_PORT=39245
""")
OPENMPI = _env("""
    OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3
    OMPI_COMM_WORLD_LOCAL_SIZE=4 OMPI_COMM_WORLD_NODE_RANK=3 OMPI_UNIVERSE_SIZE=4
""")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, Launch()),
        ({"PATH": "/bin", "LOCAL_RANK": "3"}, Launch()),
        (TORCHRUN, Launch("torchrun", 2, 2, 4, "localhost", 45373)),
        (TORCHRUN_TWO_NODES, Launch("torchrun", 3, 1, 4, "node01.cluster", 29400)),
        (
            TORCHRUN_TWO_NODES | {"TORCHELASTIC_RESTART_COUNT": "2"},
            Launch("torchrun", 3, 1, 4, "node01.cluster", 29400, restarts=2),
        ),
        # A torchrun on each node, started by srun: a step of two tasks, four ranks.
        (
            TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"} | TORCHRUN_TWO_NODES,
            Launch("torchrun", 3, 1, 4, "node01.cluster", 29400),
        ),
        # A cluster that counts machines only.
        (
            _env("RANK=1 WORLD_SIZE=2 MASTER_ADDR=job-0 MASTER_PORT=23456"),
            Launch("torchrun", 1, 0, 2, "job-0", 23456),
        ),
        (_env("RANK=0 WORLD_SIZE=1"), Launch("torchrun")),
        (TASK, Launch("slurm", 6, 2, 8, "node01", 10_000 + 73915 % 20_000)),
        (UNEVEN, Launch("slurm", 10, 2, 11, "node02", 10_000 + (73915 + 2 * 1009) % 20_000)),
        (
            TASK | _env("MASTER_ADDR=10.0.0.1 MASTER_PORT=12345 WORLD_SIZE=8"),
            Launch("slurm", 6, 2, 8, "10.0.0.1", 12345),
        ),
        # Requeued after a preemption: the same batch script runs again.
        (
            TASK | {"SLURM_RESTART_COUNT": "1", "MASTER_PORT": "12345"},
            Launch("slurm", 6, 2, 8, "node01", 12345, restarts=1),
        ),
        # One process, though the job has eight tasks: nobody will come to meet it.
        (BATCH, Launch()),
        (BATCH | {"SLURM_RESTART_COUNT": "1"}, Launch(restarts=1)),
        (BATCH | {"SLURM_STEP_ID": "batch"}, Launch()),
        (SALLOC, Launch()),
        (OPENMPI, Launch("openmpi", 3, 3, 4, "127.0.0.1", 29_500)),
        # mpirun in a SLURM job: its daemons are the step's two tasks.
        (
            TASK | OPENMPI | _env("SLURM_STEP_NUM_TASKS=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 "
                                  "OMPI_COMM_WORLD_LOCAL_RANK=1 MASTER_ADDR=node01"),
            Launch("openmpi", 3, 1, 4, "node01", 29_500),
        ),
    ],
)  # fmt: skip
def test_what_launchers_set_is_read(env: dict[str, str], expected: Launch) -> None:
    assert read_launch(env) == expected


def test_one_task_of_srun_shares_nothing() -> None:
    launch = read_launch(ONE_TASK)
    assert (launch.world, launch.is_shared, launch.is_main) == (1, False, True)


def test_steps_at_the_same_time_get_different_ports() -> None:
    ports = {read_launch(TASK | {"SLURM_STEP_ID": str(step)}).port for step in range(16)}
    assert len(ports) == 16
    assert all(1024 < port < 32_768 for port in ports)


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ("RANK=0", "WORLD_SIZE is not set"),
        ("WORLD_SIZE=2", "RANK is not"),
        ("RANK=1 WORLD_SIZE=2 MASTER_PORT=1", "MASTER_ADDR is not set"),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", "MASTER_PORT is not set"),
        ("RANK=2 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "rank 2 .* not below .* 2"),
        ("RANK=0 LOCAL_RANK=2 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "local rank 2"),
        ("RANK=one WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "RANK is 'one'"),
        ("RANK=-1 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=1", "RANK is '-1'"),
        ("RANK=0 WORLD_SIZE=0", "not below"),
        ("OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE is not set"),
        (
            (
                "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 "
                "OMPI_COMM_WORLD_LOCAL_SIZE=2"
            ),
            "MASTER_ADDR is not set",
        ),
    ],
)
def test_mistakes_name_the_variable(env: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        read_launch(_env(env))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but srun started 8"),
        ({"SLURM_STEP_NUM_TASKS": ""}, "SLURM_STEP_NUM_TASKS is not set"),
        ({"SLURM_STEP_NODELIST": "[1-2"}, "SLURM_STEP_NODELIST"),
    ],
)
def test_slurm_variables_that_do_not_fit_are_named(change: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read_launch(TASK | change)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node01", "node01"), ("a1,b[2-4]", "a1"), ("node[01-03,07]", "node01"),
        ("node[007,009-012],login", "node007"), ("rack[1-2]n[03-04]", "rack1n03"),
        ("c-583,c-752", "c-583"), ("n[2-3]-ib,n[5]", "n2-ib"), ("gpu-a.site.org", "gpu-a.site.org"),
    ],
)  # fmt: skip
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    """As `scontrol show hostnames` expands it."""
    assert first_host(nodes) == first
