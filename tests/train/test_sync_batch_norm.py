"""Synchronised batch norm on real gloo processes: equal to one process with all the values."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from segdeploy.core.ending import end_at_once, end_process
from segdeploy.core.errors import ConfigError
from segdeploy.frameworks.sync_batch_norm import SyncBatchNorm, synchronize_batch_norm

SHARES = (3, 1)  # Images of each process.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.3, "eps": 1e-2},
    "cumulative": {"momentum": None},
    "bare": {"affine": False, "track_running_stats": False},
}


def _values(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, sum(SHARES), 5, 4, 6)  # Of two iterations.
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 7
    slopes = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(dtype), slopes.to(dtype)


def _norm(case: str, dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(5, **CASES[case]).to(dtype)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, 5))
            norm.bias.copy_(torch.linspace(3, 1, 5))
    return norm


def _run(module: nn.Module, values: Tensor, slopes: Tensor, form: torch.memory_format) -> Any:
    outputs, backs = [], []
    for x, slope in zip(values, slopes, strict=True):
        leaf = x.contiguous(memory_format=form).requires_grad_()
        output = module(leaf)
        output.backward(slope)
        outputs.append(output.detach())
        backs.append(leaf.grad)
    grads = {k: p.grad for k, p in module.named_parameters()}
    return torch.stack(outputs), torch.stack(backs), grads, module.state_dict()


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SHARES))
    begin = sum(SHARES[:rank])
    mine = slice(begin, begin + SHARES[rank])
    found: dict[Any, Any] = {}
    for case in CASES:
        for dtype in (torch.float32, torch.float64):
            for form in (torch.contiguous_format, torch.channels_last):
                module = nn.Sequential(_norm(case, dtype))
                synchronize_batch_norm(module, torch.device("cpu"))
                values, slopes = _values(dtype)
                found[case, str(dtype), str(form)] = _run(
                    module, values[:, mine], slopes[:, mine], form
                )
    frozen = nn.Sequential(_norm("plain", torch.float32))
    synchronize_batch_norm(frozen, torch.device("cpu"))
    values, _ = _values(torch.float32)
    found["frozen"] = frozen.eval()(values[0, mine]).detach()  # Ranks need not meet.
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_at_once()  # Threads of the group may outlive it.


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(folder)],
                         env=environment)
        for rank in range(len(SHARES))
    ]  # fmt: skip
    assert [process.wait(240) for process in started] == [0] * len(SHARES)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(len(SHARES))]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_normalise_as_one(
    ranks: list[dict[Any, Any]], case: str, dtype: torch.dtype, form: torch.memory_format
) -> None:
    """Forward, backward and running statistics of unequal shares are those of torch's own norm."""
    module = nn.Sequential(_norm(case, dtype))
    output, back, grads, state = _run(module, *_values(dtype), form)
    parts = [rank[case, str(dtype), str(form)] for rank in ranks]
    close = partial(
        torch.testing.assert_close, rtol=0.0, atol=1e-5 if dtype == torch.float32 else 1e-12
    )
    close(torch.cat([p[0] for p in parts], 1), output)
    close(torch.cat([p[1] for p in parts], 1), back)
    for name, grad in grads.items():
        torch.testing.assert_close(sum(p[2][name] for p in parts), grad, rtol=1e-5, atol=1e-5)
    for part in parts:
        assert list(part[3]) == list(state)
        for name, value in state.items():
            close(part[3][name], value)


def test_a_frozen_norm_uses_its_running_statistics(ranks: list[dict[Any, Any]]) -> None:
    values, _ = _values(torch.float32)
    expected = _norm("plain", torch.float32).eval()(values[0])
    found = torch.cat([rank["frozen"] for rank in ranks])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_only_the_kind_of_the_norms_changes() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm1d(4))
    before = module.state_dict()
    after = synchronize_batch_norm(module, torch.device("cpu"))
    assert [type(m) for m in after.children()] == [nn.Conv2d, SyncBatchNorm, SyncBatchNorm]
    assert all(after.state_dict()[k].data_ptr() == v.data_ptr() for k, v in before.items())


def test_norms_that_do_more_are_refused() -> None:
    class NormAndRelu(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match="NormAndRelu cannot be synchronised"):
        synchronize_batch_norm(nn.Sequential(NormAndRelu(3)), torch.device("cpu"))


if __name__ == "__main__":
    _rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    end_process(0)
