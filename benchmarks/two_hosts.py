"""Train, evaluate, lose a host and go on, over two machines that share a disk.

    .venv/bin/python benchmarks/two_hosts.py        (root: it makes network namespaces)

The machines are two network namespaces of this one, joined by a cable (veth) and by nothing else;
both believe that their name means 127.0.0.1. Each starts torchrun with two processes, which meet
by c10d. The same recipe runs with four processes on one machine, and with one.

Writes benchmarks/results/two_hosts.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.files import write_json
from segdeploy.core.folder import load_checkpoint

HERE = Path(__file__).parent
RECIPE = """
model = "lraspp_mobilenet_v3_small"
data = "synthetic:64x64:16"
epochs = 3
batch_size = 4
optimizer = "sgd"
lr = 0.05
warmup_steps = 2
freeze_batch_norm = true
dropout = false
workers = 0
device = "cpu"
"""
PORT = 29_400
Outcome = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Host:
    """A network namespace; `number` is 0 for the machine where the processes meet."""

    name: str
    number: int

    @property
    def address(self) -> str:
        """Its address in the network of the two."""
        return f"10.77.0.{self.number + 1}"

    def start(self, arguments: Sequence[str], port: int = PORT) -> subprocess.Popen[str]:
        """Start `torchrun ... -m segdeploy ARGUMENTS` with two processes here."""
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2",
            "--rdzv-id", "two_hosts", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"10.77.0.1:{port}",
            "--rdzv-conf", f"is_host={int(self.number == 0)}", "--local-addr", self.address,
        ]  # fmt: skip
        command = ["ip", "netns", "exec", self.name, *torchrun, "-m", "segdeploy", *arguments]
        return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def lose_power(self) -> None:
        """Kill whatever runs here."""
        for pid in _ip("netns", "pids", self.name).split():
            os.kill(int(pid), signal.SIGKILL)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, text=True, capture_output=True)  # noqa: S607
    return done.stdout


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Make two hosts with one cable between them; they are gone after the block.

    Raises:
        subprocess.CalledProcessError: If this process may not make network namespaces.
        FileNotFoundError: If there is no `ip` (package iproute2).
    """
    hosts = [Host(f"segdeploy{os.getpid()}h{number}", number) for number in range(2)]
    made = []
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            made.append(host)
        first, second = (host.name for host in hosts)
        _ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", second)
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                _ip("-n", host.name, "link", "set", link, "up")
        yield hosts
    finally:
        for host in made:
            host.lose_power()
            _ip("netns", "delete", host.name)


def run_hosts(hosts: Sequence[Host], arguments: Sequence[str], port: int = PORT) -> list[Outcome]:
    """Run a command on all hosts together."""
    return _finish([host.start(arguments, port) for host in hosts])


def _finish(processes: Sequence[subprocess.Popen[str]]) -> list[Outcome]:
    outcomes = []
    for process in processes:
        out, err = process.communicate(timeout=900)
        outcomes.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return outcomes


def lose_a_host(hosts: Sequence[Host], run: Path, arguments: Sequence[str]) -> Outcome:
    """Start a training, take the second host away after an epoch; return how the first ended."""
    first, second = (host.start(arguments) for host in hosts)
    while not losses(run) and first.poll() is None:
        time.sleep(0.02)
    hosts[1].lose_power()
    return _finish([first, second])[0]


def run_here(arguments: Sequence[str]) -> Outcome:
    command = [sys.executable, "-m", "segdeploy", *arguments]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def losses(run: Path) -> list[float]:
    log = run / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def digest(run: Path) -> str:
    return load_checkpoint(run / "checkpoint").manifest.digest


def error_lines(text: str) -> list[str]:
    """What segdeploy said for people, without torchrun's own report."""
    return sorted({line for line in text.splitlines() if line.startswith("error:")})


def check(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if outcome.returncode:
            raise SystemExit(f"exit code {outcome.returncode}:\n{outcome.stderr}")


def measure(root: Path, hosts: Sequence[Host]) -> dict[str, Any]:
    recipe = root / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")

    def train(name: str, *flags: str) -> list[str]:
        return ["train", str(recipe), "--out", str(root / name), *flags]

    runs = {name: root / name for name in ("two_by_two", "four", "one", "lost")}
    evaluation = ["evaluate", str(runs["one"] / "checkpoint"), "--data", "synthetic:64x64:28",
                  "--no-save", "--json"]  # fmt: skip
    with ThreadPoolExecutor() as pool:  # Nothing here is timed.
        here = [
            pool.submit(run_here, train(*each)) for each in (("four", "--nproc", "4"), ("one",))
        ]
        check(run_hosts(hosts, train("two_by_two")))
        check([each.result() for each in here])
        evaluated = pool.submit(run_here, evaluation)
        lost = lose_a_host(hosts, runs["lost"], train("lost"))
        done_before = len(losses(runs["lost"]))
        shared = pool.submit(run_hosts, hosts, evaluation, PORT + 1)
        check(run_hosts(hosts, train("lost", "--resume")))
        check([*shared.result(), evaluated.result()])
    document = json.loads(evaluated.result().stdout)
    pairs = zip(losses(runs["two_by_two"]), losses(runs["one"]), strict=True)
    return {
        "losses": {name: losses(run) for name, run in runs.items()},
        "largest_relative_difference_to_one_process": max(abs(a - b) / b for a, b in pairs),
        "digests": {name: digest(run) for name, run in runs.items()},
        "evaluation_equals_one_process": json.loads(shared.result()[0].stdout) == document,
        "lost_host": {
            "epochs_done": done_before,
            "exit_code": lost.returncode,
            "errors": error_lines(lost.stderr),
        },
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, two_hosts() as pair:
        found = measure(Path(folder), pair)
    write_json(HERE / "results" / "two_hosts.json", found)
    print(json.dumps(found, indent=2))
