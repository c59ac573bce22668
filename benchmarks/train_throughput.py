"""How fast is a whole training, against a plain loop? Both in turns, on CamVid.

    .venv/bin/python -m benchmarks.train_throughput --data camvid:PATH [--rounds 6] [--steps 20]

A turn is an epoch of some steps, from the start of its loader processes to the last step. Sides are
processes of their own that stay (warm) and take turns, in an order that is reversed each round:
`plain` is benchmarks/plain_training.py, `segdeploy` is segdeploy.train.train (its own log says the
speed), the others are one of these with one thing changed. All have the same model, images, batch,
crop, number of workers and threads. Writes benchmarks/results/train_throughput.json (or
train_throughput_cuda.json): images/s of every turn; the median over rounds of the ratio to `plain`,
with an interval (bootstrap over rounds, 95 %); and from one more turn under torch.profiler, where
the time goes and the share that is spent waiting for images.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.core.files import write_json
from segdeploy.data.images import list_images
from segdeploy.measure import describe_environment, usable_cores

if TYPE_CHECKING:
    from benchmarks.plain_training import Task

HERE = Path(__file__).parent
MODELS = {
    "lraspp_mobilenet_v3_large": (360, 480),
    "unet": (180, 240),
    "deeplabv3_mobilenet_v3_large": (360, 480),
}
FAST = {"channels_last": True, "amp": "bf16", "cache_mib": 512}
NUM_OPERATORS, NUM_DRAWS = 12, 10_000


@dataclass(frozen=True)
class Side:
    """One way to train: settings of segdeploy, or a plain loop (None)."""

    settings: dict[str, Any] | None = None
    has_our_loader: bool = False
    is_waiting_active: bool = False  # Torch is loaded before `train`, without its door.


SIDES = {
    "plain": Side(),
    "segdeploy": Side(FAST),
    "segdeploy_without_bf16": Side(FAST | {"amp": "none"}),
    "segdeploy_without_channels_last": Side(FAST | {"channels_last": False}),
    "segdeploy_without_cache": Side(FAST | {"cache_mib": 0}),
    "segdeploy_without_passive_waiting": Side(FAST, is_waiting_active=True),
    "segdeploy_without_determinism": Side(FAST | {"deterministic": False}),
    "plain_with_our_loader": Side(has_our_loader=True),
}


@dataclass
class Runner:
    """A side's process, seen from the parent."""

    name: str
    pipe: Connection
    images_s: list[float] = field(default_factory=list)

    def ask(self, what: str) -> Any:
        """Return the answer to "turn" (images/s) or "profile" (a dictionary)."""
        self.pipe.send(what)
        try:
            return self.pipe.recv()
        except EOFError as error:
            raise SystemExit(f"{self.name} ended; its own message stands above") from error


def _serve(side: Side, task_fields: dict[str, Any], num_turns: int, pipe: Connection) -> None:
    """Work as a side's process until the parent is gone."""
    # A spawned process hands its own way on; loaders shall be forked, as those of any script.
    multiprocessing.set_start_method("fork", force=True)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  the display; errors go through stdout
    try:
        turn = _create_turn(side, task_fields, num_turns)
        while True:
            what = pipe.recv()
            pipe.send(turn() if what == "turn" else _profile(turn))
    except EOFError:
        return
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        raise


def _create_turn(side: Side, task_fields: dict[str, Any], num_turns: int) -> Callable[[], float]:
    if side.settings is not None and not side.is_waiting_active:
        from segdeploy.frameworks.torch import passive_waiting, require_torch

        with passive_waiting():  # As `train` does it; the modules below load torch, too.
            require_torch()
    from benchmarks.plain_training import PlainLoop, Task

    task = Task(**task_fields)
    if side.settings is None:
        loop = PlainLoop(task, num_turns, has_our_loader=side.has_our_loader)
        return loop.train_epoch
    settings = side.settings
    return lambda: _train_once(task, settings)


def _train_once(task: Task, settings: dict[str, Any]) -> float:
    """Train one epoch through the public function; return the images/s of its log."""
    from benchmarks.plain_training import LR, MOMENTUM, SCALE, WEIGHT_DECAY
    from segdeploy.train import TrainConfig, train

    with tempfile.TemporaryDirectory() as folder:
        train(TrainConfig(
            model=task.model, data=task.data, out=f"{folder}/run", epochs=1, crop=task.crop,
            batch_size=task.batch_size, workers=task.workers, device=task.device, scale=SCALE,
            jitter=0.0, optimizer="sgd", lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
            warmup_steps=0, **settings,
        ))  # fmt: skip
        line = (Path(folder) / "run" / "log.jsonl").read_text().splitlines()[-1]
    return float(json.loads(line)["images_s"])


def _profile(turn: Callable[[], float]) -> dict[str, Any]:
    """Return where a turn's time goes: its operators' own time in s, and the wait for images."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        images_s = turn()
    own_s: dict[str, float] = {}
    wait_s = 0.0
    for event in profiler.key_averages():
        if event.key.startswith("enumerate(DataLoader)"):
            wait_s += event.cpu_time_total / 1e6
        elif event.device_type.name == "CPU":  # Kernels count in their operator.
            own_s[event.key] = event.self_device_time_total / 1e6
            if not torch.cuda.is_available():
                own_s[event.key] = event.self_cpu_time_total / 1e6
    slowest = sorted(own_s, key=lambda key: -own_s[key])[:NUM_OPERATORS]
    return {
        "images_s_profiled": images_s, "operators_s": sum(own_s.values()),
        "waiting_for_images_s": wait_s, "slowest_s": {key: own_s[key] for key in slowest},
    }  # fmt: skip


@contextmanager
def _runner(name: str, task: dict[str, Any], num_turns: int, threads: int) -> Iterator[Runner]:
    """Start a side's process, with the threads and without settings of how threads wait."""
    os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(SIDES[name], task, num_turns, theirs))
    process.start()
    theirs.close()
    try:
        yield Runner(name, ours)
    finally:
        ours.close()
        process.join(30)
        process.kill()


def measure(task: dict[str, Any], names: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Return the speeds and profiles of all sides on one task; `plain` is the first of them."""
    with ExitStack() as stack:
        runners = [stack.enter_context(_runner(n, task, rounds + 2, threads)) for n in names]
        for runner in runners:
            runner.ask("turn")  # Warm-up.
        for number in range(rounds):
            for runner in runners if number % 2 == 0 else reversed(runners):
                runner.images_s.append(runner.ask("turn"))
                print(f"  {number} {runner.name:36} {runner.images_s[-1]:.2f}", flush=True)
        profiles = {r.name: r.ask("profile") for r in runners if r.name in ("plain", "segdeploy")}
    baseline = runners[0].images_s
    return {
        "images_s": {r.name: r.images_s for r in runners},
        "times_plain": {r.name: summarize_ratio(r.images_s, baseline) for r in runners[1:]},
        "profiles": profiles,
    }


def summarize_ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return the median over rounds of ours / theirs and its 95 % bootstrap interval."""
    ratios = np.array(ours) / np.array(theirs)
    drawn = np.random.default_rng(0).choice(ratios, (NUM_DRAWS, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def link_images(root: Path, folder: Path, count: int) -> str:
    """Lay out links to the first `count` training images and one to validate; return the name."""
    for split, limit in (("train", count), ("val", 1)):
        for part in (split, f"{split}annot"):
            (folder / part).mkdir()
            files = list_images(root / part)[:limit]
            if len(files) < limit:
                raise SystemExit(f"{root / part} has {len(files)} images, fewer than {limit}")
            for file in files:
                (folder / part / file.name).symlink_to(file.resolve())
    return f"camvid:{folder}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="camvid:PATH; default: camvid in SEGDEPLOY_DATA")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--sides", nargs="+", default=list(SIDES)[1:], choices=list(SIDES)[1:])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="of one turn; 45 are an epoch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.data is None:
        if "SEGDEPLOY_DATA" not in os.environ:
            parser.error("give --data camvid:PATH, or set SEGDEPLOY_DATA")
        arguments.data = f"camvid:{os.environ['SEGDEPLOY_DATA']}/camvid"
    return arguments


def main() -> None:
    arguments = _parse()
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    out = arguments.out or HERE / "results" / f"train_throughput{suffix}.json"
    names = ["plain", *arguments.sides]
    document: dict[str, Any] = {
        "batch_size": arguments.batch_size, "workers": arguments.workers,
        "threads": arguments.threads, "device": arguments.device, "rounds": arguments.rounds,
        "steps": arguments.steps, "settings": {n: SIDES[n].settings for n in names},
        "models": {}, "environment": describe_environment(),
    }  # fmt: skip
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(arguments.data.partition(":")[2])
            task = {
                "data": link_images(root, Path(folder), arguments.steps * arguments.batch_size),
                "model": model, "crop": MODELS[model], "batch_size": arguments.batch_size,
                "workers": arguments.workers, "device": arguments.device,
            }  # fmt: skip
            found = measure(task, names, arguments.rounds, arguments.threads)
        document["models"][model] = {"crop": MODELS[model], **found}
        write_json(out, document)  # After each model: the whole run takes hours.
        _show(model, found)


def _show(model: str, found: dict[str, Any]) -> None:
    print(f"{model}: plain {np.median(found['images_s']['plain']):.2f} images/s")
    for name, ratio in found["times_plain"].items():
        print(f"  {name:36} x{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})")


if __name__ == "__main__":
    main()
