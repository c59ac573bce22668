"""Run README's commands on a demo run, and keep what they print.

    .venv/bin/segdeploy demo --out runs/demo && .venv/bin/python benchmarks/readme_commands.py

Writes benchmarks/results/readme_commands.json; `render_docs.py` puts the output into README.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from segdeploy.core.files import write_json

HERE = Path(__file__).parent
RUN = "runs/demo"
COMMANDS = (
    (
        f"segdeploy export {RUN}/checkpoint --target onnx-int8 --out {RUN} "
        "--calibration synthetic --input image --output labels"
    ),
    f"segdeploy verify {RUN}/onnx-int8 --data synthetic",
    f"segdeploy evaluate {RUN}/onnx-int8 --data synthetic",
    f"segdeploy bench {RUN}/checkpoint {RUN}/onnx-fp32 {RUN}/onnx-int8 --size 96x128",
    f"segdeploy predict {RUN}/onnx-int8 photos --out masks",
    f"segdeploy report {RUN}",
)


def run(command: str, environment: dict[str, str]) -> dict[str, object]:
    words = shlex.split(command)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *words],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    output = re.sub(r"[^\n]*\r", "", done.stdout + done.stderr).rstrip()
    print(f"$ {command}\n{output}\n")
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}")
    return {"command": command, "output": output, "seconds": time.perf_counter() - started}


def draw_photos(folder: Path) -> None:
    """Write two synthetic pictures, so that `predict` has files to read."""
    from PIL import Image

    from segdeploy.data import open_dataset

    folder.mkdir(exist_ok=True)
    data = open_dataset("synthetic:240x320", "test")
    for index in range(2):
        Image.fromarray(data[index].image).save(folder / f"scene{index}.png")


if __name__ == "__main__":
    draw_photos(Path("photos"))
    found = [run(command, {**os.environ, "COLUMNS": "100"}) for command in COMMANDS]
    write_json(HERE / "results" / "readme_commands.json", found)
