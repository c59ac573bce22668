"""From a decoded uint8 image to its label map: segdeploy against what a user would write instead.

    .venv/bin/python -m benchmarks.image_to_labels [--case photo|scene ...]
                     [--data camvid:PATH] [--rounds 24] [--seconds 0.5]

* photo: the CamVid LRASPP at 520x520;
* scene: an LRASPP with 19 classes at 1024x2048 (`benchmarks.synthetic19` trains it).

Against (a) the pipeline of the tutorials (ONNX Runtime fp32, normalise and argmax in NumPy) and
(b) the best by OpenVINO's documentation (NNCF int8, PrePostProcessor, argmax in the graph); the
same weights, calibration data, threads and input, one interleaved run, each in its own process.
Agreement is the share of pixels whose label is that of the fp32 model on images that neither
calibrated nor trained anything. Needs nncf. Writes benchmarks/results/image_to_labels.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import synthetic19
from benchmarks.int8_accuracy import BASE, Case, quantize_by_nncf
from benchmarks.pipelines import Race
from benchmarks.render_parts import cpu_of
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.files import write_json
from segdeploy.core.results import read_result
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.measure import describe_environment
from segdeploy.workflows.tune_decision import ratio_of_blocks

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "image_to_labels.json"
RUN = Path("runs/image-to-labels")
NUM_JUDGED = 10
LEAST_ROUNDS = 6  # With fewer, `ratio_of_blocks` has no interval.
OURS = (
    "openvino-int8", "openvino-bf16", "openvino-fp32", "onnx-int8", "onnx-fp32", "executorch-int8",
)  # fmt: skip
FAST = IoContract(InputKind.IMAGE, OutputKind.LOW_LOGITS)


def images(case: Case, split: str, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield `count` images spread over a split, resized to the model's size."""
    found = open_dataset(case.data, split)
    for index in np.linspace(0, len(found) - 1, count).round().astype(int):
        picture = Image.fromarray(found[int(index)].image)
        yield np.asarray(picture.resize(case.size[::-1], Image.Resampling.BILINEAR))


def build(case: Case) -> dict[str, tuple[str, dict[str, Any]]]:
    """Export what the pipelines need; return them by the name in the table."""
    graph = case.artifact(BASE).payload
    outcomes = export(
        case.checkpoint, OURS, case.run, io=FAST, size=case.size, calibration=case.data
    )
    entries: dict[str, tuple[str, dict[str, Any]]] = {
        "tutorial: ONNX Runtime fp32, NumPy": ("tutorial_onnxruntime", {"path": str(graph)}),
    }
    for hint in ("f32", "bf16"):
        entries[f"expert: OpenVINO fp32 graph run as {hint}"] = (
            "expert_openvino", {"path": str(graph), "hint": hint},
        )  # fmt: skip
    quantized = quantize_by_nncf(case)
    entries["expert: OpenVINO + NNCF int8"] = (
        "expert_openvino", {"path": str(quantized), "hint": "f32"},
    )  # fmt: skip
    wanted = {outcome.target: outcome.path for outcome in outcomes if outcome.requested}
    for target in OURS:
        entries[f"segdeploy: {target}"] = ("segdeploy", {"path": str(wanted[target])})
    return entries


def measure(case: Case, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the rows of a case: agreement first, then time in one interleaved run."""
    entries = build(case)
    with Race(entries, threads) as race:
        agreement: dict[str, list[float]] = {name: [] for name in entries}
        for image in images(case, "val", NUM_JUDGED):
            found = race.bind(image)
            wanted = found["tutorial: ONNX Runtime fp32, NumPy"]
            for name, labels in found.items():
                agreement[name].append(float((labels == wanted).mean()))
        measured = race.run(rounds=rounds, seconds=seconds)
    by_round = {name: measured[name]["rounds_ms"] for name in entries}
    tutorial, *others = (name for name in entries if not name.startswith("segdeploy"))
    expert = min(others, key=lambda name: np.median(by_round[name]))
    rows = []
    for name in entries:
        samples = np.asarray(measured[name]["samples_ms"])
        rows.append(
            {
                "pipeline": name,
                "p50_ms": float(np.median(samples)),
                "p90_ms": float(np.percentile(samples, 90)),
                "min_ms": float(samples.min()),
                "tutorial_by_this": _ratio(by_round[name], by_round[tutorial]),
                "expert_by_this": _ratio(by_round[name], by_round[expert]),
                "num_samples": samples.size,
                "peak_memory_mib": measured[name]["peak_memory_mib"],
                "agreement": float(np.mean(agreement[name])),
            }
        )
    return {"size": case.size, "threads": threads, "model": case.checkpoint.name, "expert": expert,
            "num_judged": NUM_JUDGED, "rows": rows,
            "environment": describe_environment()}  # fmt: skip


def keep_other_cpu(found: dict[str, Any], name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """Return the results with a new one; what another CPU gave stays, as `NAME, CPU`.

    In alphabetical order, in which the newest result of a case stands before those of other CPUs.
    """
    kept = {**found, name: measured}
    old, cpu = found.get(name), cpu_of(measured["environment"])
    if old is not None and cpu_of(old["environment"]) != cpu:
        kept[f"{name}, {cpu_of(old['environment'])}"] = old
    kept.pop(f"{name}, {cpu}", None)  # This CPU's has been measured again.
    return {key: kept[key] for key in sorted(kept)}


def _ratio(base_ms: list[float], others_ms: list[float]) -> list[float]:
    """Return the median ratio of medians of the same round, and the ends of its 95 % interval."""
    found = ratio_of_blocks(base_ms, others_ms)
    return [found.value, found.low, found.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", choices=["photo", "scene"])
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--build", action="store_true", help="stop before the clock starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one block")
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"fewer than {LEAST_ROUNDS} rounds give no interval")
    camvid = HERE / "checkpoints" / "lraspp_mobilenet_v3_large-camvid"
    cases = {
        "photo": Case("photo", options.data, camvid, (520, 520), RUN / "photo"),
        "scene": Case(
            "scene", synthetic19.DATA, synthetic19.CHECKPOINT, (1024, 2048), RUN / "scene"
        ),
    }
    found = read_result(RESULTS) or {}
    for name in options.case or cases:
        if options.build:
            build(cases[name])
            continue
        measured = measure(cases[name], options.threads, options.rounds, options.seconds)
        found = keep_other_cpu(found, name, measured)
        write_json(RESULTS, found)
        print(json.dumps({row["pipeline"]: row["p50_ms"] for row in found[name]["rows"]}, indent=2))


if __name__ == "__main__":
    main()
