"""The tables of `segdeploy.toml`, each checked for itself when it is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from segdeploy.bench.plan import SECONDS, WARM_UP_S, BenchPlan
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.limits import GateLimits, parse_seconds
from segdeploy.core.sizes import parse_size, parse_sizes
from segdeploy.core.target import ExportTarget
from segdeploy.export.foreign import ForeignOptions
from segdeploy.workflows.gate import GatePlan


class Stage(StrEnum):
    """What can be chosen; verify belongs to export, as on the command line."""

    EXPORT = "export"
    EVALUATE = "evaluate"
    BENCH = "bench"
    GATE = "gate"
    REPORT = "report"


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """`[run]`. `stages` None is all that the other settings allow."""

    out: str
    data: str | None = None
    calibration: str | None = None
    calibration_images: int = 32
    stages: tuple[Stage, ...] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.calibration_images < 1:
            raise ConfigError(
                f"calibration_images must be at least 1, found {self.calibration_images}."
            )


@dataclass(frozen=True, kw_only=True)
class ModelTable:
    """One `[[model]]`: a checkpoint (or a foreign ONNX file) and its targets, or ready artifacts.

    `data`, `calibration` and `stages` replace those of `[run]`. `name` is the folder below `out`.
    `onnx` says what a foreign file does not say of itself (`docs/foreign.md`).
    """

    checkpoint: str | None = None
    targets: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("dynamic",)
    artifacts: tuple[str, ...] = ()
    name: str | None = None
    input: InputKind = InputKind.TENSOR
    output: OutputKind = OutputKind.LOGITS
    int8_policy: str = "default"
    data: str | None = None
    calibration: str | None = None
    stages: tuple[Stage, ...] | None = None
    onnx: ForeignOptions | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (not self.artifacts):
            raise ConfigError(
                "A [[model]] has either a checkpoint or artifacts.",
                hint='Set checkpoint = "RUN/checkpoint" and targets, or artifacts = ["..."].',
            )
        if bool(self.targets) != bool(self.checkpoint) or not self.sizes:
            raise ConfigError(
                f"The [[model]] {self.label} needs targets and sizes."
                if self.checkpoint
                else f"The [[model]] {self.label} has ready artifacts, and targets.",
                hint='Set targets = ["onnx-fp32", ...] beside a checkpoint.',
            )
        _refuse_twice("target", self.targets, [ExportTarget.parse(each) for each in self.targets])
        _refuse_twice("size", self.sizes, [parse_sizes(each) for each in self.sizes])
        _refuse_twice("artifact", self.artifacts, [folder_name(each) for each in self.artifacts])
        if not self.label or self.label.startswith(".") or set(self.label) & set("/\\\0"):
            raise ConfigError(f"'{self.label}' is no name of a folder.", hint="Set another name.")

    @property
    def label(self) -> str:
        """The folder below `out`: `name`, else that of the run or file it comes from."""
        if self.name is not None:
            return self.name
        source = Path(self.checkpoint or self.artifacts[0]).absolute()
        return source.stem if source.suffix == ".onnx" else source.parent.name

    @property
    def io(self) -> IoContract:
        """The contract of its artifacts."""
        return IoContract(self.input, self.output)


def folder_name(place: str) -> str:
    """Return the name that a ready artifact keeps within the run, however its place is written."""
    return Path(os.path.normpath(Path(place).absolute())).name


def _refuse_twice(what: str, texts: Sequence[str], meant: Sequence[object]) -> None:
    """Refuse what comes to one and the same folder: the later one would take the other's place."""
    for text, each in zip(texts, meant, strict=True):
        if meant.count(each) > 1:
            raise ConfigError(
                f"A [[model]] has the {what} {text} twice: both would be one folder of the run.",
                hint="Leave one out, or make it a [[model]] with a name of its own.",
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateTable:
    """`[evaluate]`."""

    split: str = "val"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"[evaluate] limit must be at least 1, found {self.limit}.")


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """`[bench]`."""

    size: str | None = None
    batch_size: int = 1
    threads: int | None = None
    launches: int = 1
    seconds: float = SECONDS
    warmup: float = WARM_UP_S
    end_to_end: bool = False

    def __post_init__(self) -> None:
        self.plan("cpu")

    def plan(self, device: str) -> BenchPlan:
        """Return what a bench is asked to do."""
        return BenchPlan(
            size=parse_size(self.size), batch_size=self.batch_size, threads=self.threads,
            device=device, seconds=self.seconds, warmup_s=self.warmup,
            end_to_end=self.end_to_end, launches=self.launches,
        )  # fmt: skip


_Limit = str | float | bool | None


@dataclass(frozen=True, kw_only=True)
class GateTable:
    """`[gate]`. Without a `baseline` nothing gates.

    It is an `out` of an earlier run, an artifact, or what is left of them: `bench.json`.
    """

    baseline: str | None = None
    budget: str | float = "60s"
    streams: int = 1
    allow_different_machine: bool = False
    latency: _Limit = None
    throughput: _Limit = None
    memory: _Limit = None
    size: _Limit = None
    cold_start: _Limit = None
    mean_iou: _Limit = None

    def __post_init__(self) -> None:
        _ = self.limits, self.plan(BenchTable(), "cpu", None)

    @property
    def limits(self) -> GateLimits:
        """What a candidate may cost; the default where nothing is said."""
        table = {each.name: getattr(self, each.name) for each in fields(GateLimits)}
        return GateLimits.from_table({k: v for k, v in table.items() if v is not None})

    @property
    def budget_s(self) -> float:
        """The time of one gate in seconds."""
        return parse_seconds(self.budget)

    def plan(self, bench: BenchTable, device: str, data: str | None) -> GatePlan:
        """Return what a gate is asked to do: `[bench]` says on which input and with what."""
        return GatePlan(
            size=parse_size(bench.size), batch_size=bench.batch_size, threads=bench.threads,
            device=device, budget_s=self.budget_s, streams=self.streams, data=data,
            allow_different_machine=self.allow_different_machine,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HistoryTable:
    """`[history]`: with a `file`, each bench adds a line per artifact to it."""

    file: str | None = None
