"""Time and flips of int8 policies for one runtime, interleaved: the evidence of the shipped files.

    python benchmarks/int8_policies.py --target openvino-int8 --data camvid:data/camvid --work DIR
                     --model lraspp_mobilenet_v3_large-camvid ...

A variant is the shipped policy with one decision the other way; all are exported from the same
checkpoint and calibration, take images, and are opened in one process. They run in turn, one call
each, forwards and backwards. A ratio is the median over rounds of (variant / shipped policy) within
a round, with the interval of the sign test: it stands on a busy machine, where milliseconds do not.
Flips are counted against the plain onnx-fp32 artifact.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from time import perf_counter_ns
from typing import Any

os.environ.setdefault("SEGDEPLOY_IN_PROCESS", "1")

import numpy as np

from segdeploy.backends import open_session
from segdeploy.bench.inputs import make_batch
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.files import write_json
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.core.session import Session
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.verify import compare_folders
from segdeploy.workflows.tune_decision import ratio_of_blocks

HERE = Path(__file__).parent
SIZES = {"unet-camvid": (180, 240)}
SHIPPED = "shipped"
STEM = ("first_convolution", "stem_depthwise", "stem_residual")
VARIANTS: dict[str, dict[str, str]] = {
    SHIPPED: {},
    "stem in int8": dict.fromkeys(STEM, "int8"),
    "stem in float": dict.fromkeys(STEM, "float"),
    "first_convolution float": {"first_convolution": "float"},
    "stem_residual int8": {"stem_residual": "int8"},
    "stem_residual float": {"stem_residual": "float"},
    "pooled weights": {"pooled": "weights"},
    "pooled float": {"pooled": "float"},
    "pooled int8": {"pooled": "int8"},
    "gate float": {"gate": "float"},
    "gate int8": {"gate": "int8"},
    "hard_swish float": {"hard_swish": "float"},
    "hard_swish int8": {"hard_swish": "int8"},
    "classifier int8": {"classifier": "int8"},
    "symmetric activations": {"activations": "symmetric"},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, help="a name of checkpoints/")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--images", type=int, default=8, help="on which flips are counted")
    given = parser.parse_args()
    os.environ["SEGDEPLOY_NUM_THREADS"] = str(given.threads)
    out = HERE / "results" / f"int8_policies_{given.target.partition('-')[0]}.json"
    models = json.loads(out.read_text())["models"] if out.exists() else {}
    for name in given.model:
        models[name] = measure(name, given)
        environment = describe_environment()
        write_json(
            out,
            {
                "target": given.target,
                "data": given.data.partition(":")[0],
                "threads": given.threads,
                "cpu": environment["cpu"],
                "cpu_flags": environment["cpu_flags"],
                "load_average": environment["load_average"],
                "packages": environment["packages"],
                "models": models,
            },
        )


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return the size, and per variant that places something else: flips, times, ratio."""
    size = SIZES.get(name, (360, 480))
    data, rounds = given.data, given.rounds
    built = build(name, given, size)
    (plain_folder,) = (given.work / name).glob("onnx-fp32*")
    plain = load_artifact(plain_folder)
    rows = {}
    for variant, artifact in built.items():
        report = compare_folders(artifact, plain, data=data, num_images=given.images)
        rows[variant] = {
            "changes": VARIANTS[variant],
            "flip_rate": report.flip_rate,
            "hard_flip_rate": report.hard_flip_rate,
            "passed": report.passed,
            "borders": artifact.manifest.options["int8"]["borders"],
        }
        print(name, variant, f"{report.flip_rate:.4f}", flush=True)
    sessions = {variant: open_session(artifact) for variant, artifact in built.items()}
    batch = make_batch(built[SHIPPED].manifest, size, 1)
    times = interleave(sessions, batch, rounds)
    for variant, samples in times.items():
        ratio = ratio_of_blocks(times[SHIPPED], samples)
        rows[variant] |= {
            "min_ms": min(samples),
            "p25_ms": float(np.percentile(samples, 25)),
            "ratio": ratio.value,
            "interval": [ratio.low, ratio.high],
        }
        print(name, variant, rows[variant]["min_ms"], ratio, flush=True)
    counts = {"rounds": rounds, "images": given.images, "calibrated_on": given.calibration_images}
    return {"size": list(size), **counts, "variants": rows}


def build(name: str, given: argparse.Namespace, size: tuple[int, int]) -> dict[str, Artifact]:
    """Return the artifact of each variant; one that is the same graph as another is left out."""
    built: dict[str, Artifact] = {}
    seen: set[str] = set()
    work = given.work / name
    for variant, changes in VARIANTS.items():
        file = work / "policy.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [f'{key} = "{choice}"' for key, choice in changes.items()]
        at_top = "activations" in changes
        file.write_text("\n".join([*([] if at_top else ["[groups]"]), *lines, ""]))
        outcome = export(
            HERE / "checkpoints" / name, [given.target], work,
            calibration=given.data, num_calibration_images=given.calibration_images,
            size=size, int8_policy=str(file), io=IoContract(InputKind.IMAGE),
            name="int8-" + "".join(c if c.isalnum() else "-" for c in variant),
        )[0]  # fmt: skip
        artifact = load_artifact(outcome.path)
        content = json.dumps(artifact.manifest.files)
        if content not in seen:
            seen.add(content)
            built[variant] = artifact
    return built


def interleave(sessions: dict[str, Session], batch: Any, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each session in every round, after one call that is thrown away.

    Others empty the caches in between, so each timed call has an untimed one before it.
    """
    calls = {name: session.bind(batch) for name, session in sessions.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: 1 if index % 2 else -1]:
            calls[name]()
            start = perf_counter_ns()
            calls[name]()
            times[name].append((perf_counter_ns() - start) / 1e6)
    return times


if __name__ == "__main__":
    main()
