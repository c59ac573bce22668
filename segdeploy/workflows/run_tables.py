"""The tables of `segdeploy.toml`, each checked for itself when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from segdeploy.bench.plan import SECONDS, WARM_UP_S
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.limits import GateLimits, parse_seconds
from segdeploy.core.sizes import parse_size, parse_sizes
from segdeploy.core.target import ExportTarget
from segdeploy.export.foreign import ForeignOptions


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
        for target in self.targets:
            ExportTarget.parse(target)
        for size in self.sizes:
            parse_sizes(size)
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


@dataclass(frozen=True, kw_only=True)
class EvaluateTable:
    """`[evaluate]`."""

    split: str = "val"
    limit: int | None = None


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
        parse_size(self.size)


_Limit = str | float | bool | None


@dataclass(frozen=True, kw_only=True)
class GateTable:
    """`[gate]`. Without a `baseline` (an `out` of an earlier run, or an artifact) nothing gates."""

    baseline: str | None = None
    budget: str | float = "60s"
    streams: int = 1
    latency: _Limit = None
    throughput: _Limit = None
    memory: _Limit = None
    size: _Limit = None
    cold_start: _Limit = None
    mean_iou: _Limit = None

    def __post_init__(self) -> None:
        _ = self.limits, self.budget_s

    @property
    def limits(self) -> GateLimits:
        """What a candidate may cost; the default where nothing is said."""
        table = {each.name: getattr(self, each.name) for each in fields(GateLimits)}
        return GateLimits.from_table({k: v for k, v in table.items() if v is not None})

    @property
    def budget_s(self) -> float:
        """The time of one gate in seconds."""
        return parse_seconds(self.budget)


@dataclass(frozen=True, kw_only=True)
class HistoryTable:
    """`[history]`: with a `file`, each bench adds a line per artifact to it."""

    file: str | None = None
