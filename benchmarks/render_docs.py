"""Put the figures of benchmarks/results/ into README.md and docs/, between their markers.

    .venv/bin/python benchmarks/render_docs.py [--check]

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. `--check` changes nothing and
exits 1 if a page is not what the results say.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # Started as a file, not as a module.

from benchmarks import render_bench, render_ci, render_gate, render_int8, render_peers
from benchmarks.render_parts import cpu_of, read

HERE = Path(__file__).parent
MOST_LINES = 4  # Of one command: README stays short.
FRAME = set(" ─━┏┳┓┡╇┩┌┬┐└┴┘|:-")  # Lines of these alone are left out.
README = HERE.parent / "README.md"


def camvid() -> str:
    found = read("camvid_targets")
    base = found["rows"][0]
    lines = [
        "| target | latency / eager | mIoU | delta, points | flips | size, MiB | export, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        is_base = row is base
        flips = "-" if row["flip_rate"] is None else f"{100 * row['flip_rate']:.3f} %"
        seconds = "-" if row["export_seconds"] is None else f"{row['export_seconds']:.0f}"
        delta = "-" if is_base else f"{100 * (row['mean_iou'] - base['mean_iou']):+.2f}"
        lines.append(
            f"| {row['target']} | {row['latency_ratio']:.2f} | {row['mean_iou']:.4f} | {delta} "
            f"| {flips} | {row['size_mib']:.1f} | {seconds} |"
        )
    environment = found["environment"]
    height, width = found["size"]
    lines.append(
        f"\nCamVid validation at {height}x{width}, batch 1, one interleaved run on "
        f"{cpu_of(environment)}; eager PyTorch "
        f"{base['latency_ms']['p50']:.1f} ms. Made by `benchmarks/camvid_targets.py`."
    )
    return "\n".join(lines)


def commands() -> str:
    blocks = []
    for each in read("readme_commands"):
        lines = each["output"].splitlines()
        shown = [line for line in lines if set(line) - FRAME]
        cut = shown if len(shown) <= MOST_LINES else [*shown[: MOST_LINES - 1], "..."]
        blocks.append("\n".join([f"$ {each['command']}", *(line.rstrip() for line in cut)]))
    return "```console\n" + "\n\n".join(blocks) + "\n```"


def parity() -> str:
    found = read("camvid_targets")
    shapes = ["x".join(map(str, each["shape"])) for each in found["sizes"]]
    lines = [
        "| target | flips (verify) | hard flips | " + " | ".join(shapes) + " |",
        "|---" * (3 + len(shapes)) + "|",
    ]
    for row in found["rows"][1:]:
        at_size = [f"{each['flip_rate'][row['target']]:.1e}" for each in found["sizes"]]
        lines.append(
            f"| {row['target']} | {row['flip_rate']:.1e} | {row['hard_flip_rate']:.1e} | "
            + " | ".join(at_size)
            + " |"
        )
    return "\n".join(lines)


def zoo() -> str:
    found = read("zoo")
    lines = [
        (
            "| model | family | parameters | published | GMAC | logits equal to | dynamic ONNX "
            "| TorchScript | noise | flips | export, s | ONNX, MiB |"
        ),
        "|---" * 12 + "|",
    ]
    listed = json.loads((HERE.parent / "segdeploy" / "zoo" / "models.json").read_bytes())
    lines += [_zoo_row(row, found[row["name"]]) for row in listed]
    return "\n".join(lines)


def _zoo_row(listed: dict[str, Any], found: dict[str, Any]) -> str:
    build, export = found["build"], found["export"]
    counts = build["published"]
    is_equal = all(row["published"] == row["ours"] for row in counts)
    published = (
        ("equal" if is_equal else "DIFFERS") + f" ({counts[0]['system']})" if counts else "-"
    )
    reference = build["reference"]
    library = {"segmentation-models-pytorch": "SMP"}.get
    equal = (
        f"{library(reference['library'], reference['library'])}: {reference['max_relative']:.0e}"
        if reference
        else "-"
    )
    onnx = max(row["onnx"]["max_relative"] for row in export["rows"])
    flips = max(row["onnx"]["flip_rate"] for row in export["rows"])
    traced = [row["torchscript"] for row in export["rows"]]
    script = export["torchscript_error"] or f"yes, {max(row['max_relative'] for row in traced):.0e}"
    sizes = "" if export["is_dynamic"] else "static only, "
    return (
        f"| {listed['name']} | {build['family']} | {listed['num_parameters']:,} | {published} "
        f"| {listed['macs'] / 1e9:.2f} | {equal} | {sizes}{onnx:.0e} | {script} "
        f"| {export['noise_floor']:.0e} | {flips:.0e} "
        f"| {export['export_seconds']:.0f} | {export['onnx_mib']:.0f} |"
    )


def zoo_training() -> str:
    found = read("zoo")
    lines = [
        "| model | create, s | MiB | fp32 loss, steps 1-5 | 16-20 | bf16, steps 1-5 | 16-20 |",
        "|---" * 7 + "|",
    ]
    for name, row in found.items():
        build, fp32, bf16 = row["build"], row["train"]["none"], row["train"]["bf16"]
        lines.append(
            f"| {name} | {build['create_seconds']:.2f} | {build['create_mib']:.0f} "
            f"| {fp32['losses'][0]:.2f} | {fp32['losses'][-1]:.2f} "
            f"| {bf16['losses'][0]:.2f} | {bf16['losses'][-1]:.2f} |"
        )
    return "\n".join(lines)


def kills() -> str:
    found = read("kills")
    is_equal = "is equal" if found["equal_to_undisturbed"] else "DIFFERS"
    return (
        f"{found['resumed']} of {found['kills']} kills resumed, {found['hit_a_write']} of them "
        f"within a write and {found['of_two_processes']} in runs of two processes; "
        f"iterations done again after a kill, at most: {found['most_steps_lost']}. "
        f"Each final checkpoint {is_equal} by digest to that of a run that was never killed."
    )


def throughput() -> str:
    found = read("train_throughput")
    models = found["models"]
    sides = list(next(iter(models.values()))["times_plain"])
    lines = ["| images/s, times plain loop | " + " | ".join(models) + " |"]
    lines.append("|---" * (1 + len(models)) + "|")
    plain = [statistics.median(each["images_s"]["plain"]) for each in models.values()]
    lines.append("| plain loop, images/s | " + " | ".join(f"{p:.1f}" for p in plain) + " |")
    for side in sides:
        ratios = [each["times_plain"][side] for each in models.values()]
        shown = [f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})" for r in ratios]
        lines.append(f"| {side.replace('_', ' ')} | " + " | ".join(shown) + " |")
    cpu = cpu_of(found["environment"])
    lines.append(
        f"\nMedian over {found['rounds']} rounds and its 95 % interval; "
        f"batch {found['batch_size']}, "
        f"{found['workers']} workers, {found['threads']} threads, {found['device']}, {cpu}."
    )
    return "\n".join(lines)


def trained() -> str:
    lines = [
        "| recipe | mIoU | interval | foreground Dice | pixel accuracy | epochs | minutes | MiB |",
        "|---" * 8 + "|",
    ]
    found = read("trained_models")["models"]
    for row in found:
        low, high = row["mean_iou_ci"]
        dice = "-" if row["foreground_dice"] is None else f"{row['foreground_dice']:.4f}"
        lines.append(
            f"| {row['name']} | {row['mean_iou']:.4f} | {low:.3f}-{high:.3f} | {dice} "
            f"| {row['pixel_accuracy']:.4f} | {row['epochs']} | {row['train_minutes']:.0f} "
            f"| {row['size_mib']:.1f} |"
        )
    lines.append("")
    lines += [f"![Curves of {row['name']}](pictures/{row['name']}.svg)" for row in found]
    return "\n".join(lines)


def targets() -> str:
    found = read("target_matrix")
    base = {r["model"]: r.get("mean_iou") for r in found["rows"] if r["target"] == "onnx-fp32"}
    lines = [
        "| model | target | build, s | MiB | flips | hard flips | / eager | mIoU | points |",
        "|---" * 9 + "|",
    ]
    reasons: dict[str, int] = {}  # Why something did not run -> the number of its note.
    lines += [_target_row(row, base[row["model"]], reasons) for row in found["rows"]]
    height, width = found["size"]
    cpus = sorted({cpu_of(e) for e in found["bench_environment"].values()})
    on = f", on {', '.join(cpus)}" if cpus else ""
    lines.append(
        f"\n{height}x{width}, batch 1, {found['threads']} threads{on}. "
        "`/ eager`: latency against eager PyTorch, one interleaved run per model. Points: mIoU on "
        "CamVid's validation split against onnx-fp32 of the same size, for trained weights. `-`: "
        "not measured. Made by `benchmarks/target_matrix.py`."
    )
    lines += [f"\n{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join(lines)


def _target_row(row: dict[str, Any], base: float | None, reasons: dict[str, int]) -> str:
    if row.get("error"):
        return (
            f"| {row['model']} | {row['target']} | {row['error']} {row.get('hint') or ''} |"
            + 6 * " |"
        )

    def show(name: str, form: str, scale: float = 1.0) -> str:
        value = row.get(name)
        return "-" if value is None else format(scale * value, form)

    score = row.get("mean_iou")
    points = "-" if score is None or base is None else f"{100 * (score - base):+.2f}"
    flips = show("flip_rate", ".2e")
    if row.get("passed") is False:
        flips += f" (failed: {', '.join(row['failures'][:3])})"
    latency = show("latency_ratio", ".2f")
    if latency == "-" and row.get("run_error"):
        latency = f"note {reasons.setdefault(row['run_error'], len(reasons) + 1)}"
    return (
        f"| {row['model']} | {row['target']} | {show('build_seconds', '.0f')} "
        f"| {show('size_mib', '.1f')} | {flips} | {show('hard_flip_rate', '.1e')} | {latency} "
        f"| {show('mean_iou', '.4f')} | {points} |"
    )


def lint() -> str:
    lines = []
    found = read("lint_agreement")
    kinds = {
        "graphs made for it, and our exports": "rows",
        "exports of other converters": "converted",
        "ONNX's operator tests": "conformance",
    }
    for title, kind in kinds.items():
        lines += [
            f"| {title} | version | graphs | refused | lint agrees | missed | false alarms |",
            "|---|---|---|---|---|---|---|",
        ]
        for runtime, result in found.items():
            if kind not in result:
                continue
            each = lint_counts(result["rows"]) if kind == "rows" else result[kind]
            false = len(each["false_alarms"])
            missed = each["graphs"] - each["agree"] - false
            lines.append(
                f"| {runtime} | {result['version'].partition('-')[0]} | {each['graphs']} "
                f"| {each['refused']} | {each['agree']} | {missed} | {false} |"
            )
        lines.append("")
    rows = {name: {r["graph"]: r for r in result["rows"]} for name, result in found.items()}
    lines += ["| graph | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for graph in next(iter(rows.values())):
        cells = [lint_cell(each[graph]) for each in rows.values()]
        lines.append(f"| {graph} | " + " | ".join(cells) + " |")
    lines.append(
        "\nA rule in a cell: the runtime refuses the graph, and the lint names it by that rule. "
        "Made by `benchmarks/lint_agreement.py`."
    )
    return "\n".join(lines)


def lint_counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "graphs": len(rows),
        "refused": sum(not row["taken"] for row in rows),
        "agree": sum(row["agrees"] for row in rows),
        "false_alarms": [row for row in rows if row["taken"] and not row["agrees"]],
    }


def lint_cell(row: dict[str, Any]) -> str:
    if not row["agrees"]:
        return "**false alarm**" if row["taken"] else "**missed**"
    return "taken" if row["taken"] else ", ".join(f"`{rule}`" for rule in row["rules"])


BLOCKS = {
    HERE.parent / "docs" / "bench.md": {"closed_books": render_bench.closed_books},
    HERE.parent / "docs" / "ci.md": {"ci_trial": render_ci.ci_trial},
    HERE.parent / "docs" / "compare.md": {"peers": render_peers.peers},
    HERE.parent / "docs" / "gate.md": {
        "gate_errors": render_gate.gate_errors,
        "gate_simulation": render_gate.gate_simulation,
    },
    HERE.parent / "docs" / "labels.md": {
        "image_to_labels": render_int8.image_to_labels,
        "int8_bound": render_int8.int8_bound,
        "label_kernel": render_int8.label_kernel,
    },
    HERE.parent / "docs" / "lint.md": {"lint": lint},
    README: {"commands": commands, "peers_in_short": render_peers.peers_in_short},
    HERE.parent / "docs" / "numerics.md": {"parity": parity},
    HERE.parent / "docs" / "training.md": {
        "kills": kills,
        "throughput": throughput,
        "trained": trained,
    },
    HERE.parent / "docs" / "targets.md": {"camvid": camvid, "targets": targets},
    HERE.parent / "docs" / "calibration.md": {
        "calibration": render_int8.calibration,
        "calibration_memory": render_int8.calibration_memory,
    },
    HERE.parent / "docs" / "int8.md": {
        "int8_accuracy": render_int8.int8_accuracy,
        "int8_speed": render_int8.int8_speed,
        "policies": render_int8.policies,
    },
    HERE.parent / "docs" / "zoo.md": {"zoo": zoo, "training": zoo_training},
}


def render(text: str, blocks: dict[str, Callable[[], str]], page: str) -> str:
    for name, make in blocks.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        halves = re.split(pattern, text, flags=re.DOTALL)
        count = len(halves) // 3
        if count == 1:
            text = "".join([halves[0], halves[1], make(), "\n", *halves[2:]])
        if count != 1:
            raise SystemExit(f"{page} has {count} blocks '{name}', expected one")
    return text


if __name__ == "__main__":
    for page, blocks in BLOCKS.items():
        before = page.read_text(encoding="utf-8")
        after = render(before, blocks, page.name)
        if "--check" in sys.argv and before != after:
            raise SystemExit(f"{page.name} is not what benchmarks/results/ says: run this script")
        page.write_text(after, encoding="utf-8")
