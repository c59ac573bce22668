"""What int8 gains in time, tensor in and logits out: ours beside fp32, NNCF and quantize_static.

    .venv/bin/python -m benchmarks.int8_speed [--model M ...] [--data camvid:PATH]
                     [--rounds 12] [--seconds 1.0]

lraspp_mobilenet_v3_large (CamVid checkpoint) and deeplabv3_resnet50 (seeded weights: its time does
not depend on them) at 520x520, each model in one interleaved run, each contestant in a process of
its own. What made the difference: `default.toml` is the policy of backends without one, "file as it
is" leaves out what is rewritten when a session opens. Needs nncf. Writes
benchmarks/results/int8_speed.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.int8_accuracy import PLAIN_POLICY, Case, quantize_by_nncf, quantize_statically
from benchmarks.pipelines import Options, Race
from benchmarks.target_matrix import UNTRAINED, Place, save_untrained
from segdeploy.core.files import write_json
from segdeploy.core.results import read_result
from segdeploy.measure import describe_environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "int8_speed.json"
RUN = Path("runs/int8-speed")
MODELS = ("lraspp_mobilenet_v3_large", "deeplabv3_resnet50")
OURS = ("onnx-fp32", "onnx-int8", "openvino-fp32", "openvino-int8")
SIZE = (520, 520)


def make_case(model: str, data: str) -> Case:
    """Return a model with its weights: trained ones where there are any."""
    place = Place(RUN, data)
    if model not in UNTRAINED:
        return Case(model, data, place.checkpoint(model), SIZE, RUN / model)
    save_untrained(place, model)
    return Case(model, data, place.checkpoint(model), SIZE, RUN / model, num_images=4)


def contestants(case: Case) -> Mapping[str, tuple[str, Options]]:
    """Build what runs, by its name in the table."""
    found: dict[str, tuple[str, Options]] = {
        f"segdeploy {target}": ("segdeploy_logits", {"path": str(case.artifact(target).path)})
        for target in OURS
    }
    whole, plain = case.artifact("onnx-int8"), case.artifact("onnx-int8", PLAIN_POLICY)
    found["segdeploy onnx-int8, file as it is"] = (
        "onnxruntime_logits", {"path": str(whole.payload)},
    )  # fmt: skip
    found["segdeploy onnx-int8 by default.toml"] = ("segdeploy_logits", {"path": str(plain.path)})
    static, openvino = quantize_statically(case), quantize_by_nncf(case)
    found["ONNX Runtime quantize_static"] = ("onnxruntime_logits", {"path": str(static)})
    found["NNCF on OpenVINO"] = ("openvino_logits", {"path": str(openvino)})
    return found


def measure(case: Case, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the rows of a model."""
    entries = contestants(case)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    with Race(entries, threads) as race:
        race.bind(image)
        measured = race.run(rounds=rounds, seconds=seconds)
    rows = []
    for name, found in measured.items():
        samples = np.asarray(found["samples_ms"])
        rows.append(
            {
                "contestant": name,
                "p50_ms": float(np.median(samples)),
                "min_ms": float(samples.min()),
                "num_samples": samples.size,
                "peak_memory_mib": found["peak_memory_mib"],
            }
        )
    return {"size": SIZE, "threads": threads, "rows": rows, "environment": describe_environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--data", default="camvid:../shared/data/camvid")
    parser.add_argument("--build", action="store_true", help="stop before the clock starts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one block")
    options = parser.parse_args()
    found = read_result(RESULTS) or {}
    for model in options.model or MODELS:
        case = make_case(model, options.data)
        if options.build:
            contestants(case)
            continue
        found[model] = measure(case, options.threads, options.rounds, options.seconds)
        write_json(RESULTS, found)
        print(json.dumps({r["contestant"]: r["p50_ms"] for r in found[model]["rows"]}, indent=2))


if __name__ == "__main__":
    main()
