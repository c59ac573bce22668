"""`bench --profile`: where an artifact's time goes, layer by layer, as a table and a picture.

The profile is made in a worker, as any measurement, so that a runtime's crash is an error.
`profile.json` and `profile.svg` are written into the folder.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.bench.child import BenchChild
from segdeploy.bench.entry import Entry, batch_file
from segdeploy.bench.flame import flame_svg
from segdeploy.bench.inputs import choose_sizes
from segdeploy.bench.plan import BenchPlan
from segdeploy.core.errors import ConfigError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import load_folder
from segdeploy.core.lock import run_lock


@dataclass(frozen=True)
class LayerProfile:
    """Layers {name, type, path, ms, share} of one call, longest first; `other_ms` is between them.

    `share` is of `total_ms`, in [0, 1].
    """

    target: str
    path: str
    runtime: str
    input_shape: tuple[int, ...]
    total_ms: float
    layers: list[dict[str, Any]]

    @property
    def other_ms(self) -> float:
        """What the layers do not explain; below 0 where they ran side by side."""
        return self.total_ms - sum(float(layer["ms"]) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "target": self.target,
            "path": self.path,
            "runtime": self.runtime,
            "input_shape": list(self.input_shape),
            "total_ms": self.total_ms,
            "other_ms": self.other_ms,
            "layers": self.layers,
        }


def profile_artifact(path: Path, plan: BenchPlan, *, save: bool = True) -> LayerProfile:
    """Return the profile of one checkpoint or artifact, on the CPU.

    Args:
        path: Its folder.
        plan: Size, batch size, threads and seconds are heeded.
        save: Whether to write `profile.json` and `profile.svg` into the folder.

    Raises:
        ArtifactError: If the folder is damaged, or its runtime crashed.
        ConfigError: If its runtime has no profiler, or the plan asks for what a profile has not.
    """
    check_profile_plan(plan)
    folder = load_folder(path)
    (size,) = choose_sizes([folder], plan.size, plan.batch_size)
    entry = Entry(folder, size)
    with run_lock(folder.path.resolve().parent) if save else ExitStack():
        found = _ask(entry, plan)
        layers = sorted(found["layers"], key=lambda layer: -layer["ms"])
        total = found["total_ms"]
        for layer in layers:
            layer["share"] = layer["ms"] / total if total else 0.0
        shape = tuple(found["input_shape"])
        made = LayerProfile(folder.name, str(path), found["runtime"], shape, total, layers)
        if save:
            write_json(folder.path / "profile.json", made.to_dict())
            picture = flame_svg(folder.name, total, layers)
            write_bytes(folder.path / "profile.svg", picture.encode())
    return made


def check_profile_plan(plan: BenchPlan) -> None:
    """Refuse what a profile cannot heed: it is one process that runs one batch, layer by layer.

    Raises:
        ConfigError: If the plan is for another device, or asks for more than that.
    """
    if plan.device != "cpu":
        raise ConfigError(
            f"Profiles are made on the CPU, asked was '{plan.device}'.",
            hint="For a GPU: nsys profile segdeploy bench ARTIFACT --in-process --device cuda",
        )
    asked = {
        "--end-to-end": plan.end_to_end,
        "--launches": plan.launches > 1,
        "--streams": plan.streams > 1,
        "--sustained": plan.sustained_s > 0,
        "--in-process": plan.in_process,
        "--warmup": plan.warmup_s != BenchPlan().warmup_s,
        "--batch-size with several sizes": len(plan.batch_sizes) > 1,
    }
    found = [option for option, is_asked in asked.items() if is_asked]
    if found:
        raise ConfigError(
            f"--profile is of one batch in one worker, asked was also {', '.join(found)}.",
            hint="Leave one of them out: a profile is a run of its own.",
        )


def _ask(entry: Entry, plan: BenchPlan) -> dict[str, Any]:
    entry.runner = BenchChild(entry.folder, plan.num_threads, plan.longest_answer_s, plan.affinity)
    try:
        return entry.ask(
            "profile",
            path=str(entry.folder.path.resolve()),
            batch=batch_file(entry, plan, plan.batch_size),
            threads=plan.num_threads,
            seconds=plan.seconds,
        )
    finally:
        entry.stop()
