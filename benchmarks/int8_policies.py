"""Time and flips of int8 policies for one runtime, interleaved: the evidence of the shipped files.

    .venv/bin/python -m benchmarks.int8_policies --target openvino-int8 --work DIR
                     --model lraspp_mobilenet_v3_large-camvid ... [--data camvid:PATH]
                     [--suffix=-family26]

A variant is the shipped policy with one decision the other way; all are exported from the same
checkpoint and calibration, and take images. Each runs in processes of its own, in blocks in turn,
the others stopped: in one process the threads of each session spin into the call of the next, and
the same graph looked slower in the middle of the order than at its ends. The shipped
artifact runs a second time, under another name: what that row is off 1 is noise. A ratio is the
median over blocks of (variant / shipped policy), a block counting by its fastest call, with the
interval of the sign test. Flips are counted against the plain onnx-fp32 artifact.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.render_parts import cpu_of
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.files import write_json
from segdeploy.core.folder import Artifact, load_artifact
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.verify import compare_folders
from segdeploy.workflows.tune_decision import least_of_blocks, ratio_of_blocks

HERE = Path(__file__).parent
SIZES = {"unet-camvid": (180, 240)}
SHIPPED, AGAIN = "shipped", "shipped, again"
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


def known_models(out: Path, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a result holds of each model, to be added to.

    Raises:
        ValueError: If another CPU gave it: a result names one CPU for all its models.
    """
    if not out.exists():
        return {}
    found = json.loads(out.read_text(encoding="utf-8"))
    if cpu_of(found) != cpu_of(environment):
        raise ValueError(f"{out.name} is of {cpu_of(found)}: give a --suffix for this CPU's")
    models: dict[str, Any] = found["models"]
    return models


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, help="a name of checkpoints/")
    parser.add_argument("--seconds", type=float, default=8.0, help="of sampling a variant")
    parser.add_argument("--launches", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-images", type=int, default=32)
    parser.add_argument("--images", type=int, default=8, help="on which flips are counted")
    parser.add_argument("--suffix", default="", help="of the result's name: of another CPU")
    given = parser.parse_args()
    backend = given.target.partition("-")[0]
    out = HERE / "results" / f"int8_policies_{backend}{given.suffix}.json"
    environment = describe_environment()
    try:
        models = known_models(out, environment)
    except ValueError as error:
        parser.error(str(error))
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
    built = build(name, given, size)
    (plain_folder,) = (given.work / name).glob("onnx-fp32*")
    plain = load_artifact(plain_folder)
    rows = {}
    for variant, artifact in built.items():
        report = compare_folders(artifact, plain, data=given.data, num_images=given.images)
        rows[variant] = {
            "changes": VARIANTS[variant],
            "flip_rate": report.flip_rate,
            "hard_flip_rate": report.hard_flip_rate,
            "passed": report.passed,
            "borders": artifact.manifest.options["int8"]["borders"],
        }
        print(name, variant, f"{report.flip_rate:.4f}", flush=True)
    rows[AGAIN] = dict(rows[SHIPPED])
    plan = BenchPlan(
        size=size, threads=given.threads, seconds=given.seconds, launches=given.launches
    )
    folders = [*(artifact.path for artifact in built.values()), built[SHIPPED].path]
    outcome = measure_interleaved(folders, plan, save=False)
    if outcome.failures:
        raise outcome.failures[0]
    times = dict(zip([*built, AGAIN], map(least_of_blocks, outcome.results), strict=True))
    for variant, blocks in times.items():
        ratio = ratio_of_blocks(times[SHIPPED], blocks)
        rows[variant] |= {
            "min_ms": min(blocks),
            "p50_ms": float(np.median(blocks)),
            "ratio": ratio.value,
            "interval": [ratio.low, ratio.high],
        }
        print(name, variant, rows[variant]["min_ms"], ratio, flush=True)
    counts = {
        "blocks": len(times[SHIPPED]),
        "launches": given.launches,
        "images": given.images,
        "calibrated_on": given.calibration_images,
    }
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


if __name__ == "__main__":
    main()
