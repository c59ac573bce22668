"""`gate`: is the candidate worse than the baseline, here and now?

First whether the candidate answers rightly (`gate_parity`), then both run in turn, launch by
launch, until every limited metric is decided or the time is up (`measure.sequential`). A stored
baseline (`bench.json`) saves its half of the time and gives up the pairing: only the same machine
may compare, and its own drift since then is in the ratio.

Limits without noise (size, mIoU) are decided from files. Two folders with equal digests are
measured all the same: a gate that skipped them could not be tested by an A/A run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from segdeploy.bench.child import BenchChild
from segdeploy.bench.inputs import choose_sizes
from segdeploy.bench.pairs import (
    CandidateBrokenError,
    Launch,
    PairPlan,
    PairSampler,
    Start,
)
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.files import write_json
from segdeploy.core.folder import ModelFolder, load_folder
from segdeploy.core.gate import GateResult, MetricVerdict, Verdict, worst_verdict
from segdeploy.core.limits import GateLimits
from segdeploy.core.session import check_device
from segdeploy.measure import describe_environment, usable_cores
from segdeploy.measure.noise import busy_seconds, load_warnings
from segdeploy.measure.sequential import run_looks
from segdeploy.workflows.gate_metrics import Decisions, count_measured, judge_files
from segdeploy.workflows.gate_parity import check_candidate
from segdeploy.workflows.gate_stored import StoredBaseline, is_stored

RESULT = "gate.json"
BUDGET_S, MOST_S = 60.0, 86_400.0
_WATCH_S = 0.3

Progress = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class GatePlan:
    """How to measure.

    Attributes:
        size: (H, W) of the input; None takes a static artifact's, else the model's design size.
        batch_size: Images per call.
        threads: Of each runtime; None takes the cores that nobody else keeps busy.
        device: `cpu` or `cuda`.
        budget_s: Seconds of sampling; five launches a side are run in any case. Starting processes
            comes on top, and may double it.
        streams: How many calls at once where throughput is limited.
        data: `name:root` whose images parity is checked on.
        check_parity: Whether the candidate's answers are compared before the timing.
        allow_different_machine: Whether a stored baseline of another machine is compared after all;
            such a comparison never fails a build.
    """

    size: tuple[int, int] | None = None
    batch_size: int = 1
    threads: int | None = None
    device: str = "cpu"
    budget_s: float = BUDGET_S
    streams: int = 1
    data: str | None = None
    check_parity: bool = True
    allow_different_machine: bool = False

    def __post_init__(self) -> None:
        if self.size and min(self.size) < 1:
            raise ConfigError(f"The size must be positive, found {self.size[0]}x{self.size[1]}.")
        if self.batch_size < 1:
            raise ConfigError(f"The batch size must be at least 1, found {self.batch_size}.")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ConfigError(f"The number of threads must be in 1..1024, found {self.threads}.")
        if not 1 <= self.streams <= 256:
            raise ConfigError(f"The number of streams must be in 1..256, found {self.streams}.")
        if not 0 < self.budget_s <= MOST_S:
            raise ConfigError(f"The budget must be in 0..{MOST_S:.0f} s, found {self.budget_s:g}.")
        check_device(self.device)


def gate(
    baseline: Path,
    candidate: Path,
    *,
    plan: GatePlan | None = None,
    limits: GateLimits | None = None,
    progress: Progress = lambda _: None,
    save: bool = False,
    start: Start = BenchChild,
) -> GateResult:
    """Compare a candidate with its baseline; a bad candidate is a verdict, never an exception.

    Args:
        baseline: A checkpoint or artifact folder, or a `bench.json` of the same machine.
        candidate: A checkpoint or artifact folder.
        plan: How to measure.
        limits: What the candidate may cost more; default: 5 % of latency.
        progress: Is told the share of the budget that is used, in [0, 1].
        save: Whether to write `gate.json` into the candidate's folder. If that fails after all,
            the result says so: a warning, and `is_saved` false in its environment.
        start: Starts the candidate's workers; for experiments.

    Raises:
        ArtifactError: If a folder is missing or damaged, or the baseline crashes.
        BackendUnavailableError: If a runtime or the device is missing here.
        ConfigError: If a setting does not fit, the stored baseline is another machine's, or
            nothing tells whether the candidate is right.
    """
    plan, limits = plan or GatePlan(), limits or GateLimits()
    found = load_folder(candidate)
    if save and (not os.access(found.path, os.W_OK) or (found.path / RESULT).is_dir()):
        raise ArtifactError(
            f"Cannot write {RESULT} into {found.path}.",
            hint="Give --no-save to measure without writing.",
        )
    stored = StoredBaseline.load(baseline) if is_stored(baseline) else None
    before = None if stored else load_folder(baseline)
    unknown = (limits.size, limits.mean_iou, limits.throughput)
    if before is None and any(limit is not None for limit in unknown):
        raise ConfigError(
            "A stored result knows neither size nor mIoU, nor the gate's throughput.",
            hint="Give the baseline's folder, or leave these limits out.",
        )
    run = _Run(before, found, stored, plan, limits, progress, start)
    result = run.answer(str(baseline))
    return _saved(result, found.path / RESULT) if save else result


def _saved(result: GateResult, file: Path) -> GateResult:
    """Write the result; where the disk is full by now, note that: the verdict holds anyway."""
    try:
        write_json(file, result.to_dict())
    except ArtifactError as error:
        with suppress(OSError):
            file.unlink(missing_ok=True)  # An older verdict would be taken for this one.
        warnings = [*result.environment["warnings"], error.message]
        environment = {**result.environment, "warnings": warnings, "is_saved": False}
        return replace(result, environment=environment)
    return result


class _Run:
    """One gate on its way: what is compared, and what was found so far."""

    def __init__(
        self,
        baseline: ModelFolder | None,
        candidate: ModelFolder,
        stored: StoredBaseline | None,
        plan: GatePlan,
        limits: GateLimits,
        progress: Progress,
        start: Start,
    ) -> None:
        self._baseline, self._candidate, self._stored = baseline, candidate, stored
        self._plan, self._limits = plan, limits
        self._progress, self._start = progress, start
        self._began = monotonic()
        self._parity: dict[str, Any] = {}
        self._environment = self._describe()
        self._metrics: list[MetricVerdict] = []
        self._looks = 0
        self._launches: list[Launch] = []

    def _describe(self) -> dict[str, Any]:
        """Return the fingerprint, and choose the threads."""
        environment = describe_environment()
        free, busy = free_cores()
        threads = self._plan.threads or (self._stored.threads if self._stored else free)
        warnings = load_warnings(environment["load_average"], environment["governor"])
        if self._plan.threads is None and not self._stored and free < usable_cores():
            warnings.append(
                f"Others keep {busy:.1f} of {usable_cores()} cores busy: both sides run with "
                f"{threads} threads. Give --threads to choose."
            )
        return {
            **environment, "threads": threads, "device": self._plan.device, "warnings": warnings,
        }  # fmt: skip

    def answer(self, baseline: str) -> GateResult:
        """Run the gate."""
        verdict, reason = self._decide()
        return GateResult(
            baseline=baseline,
            candidate=str(self._candidate.path),
            verdict=verdict,
            reason=reason,
            metrics=tuple(self._metrics),
            parity=self._parity,
            samples={"launches": [asdict(launch) for launch in self._launches]},
            environment=self._environment,
            seconds=monotonic() - self._began,
            num_looks=self._looks,
        )

    def _decide(self) -> tuple[Verdict, str]:
        plan = self._pair_plan()
        if self._stored:
            self._environment["different_machine"] = self._stored.check(
                self._environment, plan, self._candidate,
                allow=self._plan.allow_different_machine,
            )  # fmt: skip
        files = []
        if self._baseline is not None:
            files = judge_files(self._baseline, self._candidate, self._limits)
        try:
            if self._plan.check_parity:
                self._parity = check_candidate(
                    self._baseline, self._candidate,
                    device=self._plan.device, data=self._plan.data,
                )  # fmt: skip
            self._measure(plan)
        except CandidateBrokenError as error:
            self._metrics = []
            self._parity = self._parity or error.__dict__.get("parity", {"passed": False})
            return Verdict.BROKEN, str(error)
        self._metrics += files
        return self._conclude()

    def _pair_plan(self) -> PairPlan:
        folders = [each for each in (self._baseline, self._candidate) if each is not None]
        wanted = self._plan.size or (self._stored.size if self._stored else None)
        sizes = choose_sizes(folders, wanted, self._plan.batch_size)
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"{folders[0].path} takes {sizes[0][0]}x{sizes[0][1]}, {folders[1].path} takes "
                f"{sizes[1][0]}x{sizes[1][1]}: their times are no ratio.",
                hint="Give --size, or export both at one size.",
            )
        return PairPlan(
            size=sizes[0],
            batch_size=self._plan.batch_size,
            threads=self._environment["threads"],
            device=self._plan.device,
            streams=self._plan.streams if self._limits.throughput is not None else 0,
            one_by_one=self._limits.cold_start is not None,
        )

    def _measure(self, plan: PairPlan) -> None:
        """Sample launches until each metric is decided."""
        if not count_measured(self._limits):
            return
        decisions = Decisions(self._limits, self._stored.sides if self._stored else ())
        budget_s = self._plan.budget_s

        def is_decided(share: float) -> bool:
            self._looks += 1
            is_over = decisions.look(self._launches, share)
            self._metrics = decisions.metrics
            return is_over

        with PairSampler(self._baseline, self._candidate, plan, start=self._start) as sampler:
            self._launches = sampler.launches

            def sample() -> float:
                launch = sampler.sample()
                if self._stored and len(sampler.launches) == 1:
                    self._check_runtime(self._stored, sampler.runtime["candidate"])
                self._progress(min(1.0, len(sampler.launches) * launch.sampling_s / budget_s))
                return launch.sampling_s

            try:
                run_looks(sample, is_decided, budget_s, monotonic)
            finally:
                self._environment["runtimes"] = sampler.runtime
        self._progress(1.0)

    def _check_runtime(self, stored: StoredBaseline, runtime: dict[str, Any]) -> None:
        """Compare with the baseline's machine again, now that the runtime's version is known."""
        self._environment["different_machine"] = stored.compare_machine(
            {**self._environment, "runtime": runtime}, allow=self._plan.allow_different_machine
        )

    def _conclude(self) -> tuple[Verdict, str]:
        if self._environment.get("different_machine"):
            self._metrics = [_unjudged(metric) for metric in self._metrics]
        verdict = worst_verdict([metric.verdict for metric in self._metrics])
        deciding = next(metric for metric in self._metrics if metric.verdict is verdict)
        reason = f"{deciding.name}: {deciding.reason}"
        if deciding.more_launches is not None:
            share = 1 + deciding.more_launches / len(self._launches)
            seconds = math.ceil(share * sum(each.sampling_s for each in self._launches))
            reason += f" (--budget {seconds}s)" if seconds <= MOST_S else " (no budget will)"
        return verdict, reason


def _unjudged(metric: MetricVerdict) -> MetricVerdict:
    """Return the metric of a comparison with another machine: shown, and held neither way."""
    reason = f"not judged, the baseline is another machine's: {metric.reason}"
    return replace(metric, verdict=Verdict.UNJUDGED, reason=reason, more_launches=None)


def free_cores() -> tuple[int, float]:
    """Return how many usable cores nobody keeps busy now, at least 1, and how many are busy.

    Two threads beside one busy process on two cores ran 4 times slower than one thread alone, and
    varied by 6 % from launch to launch instead of 1 %.
    """
    usable, before = usable_cores(), busy_seconds()
    if before is None:
        return usable, 0.0
    start = monotonic()
    sleep(_WATCH_S)
    after = busy_seconds()
    busy = 0.0 if after is None else (after - before) / (monotonic() - start)
    idle = (os.cpu_count() or 1) - busy
    return max(1, min(usable, round(idle))), busy
