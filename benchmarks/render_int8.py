"""Tables of int8 and of the way from image to label map, for `render_docs`."""

from __future__ import annotations

from typing import Any

from benchmarks.render_parts import HERE, cpu_of, read

_CASES = {
    "checkpoint": "An LRASPP of 19 classes, trained for a few epochs on the drawn scenes of "
    "`benchmarks/synthetic19.py`, here for its size: its int8 flips more than `verify` allows",
}
"""What a model's name in a result does not say."""


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
        if "error" in row:
            lines.append(f"| {name} | {row['quantizer']} | failed: {row['error']} | |")
            continue
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
        f"{cpu_of(case['environment'])}. Made by `benchmarks/int8_speed.py`."
    )
    return "\n".join(lines)


def image_to_labels() -> str:
    parts = []
    for case in read("image_to_labels").values():
        lines = [
            (
                "| uint8 image to label map | p50 ms | min ms | tutorial / this "
                "| best expert / this | peak MiB | same label as fp32 |"
            ),
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['pipeline']} | {row['p50_ms']:.1f} | {row['min_ms']:.1f} "
            f"| {_ratio(case, row, 'tutorial')} | {_ratio(case, row, 'expert')} "
            f"| {row['peak_memory_mib']:.0f} | {100 * row['agreement']:.2f} % |"
            for row in case["rows"]
        ]
        height, width = case["size"]
        judged = f"; labels of {case['num_judged']} images" if "num_judged" in case else ""
        ratios = (
            "medians of a round, the median of all rounds (95 % interval)"
            if "tutorial_by_this" in case["rows"][0]
            else "medians of all calls"
        )
        lines.append(
            f"\n{_CASES.get(case['model'], case['model'])} at {height}x{width}, "
            f"{case['threads']} threads, one interleaved run on {cpu_of(case['environment'])}"
            f"{judged}. Ratios: of {ratios}. Made by `benchmarks/image_to_labels.py`."
        )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _ratio(case: dict[str, Any], row: dict[str, Any], other: str) -> str:
    """Return how many times as long another row takes; older results know no interval."""
    if f"{other}_by_this" in row:
        value, low, high = row[f"{other}_by_this"]
        return f"{value:.2f} ({low:.2f}..{high:.2f})"
    times = [each["p50_ms"] for each in case["rows"] if each["pipeline"].startswith(other)]
    return f"{min(times) / row['p50_ms']:.2f}"


def int8_bound() -> str:
    found = read("int8_bound")
    rate, needed, bound = found["per_ns"], found["multiplications"], found["bound_ms"]
    lines = [
        "| OpenVINO's convolutions, multiplications per ns | f32 | bf16 | int8 |",
        "|---|---|---|---|",
    ]
    for layer, rates in rate.items():
        shown = " | ".join(f"{rates[kind]:.0f}" for kind in ("f32", "bf16", "int8"))
        lines.append(f"| {layer} | {shown} |")
    shown = " | ".join(f"{bound[kind]:.1f}" for kind in ("f32", "bf16", "int8"))
    lines.append(f"| all of LRASPP at these rates, ms | {shown} |")
    measured, asked = found["measured_ms"], found["asked_ms"]
    lines.append(
        f"\nLRASPP at 520x520: {needed['dense'] / 1e6:.0f} million multiplications in dense and "
        f"{needed['depthwise'] / 1e6:.0f} in depthwise convolutions, {found['threads']} threads on "
        f"{cpu_of(found['environment'])}. From image to label map openvino-int8 takes "
        f"{measured['min']:.1f} ms (fastest call; median {measured['p50']:.1f}); 3.5 times the "
        f"speed of the tutorials' pipeline would be {asked['min']:.1f} ({asked['p50']:.1f}). "
        "Made by `benchmarks/int8_bound.py`."
    )
    return "\n".join(lines)


def label_kernel() -> str:
    found = read("label_kernel")
    lines = []
    for case in found["cases"]:
        (height, width), (low_height, low_width) = case["size"], case["low_size"]
        share = case["boundary_share"]
        base = case["rows"][0]["p50_ms"]
        lines += [
            (
                f"**{low_height}x{low_width} to {height}x{width}, {case['num_classes']} "
                f"classes**; cells that are computed: fp32 {100 * share['onnx-fp32']:.1f} %, "
                f"int8 {100 * share['onnx-int8']:.1f} %"
            ),
            "",
            "| way | p50, ms | min, ms | reference / way | peak memory, MiB | other pixels |",
            "|---|---|---|---|---|---|",
        ]
        for row in case["rows"]:
            lines.append(
                f"| {row['way']} | {row['p50_ms']:.2f} | {row['min_ms']:.2f} "
                f"| {base / row['p50_ms']:.0f} | {row['peak_mib']:.1f} "
                f"| {row['pixels_unlike_reference']} of {case['num_pixels']} |"
            )
        lines.append("")
    cpu = cpu_of(found["environment"])
    lines.append(
        "Logits of the trained LRASPP on CamVid images (11 classes; the others are planes that "
        "nearly never win, so that time and memory are those of as many classes), all ways in "
        f"turn in one run on {cpu}; peak memory above what the process held. Made by "
        "`benchmarks/label_kernel.py`."
    )
    return "\n".join(lines)


def calibration() -> str:
    rows = read("calibration_options")["rows"]
    base = {row["model"]: row["mean_iou"] for row in rows if row["options"] == "fp32"}
    lines = [
        "| model | calibration | decides as fp32, % | delta mIoU, points | images |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row["options"] != "fp32":
            delta = 100 * (row["mean_iou"] - base[row["model"]])
            images = "all" if row["every"] == 1 else f"1 of {row['every']}"
            lines.append(
                f"| {row['model']} | {row['options']} | {100 * row['agreement']:.2f} "
                f"| {delta:+.2f} | {images} |"
            )
    lines.append(
        "\nGraphs of onnx-int8 by its shipped policy, 32 calibration images. Made by "
        "`benchmarks/calibration_options.py`."
    )
    return "\n".join(lines)


def calibration_memory() -> str:
    found = read("calibration_memory")
    lines = ["| images | peak memory, MiB | seconds |", "|---|---|---|"]
    lines += [
        f"| {row['images']} | {row['peak_memory_mib']} | {row['seconds']:.0f} |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, "\nMade by `benchmarks/calibration_memory.py`."])


def policies() -> str:
    lines = []
    for file in sorted((HERE / "results").glob("int8_policies_*.json")):
        found = read(file.stem)
        images = {measured["images"] for measured in found["models"].values()}
        heading = f"{found['target']}, {found['threads']} threads, {cpu_of(found)}"
        load = found["load_average"][0]
        lines += [
            f"**{heading}** (flips on {min(images)} images; load average at the end {load:.1f})\n",
            "| model | policy | borders | flips | hard flips | / shipped | interval |",
            "|---" * 7 + "|",
        ]
        for model, measured in found["models"].items():
            for name, row in measured["variants"].items():
                low, high = row["interval"]
                lines.append(
                    f"| {model} | {name} | {row['borders']} | {row['flip_rate']:.2%} "
                    f"| {row['hard_flip_rate']:.1e} | {row['ratio']:.3f} "
                    f"| {low:.3f}..{high:.3f} |"
                )
        lines.append("")
    lines.append(
        "Flips against onnx-fp32 on CamVid's validation images; ratios of blocks in which all "
        "variants ran in turn, each in processes of its own. What the shipped policy "
        "under another name is off 1 is noise. Made by `benchmarks/int8_policies.py`."
    )
    return "\n".join(lines)
