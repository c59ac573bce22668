"""Every target of the core six models: built, verified, evaluated, and benched in one run a model.

    .venv/bin/python -m benchmarks.target_matrix [--model M ...] [--target T ...]
                     [--part build|evaluate|bench]
                     [--data camvid:PATH] [--run FOLDER]

Artifacts are made at 360x480 and kept below FOLDER, so that a second call builds only what has
changed. The three trained CamVid checkpoints get all targets that this machine can build; the
others (seeded weights, never trained) get onnx, openvino, tensorrt and aoti. Latency is one
interleaved run per model, two threads, as a ratio to eager PyTorch. A cell that fails says why.
Writes benchmarks/results/target_matrix.json after every cell; docs/targets.md shows it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from segdeploy.backends import BACKENDS, describe_targets
from segdeploy.bench.interleave import measure_interleaved
from segdeploy.bench.plan import BenchPlan
from segdeploy.core.errors import SegDeployError
from segdeploy.core.files import write_json
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.results import read_result
from segdeploy.core.task import Task
from segdeploy.evaluate import evaluate
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.workflows import export_and_verify

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "target_matrix.json"
SIZE = (360, 480)
THREADS = 2
TRAINED = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "unet")
UNTRAINED = ("deeplabv3_resnet50", "fcn_resnet50", "u2net_lite")
GRAPH_BACKENDS = ("onnx", "openvino", "tensorrt", "aoti")  # For models that were never trained.
BASE = "onnx-fp32"  # Its mIoU is what others lose from: eager PyTorch decides the same there.
CLASSES = 11


@dataclass(frozen=True)
class Place:
    """Where the artifacts lie, and which data calibrate and judge them."""

    run: Path
    data: str

    def checkpoint(self, model: str) -> Path:
        """Return the model's weights."""
        if model in TRAINED:
            return HERE / "checkpoints" / f"{model}-camvid"
        return self.run / model / "checkpoint"

    def artifact(self, model: str, target: str) -> Path:
        """Return where a target's artifact stands."""
        return self.run / model / f"{target}+{SIZE[0]}x{SIZE[1]}"


def targets_of(model: str) -> list[str]:
    backends = list(BACKENDS) if model in TRAINED else list(GRAPH_BACKENDS)
    return [
        f"{name}-{precision}"
        for name in ("onnx", *[b for b in backends if b != "onnx"])
        for precision in BACKENDS.get(name).precisions
    ]


def save_untrained(place: Place, model: str) -> None:
    """Write seeded weights of a model that has no trained checkpoint, once."""
    import torch

    from segdeploy.zoo import create_model, save_checkpoint

    if (place.checkpoint(model) / "manifest.json").exists():
        return
    torch.manual_seed(0)
    save_checkpoint(
        place.checkpoint(model), create_model(model, CLASSES), model=model, task=Task.MULTICLASS,
        classes=[f"class_{k}" for k in range(CLASSES)], preprocess=PreprocessSpec(),
        design_size=SIZE, trained=False,
    )  # fmt: skip


class Table:
    """Rows by (model, target), saved after every change."""

    def __init__(self) -> None:
        found = read_result(RESULTS) or {}
        self.rows: dict[tuple[str, str], dict[str, Any]] = {
            (row["model"], row["target"]): row for row in found.get("rows", [])
        }
        self.bench_environment: dict[str, Any] = found.get("bench_environment", {})

    def set(self, model: str, target: str, **values: Any) -> None:
        """Change some values of a cell."""
        row = self.rows.setdefault((model, target), {"model": model, "target": target})
        row.update(values)
        self.save()

    def save(self) -> None:
        """Write the table."""
        order = [(m, t) for m in (*TRAINED, *UNTRAINED) for t in ("pytorch-fp32", *targets_of(m))]
        rows = [self.rows[key] for key in order if key in self.rows]
        write_json(
            RESULTS,
            {"size": SIZE, "threads": THREADS, "data": "camvid", "rows": rows,
             "bench_environment": self.bench_environment},
        )  # fmt: skip


def build(place: Place, table: Table, models: Sequence[str], only: Sequence[str]) -> None:
    """Export and verify every cell; what is there and whole is reused."""
    hints = {row["name"]: row["hint"] for row in describe_targets() if not row["available"]}
    cells = [(m, t) for m in models for t in targets_of(m) if not only or t in only]
    for model, target in track(cells, "build"):
        if model in UNTRAINED:
            save_untrained(place, model)
        wanted = place.checkpoint(model), [target], place.run / model
        try:
            made = next(
                each
                for each in export(*wanted, size=SIZE, calibration=place.data)
                if each.requested
            )
            artifact = load_artifact(made.path)
            if table.rows.get((model, target), {}).get("digest") == artifact.manifest.digest:
                continue  # It was verified, too.
            export_and_verify(*wanted, size=SIZE, calibration=place.data, data=place.data)
        except SegDeployError as error:
            why = hints.get(target) or str(error)
            table.set(model, target, error=_one_line(error.message), hint=_one_line(why))
            continue
        artifact = load_artifact(made.path)
        parity = read_result(artifact.path / "parity.json") or {}
        fresh = {} if made.reused else {"build_seconds": made.seconds}
        table.set(
            model, target, **fresh, error=None, hint=None, passed=artifact.manifest.passed,
            digest=artifact.manifest.digest, size_mib=artifact.size_mib,
            flip_rate=parity.get("flip_rate"), hard_flip_rate=parity.get("hard_flip_rate"),
            failures=[each["rule"] for each in parity.get("failures", [])],
        )  # fmt: skip


def artifacts(place: Place, model: str) -> Iterator[tuple[str, Artifact]]:
    for target in targets_of(model):
        try:
            yield target, load_artifact(place.artifact(model, target))
        except SegDeployError:
            continue  # `build` has said why.


def score(place: Place, table: Table, models: Sequence[str]) -> None:
    """Evaluate every artifact of a trained model on CamVid's validation split."""
    trained = [model for model in models if model in TRAINED]
    cells = [(m, t, a) for m in trained for t, a in artifacts(place, m)]
    for model, target, artifact in track(cells, "evaluate"):
        row = table.rows.get((model, target), {})
        if row.get("evaluated") == artifact.manifest.digest:
            continue
        try:
            found = evaluate(artifact.path, data=place.data, save=False)
        except SegDeployError as error:
            table.set(model, target, run_error=_one_line(error.message))
            continue
        table.set(
            model, target, mean_iou=found.mean_iou, class_iou=found.class_iou, run_error=None,
            evaluated=artifact.manifest.digest,
        )  # fmt: skip


def measure(place: Place, table: Table, models: Sequence[str]) -> None:
    """Bench eager PyTorch and all artifacts of a model in one interleaved run."""
    for model in track(models, "bench"):
        runnable = find_runnable(place, table, model)
        folders = [place.checkpoint(model), *(a.path for a in runnable.values())]
        plan = BenchPlan(size=SIZE, threads=THREADS, seconds=4.0)
        outcome = measure_interleaved(folders, plan, save=False)
        results = {Path(result.path): result for result in outcome.results}
        eager = results[folders[0]]
        base = eager.latency_ms["p50"] or float("nan")
        for target, folder in zip(("pytorch-fp32", *runnable), folders, strict=True):
            if folder not in results:
                why = next(e for e in outcome.failures if str(folder) in e.message)
                table.set(model, target, run_error=_one_line(why.message))
                continue
            latency = results[folder].latency_ms
            table.set(
                model, target, latency_ms=latency, run_error=None,
                latency_ratio=(latency["p50"] or float("nan")) / base,
                peak_memory_mib=results[folder].peak_memory_mib,
                num_samples=len(results[folder].samples_ms),
            )  # fmt: skip
        hidden = {"warnings", "beside", "artifact", "runtime", "block_sizes"}
        table.bench_environment[model] = {
            k: v for k, v in eager.environment.items() if k not in hidden
        }
        table.save()


def find_runnable(place: Place, table: Table, model: str) -> dict[str, Artifact]:
    """Return the artifacts that open here; the table says why others do not."""
    found = dict(artifacts(place, model))
    for target, artifact in tuple(found.items()):
        if why := _cannot_open(artifact):
            table.set(model, target, run_error=_one_line(why))
            del found[target]
    return found


def _cannot_open(artifact: Artifact) -> str:
    """Return why an artifact cannot run here, or nothing."""
    from segdeploy.backends import open_session

    try:
        open_session(artifact).close()
    except SegDeployError as error:
        return error.message
    return ""


def _one_line(text: str) -> str:
    line = (text.splitlines() or [""])[0]
    return line if len(line) < 200 else line[:197] + "..."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=[*TRAINED, *UNTRAINED])
    parser.add_argument("--part", action="append", choices=["build", "evaluate", "bench"])
    parser.add_argument("--target", action="append", help="build only this one")
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--run", type=Path, default=Path("runs/target-matrix"))
    options = parser.parse_args()
    place, table = Place(options.run, options.data), Table()
    models = options.model or [*TRAINED, *UNTRAINED]
    chosen = options.part or ["build", "evaluate", "bench"]
    if "build" in chosen:
        build(place, table, models, options.target or ())
    if "evaluate" in chosen:
        score(place, table, models)
    if "bench" in chosen:
        measure(place, table, models)
    environment = describe_environment()
    print(json.dumps({"cpu": environment["cpu"], "cells": len(table.rows)}))


if __name__ == "__main__":
    main()
