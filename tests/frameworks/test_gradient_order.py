"""Gradients of several ranks do not depend on what DDP did before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from segdeploy.core.ending import end_at_once, end_process
from segdeploy.frameworks.distributed import Group, average_in_order

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)

class Net(nn.Module):  # Its gradients come in another order than its parameters.
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(300, 300) for _ in range(4))

    def forward(self, x):
        for number in (3, 0, 2, 1):
            x = torch.tanh(self.layers[number](x)) + x
        return x

def steps(net, first):
    model = nn.parallel.DistributedDataParallel(net)
    average_in_order(model, Group(rank, 4, torch.device("cpu")))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(first, 2):
        draw = torch.Generator().manual_seed(100 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(4, 300, generator=draw)).square().mean().backward()
        optimizer.step()
        yield {name: value.clone() for name, value in net.state_dict().items()}

whole = list(steps(Net(), 0))
net = Net()
net.load_state_dict(whole[0])
cut = list(steps(net, 1))
assert all(torch.equal(cut[0][name], value) for name, value in whole[1].items())
dist.destroy_process_group()
end_at_once()  # Threads of the group may outlive it.
end_process(0)
"""


@pytest.mark.slow
def test_four_processes_that_go_on_compute_what_they_would_have(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE)
        for rank in range(4)
    ]
    said = [rank.communicate(timeout=240)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * 4, said[0]
