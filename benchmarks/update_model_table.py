"""Write segdeploy/zoo/models.json, the table behind `segdeploy list models`.

Run it after adding a model: .venv/bin/python benchmarks/update_model_table.py
"""

from __future__ import annotations

from pathlib import Path

from segdeploy.core.files import write_json
from segdeploy.zoo import MODELS
from segdeploy.zoo.table import TABLE_CLASSES, model_row

if __name__ == "__main__":
    target = Path(__file__).parent.parent / "segdeploy" / "zoo" / "models.json"
    write_json(target, [model_row(name) for name in MODELS])
    print(f"{target}: {len(MODELS.names())} models at {TABLE_CLASSES} classes")
