"""The models that were trained here: scores on their validation split, and learning curves.

    .venv/bin/python benchmarks/trained_models.py [NAME ...] [--data ROOT] [--run NAME=RUN]

NAME is a recipe of benchmarks/recipes/. Its checkpoint is benchmarks/checkpoints/NAME, or that of
RUN, whose log is then kept in benchmarks/results/. Writes benchmarks/results/trained_models.json
and one picture of curves per model, docs/pictures/NAME.svg; rows of other names stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import load_checkpoint
from segdeploy.evaluate import evaluate
from segdeploy.measure.environment import describe_environment
from segdeploy.report.plots import Series, line_plot

HERE = Path(__file__).parent
RESULT = HERE / "results" / "trained_models.json"
PICTURES = HERE.parent / "docs" / "pictures"
NAMES = sorted(p.stem for p in (HERE / "recipes").glob("*.toml") if not p.stem[-1].isdigit())
LOOK = (
    "text{font:10.5px sans-serif;fill:#5d6b7c}.grid{stroke:#c8ced6}"
    "polyline{fill:none;stroke-width:2}.l0,.k0{stroke:#2f6fde}.l1,.k1{stroke:#e4572e}"
)


def measure(name: str, data: str, run: Path | None) -> dict[str, Any]:
    folder = (run / "checkpoint") if run else HERE / "checkpoints" / name
    checkpoint = load_checkpoint(folder)
    if run:
        kept = HERE / "results" / f"{name}.log.jsonl"
        write_bytes(kept, (run / "log.jsonl").read_bytes())
    recipe = tomllib.loads((folder / "train.toml").read_text(encoding="utf-8"))
    score = evaluate(folder, data=data, save=False)
    epochs = read_epochs(name)
    return {
        "name": name,
        "model": checkpoint.manifest.model,
        "data": score.data,
        "num_images": score.num_images,
        "epochs": len(epochs),
        "train_minutes": sum(epoch["seconds"] for epoch in epochs) / 60,
        "augment": {key: recipe[key] for key in ("crop", "scale", "stretch") if key in recipe},
        "is_published": run is None,
        "size_mib": checkpoint.size_mib,
        "mean_iou": score.mean_iou,
        "mean_iou_ci": score.mean_iou_ci,
        "pixel_accuracy": score.pixel_accuracy,
        "class_iou": score.class_iou,
        "foreground_dice": score.foreground_dice if score.task == "binary" else None,
        "foreground_iou": score.foreground_iou if score.task == "binary" else None,
    }


def read_epochs(name: str) -> list[dict[str, float]]:
    """Return the lines that were logged, those of a first stage before those of the last."""
    stages = (
        HERE / "results" / f"{name}-stage1.log.jsonl",
        HERE / "results" / f"{name}.log.jsonl",
        HERE / "checkpoints" / name / "log.jsonl",
    )
    texts = [path.read_text(encoding="utf-8") for path in stages if path.is_file()]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def draw_curves(name: str) -> None:
    """Write the curves: training loss, and validation mIoU beside it."""
    epochs = read_epochs(name)
    plots = []
    for title, key in (("Training loss", "loss"), ("Validation mIoU", "mean_iou")):
        points = [(number, epoch.get(key)) for number, epoch in enumerate(epochs)]
        plots.append((title, line_plot(title, [Series(title, points)])))
    inner = [
        f'<g transform="translate({370 * place},18)"><text x="46" y="-4">{name}: {title}</text>'
        + re.sub(r"</?svg[^>]*>", "", re.findall(r"<svg.*</svg>", plot, re.DOTALL)[0])
        + "</g>"
        for place, (title, plot) in enumerate(plots)
        if plot
    ]
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {370 * len(inner)} 232">'
        f'<style>{LOOK}</style><rect width="100%" height="100%" fill="#fff"/>{"".join(inner)}</svg>'
    )
    PICTURES.mkdir(exist_ok=True)
    write_bytes(PICTURES / f"{name}.svg", text.encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES)
    default = os.environ.get("SEGDEPLOY_DATA", str(HERE.parent.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--run", action="append", default=[], help="NAME=RUN")
    arguments = parser.parse_args()
    runs = {name: Path(run) for name, _, run in (each.partition("=") for each in arguments.run)}
    rows = read_rows()
    for name in arguments.names:
        data = name.rpartition("-")[2]
        rows[name] = measure(name, f"{data}:{arguments.data / data}", runs.get(name))
        draw_curves(name)
        document = {"models": [rows[key] for key in sorted(rows)]}
        write_json(RESULT, document | {"environment": describe_environment()})
        print(f"{name:45} mIoU {rows[name]['mean_iou']:.4f} {rows[name]['mean_iou_ci']}")


def read_rows() -> dict[str, dict[str, Any]]:
    """Return what is known already, by name."""
    if not RESULT.is_file():
        return {}
    return {row["name"]: row for row in json.loads(RESULT.read_bytes())["models"]}


if __name__ == "__main__":
    main()
