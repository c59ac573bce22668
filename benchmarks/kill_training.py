"""Kills training with SIGKILL at random moments, also in the middle of writing a checkpoint.

    .venv/bin/python benchmarks/kill_training.py [--kills 50] [--seed 0] [--out kills.json]

A tiny training on the synthetic data set writes RUN/last after every iteration. It is killed,
resumed, killed again and so on; some runs are of one process, some of two (where the parent or a
random rank is killed). Half of the kills are aimed at a write: they wait for the temporary folder
beside RUN/last, then a random part of a millisecond or of a write. At the end weights, optimizer,
average and random states must be those of a run that nobody disturbed. A kill counts as resumed if
the next start goes on with --resume and gets further, or finds the run complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segdeploy.core.files import write_json
from segdeploy.core.folder import installed_versions, load_checkpoint
from segdeploy.train.state import STATE, load_state

STEPS_PER_EPOCH, BATCH = 20, 4
MOST_STEPS = 4  # Between two kills, beyond the one that shows that the run went on.
PATIENCE_S = 600.0


@dataclass
class Kill:
    """One kill: what was aimed at, whom it hit, and where the run stood before and after."""

    nproc: int
    aimed_at_write: bool
    victim: str
    waited_s: float
    hit_write: bool
    saved_step: int
    done_step: int
    resumed: bool = False
    is_equal: bool = False

    @property
    def lost_steps(self) -> int:
        """Iterations that were logged, but have to be done again."""
        return max(0, self.done_step - self.saved_step)


def start(run: Path, nproc: int, epochs: int, *extra: str) -> subprocess.Popen[bytes]:
    """Start the training, or go on with it."""
    recipe = run.parent / f"{run.name}.toml"
    settings = {
        "model": "lraspp_mobilenet_v3_small", "data": f"synthetic:64x64:{STEPS_PER_EPOCH * BATCH}",
        "epochs": epochs, "batch_size": BATCH, "workers": 0, "device": "cpu", "nproc": nproc,
        "ema_decay": 0.9, "amp": "bf16", "save_minutes": 1e-9, "log_every": 1, "val_limit": 4,
        "val_pictures": 0, "out": str(run), "timeout_s": 60.0,
    }  # fmt: skip
    recipe.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
    is_begun = (run / "last" / "manifest.json").exists()
    arguments = ["--resume", "--out", str(run)] if is_begun else [str(recipe)]
    return subprocess.Popen(
        [sys.executable, "-m", "segdeploy", "train", *arguments, *extra],
        stdout=subprocess.DEVNULL, stderr=(run.parent / f"{run.name}.err").open("ab"),
        start_new_session=True,
    )  # fmt: skip


def saved_step(run: Path) -> int:
    """Return the iteration at which RUN/last stands; -1 without one. It must be whole."""
    if not (run / "last" / STATE).exists():
        return -1
    progress, _ = load_state(run / "last")
    return progress.epoch * STEPS_PER_EPOCH + progress.step


def logged_step(run: Path) -> int:
    """Return how many iterations are logged as done."""
    lines = (run / "steps.jsonl").read_bytes().splitlines() if run.exists() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"]) + 1
        except ValueError:
            continue  # Cut by a kill.
    return 0


def is_writing(run: Path) -> bool:
    """Return whether a temporary folder or file of ours stands in the run."""
    return any(run.glob(".*.tmp"))


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes that the parent has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    return [int(pid) for pid in found.split()]


def wait_for_progress(run: Path, process: subprocess.Popen[bytes], before: int) -> bool:
    """Wait until the run has got further than `before`; False if it ended first."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if run.exists() and (run / "steps.jsonl").exists() and logged_step(run) > before:
            return True
        time.sleep(0.005)
    raise TimeoutError(f"{run} does not get further than {before}")


def wait_for_write(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Return as soon as a write has begun (not merely goes on), or the process has ended."""
    while is_writing(run) and process.poll() is None:
        time.sleep(2e-4)
    while not is_writing(run) and process.poll() is None:
        time.sleep(2e-4)


def kill_once(
    run: Path, process: subprocess.Popen[bytes], nproc: int, draw: random.Random
) -> Kill | None:
    """Kill one process of a run that has got further; None if the run ended before."""
    aims = draw.random() < 0.5
    waited = draw.random() * (0.03 if aims else 1.0)
    if aims and draw.random() < 0.5:
        waited = draw.random() * 1e-3
    pids = {"parent": process.pid}
    if nproc > 1:
        pids |= {f"rank {i}": pid for i, pid in enumerate(ranks_of(process))}
    victim = draw.choice(sorted(pids))
    if aims:
        wait_for_write(run, process)
    end = time.perf_counter() + waited
    while time.perf_counter() < end:
        pass
    if process.poll() is not None:
        return None
    os.kill(pids[victim], signal.SIGKILL)
    process.wait(PATIENCE_S)
    wait_for_release(run)
    hit = victim == ("rank 0" if nproc > 1 else "parent") and is_writing(run)
    return Kill(nproc, aims, victim, waited, hit, saved_step(run), logged_step(run))


def wait_for_release(run: Path) -> None:
    """Wait until orphaned ranks have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if not orphans(run):
            return
        time.sleep(0.05)
    raise TimeoutError(f"processes of {run} do not end")


def orphans(run: Path) -> list[int]:
    """Return the ranks of a run that are still there."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes()
        except OSError:
            continue
        if b"segdeploy.train.worker" in words and os.fsencode(str(run)) + b'"' in words:
            found.append(int(each.parent.name))
    return found


def torment(run: Path, nproc: int, kills: int, epochs: int, seed: int) -> list[Kill]:
    """Kill a run so often, then let it end; return what happened, perhaps less."""
    draw = random.Random(f"{seed} {run.name}")  # noqa: S311  moments, not secrets
    done: list[Kill] = []
    before = 1  # Then the first RUN/last is complete.
    while True:
        process = start(run, nproc, epochs)
        further = draw.randrange(MOST_STEPS) if len(done) < kills else 0
        is_further = wait_for_progress(run, process, before + further)
        if done:
            done[-1].resumed = is_further or process.returncode == 0
        if not is_further:
            break
        kill = kill_once(run, process, nproc, draw) if len(done) < kills else None
        if kill is None:
            break
        done.append(kill)
        before = kill.saved_step
        print(f"{run.name} {len(done)}/{kills}: {kill}", flush=True)
    code = process.wait(PATIENCE_S)
    if code:
        raise SystemExit(f"{run} ended with exit code {code}; see {run}.err")
    return done


def digests(run: Path) -> dict[str, str]:
    """Return what a run ended with: the best checkpoint, and all of the state but times."""
    progress, parts = load_state(run / "last")
    progress.seconds = 0.0
    content = b"".join(t.view(torch.uint8).numpy().tobytes() for t in tensors_of(parts))
    return {
        "checkpoint": load_checkpoint(run / "checkpoint").manifest.digest,
        "last": load_checkpoint(run / "last").manifest.digest,
        "state": hashlib.sha256(repr(progress).encode() + content).hexdigest(),
    }


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return all tensors within a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value.reshape(-1)]
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple):
        return []
    return [tensor for part in parts for tensor in tensors_of(part)]


def lane(folder: Path, name: str, nproc: int, kills: int, epochs: int, seed: int) -> list[Kill]:
    """Kill runs until there were so many kills; mark those of a run that ended differently."""
    found: list[Kill] = []
    plain = folder / f"{name}-plain"
    torment(plain, nproc, 0, epochs, seed)
    while len(found) < kills:
        run = folder / f"{name}-{len(found)}"
        done = torment(run, nproc, kills - len(found), epochs, seed)
        is_equal = digests(plain) == digests(run)
        found += [replace(kill, is_equal=is_equal) for kill in done]
        print(f"{run.name}: as the undisturbed run: {is_equal}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--two", type=float, default=0.3, help="share of kills of two processes")
    parser.add_argument("--lanes", type=int, default=3, help="runs at a time")
    results = Path(__file__).parent / "results" / "kills.json"
    parser.add_argument("--out", type=Path, default=results)
    options = parser.parse_args()
    started = time.monotonic()
    num_two = round(options.kills * options.two)
    shares = [(2, num_two), *((1, n) for n in split(options.kills - num_two, options.lanes - 1))]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.lanes, context) as pool,
    ):
        lanes = [
            pool.submit(lane, Path(folder), f"lane{i}", *share, options.epochs, options.seed)
            for i, share in enumerate(shares)
            if share[1]
        ]
        found = [kill for each in lanes for kill in each.result()]
    write_json(options.out, summary(options, found, time.monotonic() - started))


def split(number: int, parts: int) -> list[int]:
    """Return a number in nearly equal parts."""
    return [number * (i + 1) // parts - number * i // parts for i in range(parts)]


def summary(options: argparse.Namespace, kills: list[Kill], seconds: float) -> dict[str, Any]:
    """Return the figures and what they come from."""
    return {
        "kills": len(kills),
        "resumed": sum(kill.resumed for kill in kills),
        "aimed_at_a_write": sum(kill.aimed_at_write for kill in kills),
        "hit_a_write": sum(kill.hit_write for kill in kills),
        "of_two_processes": sum(kill.nproc == 2 for kill in kills),
        "most_steps_lost": max(kill.lost_steps for kill in kills),
        "equal_to_undisturbed": all(kill.is_equal for kill in kills),
        "seed": options.seed,
        "steps": options.epochs * STEPS_PER_EPOCH,
        "seconds": round(seconds),
        "versions": installed_versions(),
        "each": [asdict(kill) | {"lost_steps": kill.lost_steps} for kill in kills],
    }


if __name__ == "__main__":
    main()
