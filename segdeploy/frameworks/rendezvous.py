"""Meeting the other ranks: a roll call on torch's store, before a collective could hang.

Every rank says where it works and waits until rank 0 has heard all of them, so that what usually
shows as a hang has a name: ranks that never came, two ranks on one GPU, an address that leads
nowhere. The store of torchrun outlives a restart and then still holds what the dead ranks said;
hence a rank believes a roll only if it holds the token that the rank has just made up, and all
that follows stands under the roll's own prefix.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore  # torch.distributed has no types.

from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.launch_env import Launch

INTERFACE = "GLOO_SOCKET_IFNAME"
_POLL_S = 0.05
_PATIENCE_S = 5.0  # On top of the time that rank 0 waits for the others, once it has been heard.


@dataclass(frozen=True)
class Place:
    """Where a rank works: machine, its own `address` towards rank 0, its GPU ("" on the CPU)."""

    host: str
    address: str
    gpu: str = ""


def meet(launch: Launch, device: torch.device, timeout_s: float) -> tuple[PrefixStore, Place]:
    """Return a fresh store that all ranks share, and this rank's place, once all are here.

    Raises:
        ConfigError: If a rank did not come in time, or their places do not fit together.
    """
    deadline = time.monotonic() + timeout_s
    try:
        store = _open_store(launch, timeout_s)
        gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
        place = Place(socket.gethostname(), _own_address(launch, deadline), gpu)
        call, places = _call_roll(store, launch, place, timeout_s)
    except dist.DistError as error:
        raise ConfigError(
            f"Rank {launch.rank} of {launch.world} lost the connection to {_where(launch)} before "
            f"the work began: {str(error).splitlines()[0]}",
            hint="Another rank ended at once: see its message.",
        ) from error
    check_places(places)
    return PrefixStore(call, store), place


def _where(launch: Launch) -> str:
    return f"rank 0 at {launch.address}:{launch.port}"


def _open_store(launch: Launch, timeout_s: float) -> TCPStore:
    """Open the store that rank 0 serves, or that torchrun serves for it."""
    serves = launch.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:
        _own_address(launch, time.monotonic() + timeout_s)  # torch prints pages while it waits.
    try:
        return TCPStore(
            launch.address,
            launch.port,
            launch.world,
            is_master=serves,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"Rank 0 cannot listen on port {launch.port}: another process does.",
            hint="Set another MASTER_PORT for all ranks.",
        ) from error


def _own_address(launch: Launch, deadline: float) -> str:
    """Return this machine's address on the way to rank 0, waiting until somebody listens there."""
    while True:
        try:
            with socket.create_connection((launch.address, launch.port), timeout=5.0) as way:
                return str(way.getsockname()[0])
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(4 * _POLL_S)
                continue
            raise ConfigError(
                f"Rank {launch.rank} of {launch.world} cannot reach {_where(launch)}: {error}.",
                hint="Is rank 0 running? Is MASTER_ADDR its machine as seen from this one, and "
                "the port open?",
            ) from error


def _call_roll(
    store: TCPStore, launch: Launch, place: Place, timeout_s: float
) -> tuple[str, list[Place]]:
    """Return the roll's token, and the places of all ranks in order."""
    token, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"hello/{launch.rank}", _encode([token, place]))
    call = _lead(store, launch, token, deadline) if launch.is_main else ""
    while not call:
        roll = _decode(store.get("roll")) if store.check(["roll"]) else {}
        if roll.get("tokens", {}).get(str(launch.rank)) == token:
            call = roll["call"]
            store.set(f"{call}/{launch.rank}", "here")
            deadline = time.monotonic() + timeout_s + _PATIENCE_S
        else:
            _wait_for_main(launch, deadline)
    while not store.check([f"{call}/end"]):
        _wait_for_main(launch, deadline)
    end = _decode(store.get(f"{call}/end"))
    if end["absent"]:
        raise _absent(launch, end["absent"])
    return call, [Place(**each) for each in end["places"]]


def _lead(store: TCPStore, launch: Launch, call: str, deadline: float) -> str:
    """Read the roll until all ranks have answered it or time is up; tell everyone how it ended."""
    told: dict[str, str] = {}
    others = list(range(1, launch.world))
    while True:
        absent = [rank for rank in others if not store.check([f"{call}/{rank}"])]
        hellos = {
            str(rank): _decode(store.get(f"hello/{rank}"))
            for rank in range(launch.world)
            if store.check([f"hello/{rank}"])
        }
        if not absent or time.monotonic() > deadline:
            places = [hello[1] for hello in hellos.values()]
            store.set(f"{call}/end", _encode({"absent": absent, "places": places}))
            return call
        tokens = {rank: hello[0] for rank, hello in hellos.items()}
        if tokens != told:
            told = tokens
            store.set("roll", _encode({"call": call, "tokens": tokens}))
        time.sleep(_POLL_S)


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _decode(text: bytes) -> Any:
    return msgspec.json.decode(text)


def _wait_for_main(launch: Launch, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise _absent(launch, [0])
    time.sleep(_POLL_S)


def _absent(launch: Launch, ranks: list[int]) -> ConfigError:
    names = ", ".join(map(str, ranks))
    return ConfigError(
        f"{launch.world} processes were to meet at {launch.address}:{launch.port}, but rank "
        f"{names} did not come.",
        hint=f"See the messages of rank {names}. The number of processes is what {launch.source} "
        "says in this process's environment.",
    )


def check_places(places: list[Place]) -> None:
    """Check that ranks can work together; the same answer in each of them.

    Raises:
        ConfigError: If two ranks share a GPU, which nccl answers by a hang, or if some know their
            machine by an address that the others cannot reach.
    """
    for rank, place in enumerate(places):
        first = next(r for r, other in enumerate(places) if other.gpu == place.gpu)
        if place.gpu and first != rank:
            raise ConfigError(
                f"Ranks {first} and {rank} would both work on GPU {place.gpu} of {place.host}.",
                hint="Start one process per GPU, and do not narrow CUDA_VISIBLE_DEVICES to one.",
            )
    lonely = [rank for rank, place in enumerate(places) if _is_loopback(place)]
    is_chosen = bool(os.environ.get(INTERFACE)) or places[0].gpu
    if lonely and len(lonely) < len(places) and not is_chosen:
        place = places[lonely[0]]
        raise ConfigError(
            f"Rank {lonely[0]} on {place.host} knows its machine as {place.address}, which ranks "
            "on other machines cannot reach.",
            hint=f"Set {INTERFACE} to the network interface (such as eth0) on every machine, or "
            "MASTER_ADDR to rank 0's address in the network.",
        )


def _is_loopback(place: Place) -> bool:
    return ipaddress.ip_address(place.address.partition("%")[0]).is_loopback


_SIOCGIFADDR = 0x8915  # Linux, <linux/sockios.h>: the IPv4 address of an interface.


def find_interface(place: Place) -> str | None:
    """Return the name of the interface that has this place's address; None if it is not found."""
    wanted = "127.0.0.1" if _is_loopback(place) else place.address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(handle, _SIOCGIFADDR, request)
            except OSError:
                continue  # It has no IPv4 address.
            if socket.inet_ntoa(answer[20:24]) == wanted:
                return name
    return None
