"""`segdeploy.toml`: what `segdeploy run` is asked to do, checked before anything is started.

    [run]                               out, data, calibration, stages, device
    [[model]]                           checkpoint, targets, sizes (or artifacts), name
    [evaluate] [bench] [gate] [history] the settings of these stages

Order of settings: default < file < flag, as for training. Paths are taken from the working
directory, as on the command line. An unknown key is refused with the nearest known one: a gate
whose `latencey` was dropped silently would pass everything. The resolved settings are written into
the run as `run.toml`, which is a file of the same form.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from segdeploy.core.errors import ConfigError
from segdeploy.export.foreign import ForeignOptions
from segdeploy.workflows.run_tables import (
    BenchTable,
    EvaluateTable,
    GateTable,
    HistoryTable,
    ModelTable,
    RunTable,
    Stage,
)

RESOLVED = "run.toml"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The whole file."""

    run: RunTable
    model: tuple[ModelTable, ...]
    evaluate: EvaluateTable = field(default_factory=EvaluateTable)
    bench: BenchTable = field(default_factory=BenchTable)
    gate: GateTable = field(default_factory=GateTable)
    history: HistoryTable = field(default_factory=HistoryTable)

    def __post_init__(self) -> None:
        labels = [model.label for model in self.model]
        if not labels:
            raise ConfigError("There is no [[model]].", hint="Add one with a checkpoint.")
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(
                f"Two [[model]] are called {twice[0]}.", hint="Give each a name of its own."
            )
        stages = [self.stages_of(model) for model in self.model]
        if not any(stages):
            raise ConfigError(
                "No [[model]] has a stage left to do.", hint="See stages, and --only."
            )
        self.gate.plan(self.bench, "cpu", None)

    def stages_of(self, model: ModelTable) -> tuple[Stage, ...]:
        """Return the stages of a model, in order.

        Raises:
            ConfigError: If one was asked for by name and lacks what it needs.
        """
        lacking: dict[Stage, str] = {}
        if self.data_of(model) is None:
            lacking[Stage.EVALUATE] = "data"
        if self.gate.baseline is None:
            lacking[Stage.GATE] = "a baseline"
        asked = model.stages if model.stages is not None else self.run.stages
        if asked is None:
            return tuple(stage for stage in Stage if stage not in lacking)
        for stage in asked:
            if stage in lacking:
                raise ConfigError(f"The stage {stage} of {model.label} needs {lacking[stage]}.")
        return tuple(stage for stage in Stage if stage in asked)

    @property
    def inputs(self) -> list[Path]:
        """The files and folders that are read, but for data sets."""
        own = [place for model in self.model for place in (model.checkpoint, *model.artifacts)]
        return [Path(place) for place in (*own, self.gate.baseline) if place is not None]

    def data_of(self, model: ModelTable) -> str | None:
        """Return the data set that a model is evaluated on."""
        return model.data or self.run.data

    def calibration_of(self, model: ModelTable) -> str | None:
        """Return the data set that chooses a model's int8 ranges."""
        return model.calibration or self.run.calibration


def load_run_config(path: Path, overrides: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Return the settings of a file with flags on top; None flags do not count.

    The stages of a flag leave out those of every `[[model]]`, even where it says its own.

    Args:
        path: `segdeploy.toml`.
        overrides: By table: `{"gate": {"baseline": "runs/base"}}`.

    Raises:
        ConfigError: If the file is missing or no TOML, or a key or value is wrong.
    """
    plain = _read_toml(path)
    _check_keys(plain, RunConfig, str(path))
    _check_finite(plain, str(path))
    for table, settings in overrides.items():
        given = {name: value for name, value in settings.items() if value is not None}
        if given:
            plain[table] = {**plain.get(table, {}), **given}
    if "out" not in plain.get("run", {}):
        raise ConfigError(
            f"{path} does not say where the run goes.",
            hint='Set [run] out = "runs/NAME", or --out.',
        )
    plain.setdefault("model", [])
    if (only := overrides.get("run", {}).get("stages")) is not None:
        _leave_out(plain["model"], only)
    try:
        return msgspec.convert(plain, RunConfig)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(f"{path} is not valid: {error}.") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read {path}: {error.strerror or error}.",
            hint="docs/ci.md shows a complete segdeploy.toml.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


_TABLES: dict[str, type] = {
    "run": RunTable, "model": ModelTable, "evaluate": EvaluateTable, "bench": BenchTable,
    "gate": GateTable, "history": HistoryTable, "onnx": ForeignOptions,
}  # fmt: skip


def _check_keys(plain: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse a key that is none, in this table and in those below, with the nearest known one."""
    known = [each.name for each in fields(cast(Any, kind))]
    for key, value in plain.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"{where} has an unknown setting '{key}'.", hint=hint)
        if kind not in {RunConfig, ModelTable} or key not in _TABLES:
            continue
        is_list, said = key == "model", f"[[{key}]]" if key == "model" else f"[{key}]"
        if not isinstance(value, list if is_list else Mapping):
            what = "a list of tables" if is_list else "a table"
            raise ConfigError(f"{where}: {key} is {what}.", hint=f"Write {said}.")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                _check_keys(each, _TABLES[key], f"{where}: [{key}]")


def _check_finite(value: Any, where: str) -> None:
    """Refuse `inf` and `nan`, which TOML has and no setting means."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}.", hint="Write a finite number.")
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_finite(each, f"{where}: {key}")
    if isinstance(value, list):
        for each in value:
            _check_finite(each, where)


def _leave_out(models: Any, only: Collection[str]) -> None:
    for model in models if isinstance(models, list) else ():
        stages = model.get("stages") if isinstance(model, dict) else None
        if isinstance(stages, list):
            model["stages"] = [stage for stage in stages if stage in only]


def run_toml(config: RunConfig) -> bytes:
    """Return the resolved settings as TOML; those that are None are left out."""
    parts = []
    for name, value in _plain(config).items():
        tables = value if isinstance(value, list) else [value]
        head = f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
        parts += ["\n".join([head, *_lines(table)]) for table in tables]
    return ("\n\n".join(parts) + "\n").encode(errors="replace")


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(_lines(value)) + " }"
    # JSON's escapes are TOML's, but for pairs of surrogates and the one control character above.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    """Return dataclasses as dictionaries without what is None."""
    if is_dataclass(value):
        found = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: _plain(each) for name, each in found.items() if each is not None}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
