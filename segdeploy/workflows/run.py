"""`segdeploy run`: checkpoints x targets x sizes through all stages, as one file asks for.

    out/MODEL/TARGET/       an artifact with parity.json, eval.json, bench.json, gate.json
    out/MODEL/report.html   about one model
    out/run.json            what every stage found, and by which key
    out/run.toml            the resolved settings

What can be refused is refused before the first build. From then on a failure is an outcome: the
other targets and models go on, and the exit code is decided at the end (`run_result`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from segdeploy.backends import BACKENDS
from segdeploy.core.errors import ConfigError, DataError, SegDeployError
from segdeploy.core.lock import run_lock
from segdeploy.core.session import check_device
from segdeploy.core.target import ExportTarget
from segdeploy.data import TRAIN, VAL, open_dataset
from segdeploy.export import ForeignOptions
from segdeploy.graph.policy import load_policy
from segdeploy.workflows.history import append_history, load_history
from segdeploy.workflows.run_baseline import check_baseline, check_matches
from segdeploy.workflows.run_config import RunConfig
from segdeploy.workflows.run_export import (
    Progress,
    Work,
    export_model,
    in_words_of_the_file,
    is_int8,
    plan_or_export,
)
from segdeploy.workflows.run_memory import MEMORY, Memory
from segdeploy.workflows.run_result import RunResult, StageOutcome
from segdeploy.workflows.run_stages import (
    bench_model,
    by_input,
    evaluate_artifact,
    gate_artifact,
    report_model,
)
from segdeploy.workflows.run_tables import ModelTable, Stage, folder_name


def run(
    config: RunConfig,
    *,
    force: bool = False,
    say: Callable[[str], object] = lambda _: None,
    progress: Progress = lambda *_: None,
) -> RunResult:
    """Do what the settings ask for, and return what was found; `bool()` means nothing failed.

    Example:
        `run(load_run_config(Path("segdeploy.toml"), {})).exit_code`

    Args:
        config: Of `load_run_config`.
        force: Do every stage again, changed or not.
        say: Called with a line for people before each stage.
        progress: Called with (what, done, total).

    Raises:
        ConfigError: If a setting is wrong; nothing has been started then.
        DataError: If a data set is not there, images that calibrate int8 would judge it too, or
            the history is another file.
        ArtifactError: If `out` or the history cannot be written.
        RunLockedError: If another process works in `out`.
    """
    check_run(config)
    _check_calibration(config, force=force)
    is_measured = any(Stage.BENCH in config.stages_of(model) for model in config.model)
    if is_measured and config.history.file is not None:
        _check_history(Path(config.history.file))
    start = time.perf_counter()
    out = Path(config.run.out)
    with run_lock(out):
        memory = Memory(out, config, force=force)
        work = Work(config, out, memory, force, _once(say), progress)
        for model in config.model:
            _run_model(work, model)
    outcomes = memory.outcomes
    if memory.error is not None:
        outcomes.append(StageOutcome.of_error("run", "", MEMORY, memory.error))
    if config.gate.baseline is not None:
        outcomes = check_matches(outcomes, Path(config.gate.baseline))
    return RunResult(out=out, outcomes=outcomes, seconds=time.perf_counter() - start)


def _check_history(file: Path) -> None:
    """Check that lines can be added, and that a file that is there already is a history."""
    if file.is_file() and file.stat().st_size:
        load_history(file)
    append_history(file, [])


def _once(say: Callable[[str], object]) -> Callable[[str], object]:
    """Return `say` without lines that were said before: each target's export says them anew."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


def check_run(config: RunConfig) -> None:
    """Refuse what can be refused without any work.

    Raises:
        ConfigError, DataError: As `run`.
    """
    check_device(config.run.device)
    is_gated = any(Stage.GATE in config.stages_of(model) for model in config.model)
    if is_gated and config.gate.baseline is not None:
        check_baseline(Path(config.gate.baseline), Path(config.run.out))
    for model in config.model:
        for target in model.targets:
            BACKENDS.get(ExportTarget.parse(target).backend)
        for place in (model.checkpoint, *model.artifacts):
            if place is not None and not Path(place).exists():
                raise ConfigError(
                    f"[[model]] {model.label}: {place} is not there.",
                    hint="Paths are taken from the working directory.",
                )
        if (data := config.data_of(model)) is not None:
            is_scored = Stage.EVALUATE in config.stages_of(model)
            open_dataset(data, config.evaluate.split if is_scored else VAL)
        _check_int8(config, model)
        _check_foreign(model)


def _check_int8(config: RunConfig, model: ModelTable) -> None:
    calibration = config.calibration_of(model)
    for target in filter(is_int8, model.targets):
        if calibration is None:
            raise ConfigError(
                f"[[model]] {model.label}: {target} needs images to choose its ranges from.",
                hint='Set calibration = "NAME[:ROOT]", whose train split they are taken from.',
            )
        load_policy(model.int8_policy, ExportTarget.parse(target).backend)
    if calibration is not None and model.targets:
        open_dataset(calibration, TRAIN)


def _check_calibration(config: RunConfig, *, force: bool) -> None:
    """Refuse calibration images that would judge, before anything is built.

    A model's int8 artifacts share images and judges: the first that is to be built tells.
    """
    for model in config.model:
        if Stage.EXPORT not in config.stages_of(model):
            continue
        for size, target in product(model.sizes, filter(is_int8, model.targets)):
            try:
                planned = plan_or_export(config, model, target, size, None, force=force)
            except DataError:
                raise
            except SegDeployError:  # Its stage says so; the others go on.
                continue
            if not planned.reused:
                break


def _check_foreign(model: ModelTable) -> None:
    source = Path(model.checkpoint or "")
    said = model.onnx or ForeignOptions()
    missing = [name for name in ("scale", "mean", "std") if getattr(said, name) is None]
    if source.is_file() and missing:
        raise ConfigError(
            f"[[model]] {model.label}: how pixels become the input of {source} is not in the file, "
            f"and {', '.join(missing)} of `onnx` not given.",
            hint="The input is (pixel x scale - mean) / std, pixel 0..255. Usual for PyTorch:\n"
            "onnx = { scale = 0.00392156862745098, mean = [0.485, 0.456, 0.406], "
            "std = [0.229, 0.224, 0.225] }",
        )


def _run_model(work: Work, model: ModelTable) -> None:
    stages = work.config.stages_of(model)
    if not stages:
        return
    try:
        paths = export_model(work, model)
    except SegDeployError as error:  # Nothing of this model can be read.
        work.say(f"{model.label}: {error.message}")
        told = in_words_of_the_file(error)
        work.memory.keep(StageOutcome.of_error(model.label, "", "export", told))
        return
    if Stage.EVALUATE in stages:
        for path in paths:
            evaluate_artifact(work, model, path)
    if Stage.BENCH in stages:
        for group in by_input(paths):
            bench_model(work, model, group)
    if Stage.GATE in stages:
        for path in paths:
            gate_artifact(work, model, path)
    if Stage.REPORT in stages and paths:
        report_model(work, model)


@dataclass(frozen=True)
class PlannedArtifact:
    """One row of `--dry-run`. `export` is what its first stage would do, or why it cannot."""

    model: str
    artifact: str
    export: str
    stages: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return one entry of the JSON document of `run --dry-run`."""
        return {
            "model": self.model, "artifact": self.artifact, "export": self.export,
            "stages": list(self.stages),
        }  # fmt: skip


def plan_run(config: RunConfig) -> list[PlannedArtifact]:
    """Return what `run` would do, an entry for each artifact; nothing is written.

    Raises:
        ConfigError, DataError: As `run`.
    """
    check_run(config)
    planned = []
    for model in filter(config.stages_of, config.model):
        stages = tuple(map(str, config.stages_of(model)))
        rows = [(folder_name(place), "copy") for place in model.artifacts]
        rows += [
            _plan(config, model, target, size) for size in model.sizes for target in model.targets
        ]
        planned += [PlannedArtifact(model.label, name, work, stages) for name, work in rows]
    return planned


def _plan(config: RunConfig, model: ModelTable, target: str, size: str) -> tuple[str, str]:
    try:
        outcome = plan_or_export(config, model, target, size, None)
    except SegDeployError as error:
        return target, f"refused: {error.message}"
    return outcome.path.name, "reuse" if outcome.reused else "build"
