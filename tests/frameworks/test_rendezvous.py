"""What would hang at the start of a group has a name, and a restart is not fooled by the dead."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks import distributed, rendezvous
from segdeploy.frameworks.launch_env import Launch
from segdeploy.frameworks.rendezvous import Place, check_places, find_interface, meet

CPU = torch.device("cpu")
LOCAL = Place("node01", "127.0.0.1")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_ranks_that_do_not_come_are_named() -> None:
    launch = Launch("slurm", 0, 0, 3, "127.0.0.1", _free_port())
    with pytest.raises(ConfigError, match="rank 1, 2 did not come") as caught:
        meet(launch, CPU, 0.3)
    assert "slurm" in caught.value.hint


def test_a_rank_0_that_nobody_reaches_is_named() -> None:
    port = _free_port()
    with pytest.raises(ConfigError, match=f"cannot reach rank 0 at 127.0.0.1:{port}"):
        meet(Launch("torchrun", 1, 1, 2, "127.0.0.1", port), CPU, 0.3)


def test_a_port_in_use_is_named() -> None:
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: another process"):
            meet(Launch("slurm", 0, 0, 2, "127.0.0.1", port), CPU, 0.3)


def test_a_roll_of_an_earlier_group_is_not_believed() -> None:
    """torchrun keeps its store over a restart; here rank 0 is the last to come again."""
    store = TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)

    def call(rank: int) -> tuple[str, list[Place]]:
        time.sleep((3 - rank) * 0.1)
        launch = Launch("torchrun", rank, rank, 3, "127.0.0.1", 1)
        place = Place(f"host{rank}", "127.0.0.1")
        return rendezvous._call_roll(store, launch, place, 60.0)

    with ThreadPoolExecutor(3) as pool:
        groups = [list(pool.map(call, range(3))) for _ in range(2)]
    tokens = [{token for token, _ in group} for group in groups]
    assert [len(each) for each in tokens] == [1, 1]
    assert tokens[0] != tokens[1]
    for _, places in groups[0] + groups[1]:
        assert [place.host for place in places] == ["host0", "host1", "host2"]


def test_two_ranks_on_one_gpu_are_refused() -> None:
    places = [Place("a", "10.0.0.1", "x"), Place("a", "10.0.0.1", "y"), Place("a", "10.0.0.1", "x")]
    check_places(places[:2])
    with pytest.raises(ConfigError, match="Ranks 0 and 2 would both work on GPU x of a"):
        check_places(places)


def test_an_address_that_others_cannot_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    places = [Place("a", "127.0.1.1"), Place("b", "10.0.0.2")]
    check_places([LOCAL, LOCAL])
    with pytest.raises(ConfigError, match=r"Rank 0 on a .* 127\.0\.1\.1") as caught:
        check_places(places)
    assert "GLOO_SOCKET_IFNAME" in caught.value.hint
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    check_places(places)


def test_the_interface_of_an_address() -> None:
    assert find_interface(LOCAL) == find_interface(Place("a", "::1")) == "lo"
    assert find_interface(Place("a", "192.0.2.1")) is None


def test_a_rank_gets_a_gpu_of_its_own() -> None:
    assert [distributed._pick_gpu(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert distributed._pick_gpu(3, 1) == 0  # SLURM shows each task its own as number 0.
    with pytest.raises(ConfigError, match="number 3 on its machine, which has 2 GPUs"):
        distributed._pick_gpu(2, 2)
