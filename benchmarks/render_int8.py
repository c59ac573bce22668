"""Tables of int8 and of the way from image to label map, for `render_docs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> Any:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def int8_accuracy() -> str:
    found = read("int8_accuracy")
    lines = [
        "| model | quantised by | mIoU, points against fp32 | same decision as fp32 |",
        "|---|---|---|---|",
    ]
    shown = ""
    for row in found["rows"]:
        name = "" if row["model"] == shown else row["model"]
        shown = row["model"]
        lines.append(
            f"| {name} | {row['quantizer']} | {-row['drop_points']:+.2f} "
            f"| {100 * row['agreement']:.2f} % |"
        )
    bases = ", ".join(f"{m} {v['mean_iou']:.4f}" for m, v in found["base"].items())
    lines.append(
        f"\nCamVid validation, each model at its design size, calibrated on the same training "
        f"images; fp32: {bases}. Made by `benchmarks/int8_accuracy.py`."
    )
    return "\n".join(lines)


def int8_speed() -> str:
    lines = ["| model | contestant | p50 ms | / onnx-fp32 | peak MiB |", "|---|---|---|---|---|"]
    found = read("int8_speed")
    for model, case in found.items():
        base = next(r for r in case["rows"] if r["contestant"] == "segdeploy onnx-fp32")
        for index, row in enumerate(case["rows"]):
            lines.append(
                f"| {model if not index else ''} | {row['contestant']} | {row['p50_ms']:.1f} "
                f"| {row['p50_ms'] / base['p50_ms']:.2f} | {row['peak_memory_mib']:.0f} |"
            )
    case = next(iter(found.values()))
    lines.append(
        f"\nTensor in, logits out at {case['size'][0]}x{case['size'][1]}, batch 1, "
        f"{case['threads']} threads, one interleaved run a model on "
        f"{case['environment']['cpu']}. Made by `benchmarks/int8_speed.py`."
    )
    return "\n".join(lines)


def image_to_labels() -> str:
    parts = []
    for case in read("image_to_labels").values():
        tutorial = case["rows"][0]["p50_ms"]
        expert = min(r["p50_ms"] for r in case["rows"] if r["pipeline"].startswith("expert"))
        lines = [
            (
                "| uint8 image to label map | p50 ms | min ms | tutorial / this | expert / this "
                "| peak MiB | same label as fp32 |"
            ),
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['pipeline']} | {row['p50_ms']:.1f} | {row['min_ms']:.1f} "
            f"| {tutorial / row['p50_ms']:.2f} | {expert / row['p50_ms']:.2f} "
            f"| {row['peak_memory_mib']:.0f} | {100 * row['agreement']:.2f} % |"
            for row in case["rows"]
        ]
        height, width = case["size"]
        lines.append(
            f"\n{case['model']} at {height}x{width}, {case['threads']} threads, one interleaved "
            f"run on {case['environment']['cpu']}. Made by `benchmarks/image_to_labels.py`."
        )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
