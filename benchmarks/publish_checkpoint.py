"""Copy a trained checkpoint into benchmarks/checkpoints/, weights stored as fp16.

    .venv/bin/python benchmarks/publish_checkpoint.py runs/lraspp-camvid NAME

Keeps the recipe (train.toml) and the log beside it, so that the run can be repeated and judged; of
where its data lay and where it was made only the names are kept.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from segdeploy.core.folder import load_checkpoint
from segdeploy.train.config import config_toml, load_config
from segdeploy.zoo.checkpoint import load_module, save_checkpoint

HERE = Path(__file__).parent


def publish(run: Path, name: str) -> Path:
    source = load_checkpoint(run / "checkpoint")
    manifest = source.manifest
    target = HERE / "checkpoints" / name
    recipe = load_config(source.path / "train.toml", {})
    init = recipe.init and "/".join(Path(recipe.init).parts[-2:])
    recipe = replace(recipe, data=recipe.data.partition(":")[0], out=f"runs/{name}", init=init)
    options = dict(manifest.options)
    if init:
        options["init"] = options["init"] | {"source": init}
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
        options=options,
        companions={
            "train.toml": config_toml(recipe),
            "log.jsonl": (run / "log.jsonl").read_bytes(),
        },
        half_storage=True,
    )
    return target


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
