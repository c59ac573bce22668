"""Times that people feel: `--help`, `list models`, the whole demo.

    .venv/bin/python benchmarks/timings.py

Writes benchmarks/results/timings.json. Run it on an idle machine; the median of ten is kept.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from segdeploy.core.files import write_json
from segdeploy.measure.environment import describe_environment

HERE = Path(__file__).parent
SEGDEPLOY = str(Path(sys.executable).with_name("segdeploy"))


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([SEGDEPLOY, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    found: dict[str, object] = {}
    for name, arguments in (("help", ["--help"]), ("list_models", ["list", "models"])):
        seconds(*arguments)
        samples = [seconds(*arguments) for _ in range(10)]
        found[name] = {"median_s": statistics.median(samples), "samples_s": samples}
    scratch = tempfile.mkdtemp()
    found["demo"] = {"seconds": seconds("demo", "--out", f"{scratch}/demo")}
    shutil.rmtree(scratch)
    found["environment"] = describe_environment()
    write_json(HERE / "results" / "timings.json", found)
    print({k: v for k, v in found.items() if k != "environment"})
