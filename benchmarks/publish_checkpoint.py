"""Copy a trained checkpoint into benchmarks/checkpoints/, weights stored as fp16.

    .venv/bin/python benchmarks/publish_checkpoint.py runs/lraspp-camvid NAME

Keeps the recipe (train.toml) and the log beside it, so that the run can be repeated and judged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from segdeploy.core.folder import load_checkpoint
from segdeploy.zoo.checkpoint import load_module, save_checkpoint

HERE = Path(__file__).parent


def publish(run: Path, name: str) -> Path:
    source = load_checkpoint(run / "checkpoint")
    manifest = source.manifest
    target = HERE / "checkpoints" / name
    target.parent.mkdir(exist_ok=True)
    save_checkpoint(
        target,
        load_module(source),
        model=manifest.model,
        task=manifest.task,
        classes=manifest.classes,
        preprocess=manifest.preprocess,
        design_size=manifest.design_size,
        note=manifest.note,
        options=manifest.options,
        companions={
            "train.toml": (source.path / "train.toml").read_bytes(),
            "log.jsonl": (run / "log.jsonl").read_bytes(),
        },
        half_storage=True,
    )
    return target


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
