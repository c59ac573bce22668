"""`tune`: find by measuring which groups of nodes int8 shall quantise for one runtime and machine.

From the backend's own policy, one group is changed at a time (`tune_search`). Latency is measured
in turn with the best so far; flips are counted on validation images against the plain fp32 graph,
by the rules and limits of verify. What pays is kept (`tune_decision`); what fails has lost.

Every variant is an artifact in the work folder and every comparison a file there, so that an
interrupted run goes on where it was. What was found is written as a policy with its evidence:
`export --int8-policy FILE` then gives the same graph anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.backends import BACKENDS, require_backend
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.errors import (
    ArtifactError,
    ConfigError,
    UnknownNameError,
    UnsupportedTargetError,
)
from segdeploy.core.files import digest_of, write_bytes, write_json
from segdeploy.core.folder import (
    Artifact,
    Checkpoint,
    find_linked,
    installed_versions,
    load_checkpoint,
)
from segdeploy.core.results import BenchResult, read_result
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.export import NUM_CALIBRATION_IMAGES, export
from segdeploy.export.plan import PLAIN
from segdeploy.graph.policy import CHOICES, Policy, parse_policy, policy_text, shipped_policy
from segdeploy.measure import describe_environment, usable_cores
from segdeploy.verify import compare_folders, find_judges
from segdeploy.workflows.tune_decision import Accuracy, Ratio, least_of_blocks, ratio_of_blocks
from segdeploy.workflows.tune_search import BestFailedError, Instruments, Trial, search

if TYPE_CHECKING:
    import onnx

SECONDS = 6.0
_TRIALS = "trials"

Progress = Callable[[str, float, float | None], object]


@dataclass(frozen=True, kw_only=True)
class TunePlan:
    """What is tuned, on which data, and how long one comparison takes.

    `groups` are those to change; empty means all that the graph has nodes of.
    """

    checkpoint: Path
    target: str
    calibration: str
    work: Path
    size: tuple[int, int] | None = None
    num_calibration_images: int = NUM_CALIBRATION_IMAGES
    data: str | None = None
    threads: int | None = None
    seconds: float = SECONDS
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class TuneResult:
    """The policy that was found, with all trials in its evidence, and where it was written."""

    path: Path
    policy: Policy

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `tune`."""
        return {
            "policy": str(self.path),
            "digest": self.policy.digest,
            "groups": self.policy.groups,
            **self.policy.evidence,
        }


def tune(
    plan: TunePlan,
    out: Path,
    *,
    progress: Progress | None = None,
    report: Callable[[str], object] | None = None,
) -> TuneResult:
    """Measure and write the policy `out`.

    Args:
        plan: What is tuned.
        out: The TOML file to write.
        progress: Called with (what, done, total) while images are read and artifacts timed.
        report: Called with a line for people after each trial.

    Raises:
        UnknownNameError: If there is no such group.
        UnsupportedTargetError: If the target's int8 is not nodes of a graph, or needs a GPU.
        BackendUnavailableError: If its runtime is missing.
        SegDeployError: As `export`, `verify` and `bench`, of the artifact that is the best so far.
    """
    backend = _check_target(plan.target)
    _check_writable(out)
    if unknown := set(plan.groups) - set(CHOICES):
        raise UnknownNameError(
            f"Unknown group of nodes '{min(unknown)}'.", hint=f"Known: {', '.join(CHOICES)}."
        )
    load_checkpoint(plan.checkpoint)
    bench = _Bench(plan, progress)
    start = shipped_policy(backend)
    groups, present = bench.groups(start)
    found, trials = search(start, groups, bench.instruments(), report, present)
    evidence = {
        **bench.describe(),
        "groups_asked": list(plan.groups) or "all",
        "trials": [trial.to_dict() for trial in trials],
    }
    reasons = {**start.reasons_for(found.groups), **_reasons(found, start, trials)}
    description = f"Found by segdeploy tune for {plan.target}, from the policy '{start.name}'."
    policy = replace(
        found, name=out.stem, description=description, reasons=reasons, evidence=evidence
    )
    text = policy_text(policy)
    parse_policy(text, policy.name, str(out))
    write_bytes(out, text.encode())
    return TuneResult(out, policy)


def _check_target(text: str) -> str:
    """Return the backend of a target that can be tuned here."""
    target = ExportTarget.parse(text)
    backend = BACKENDS.get(target.backend)
    is_graph = backend.source == "onnx" or target.backend == PLAIN.backend
    if target.precision is not Precision.INT8 or not is_graph:
        raise UnsupportedTargetError(
            f"{text} has no placement of int8 to tune.",
            hint="Tune a target whose int8 is made in ONNX: onnx-int8 or openvino-int8.",
        )
    if backend.home != "cpu":
        raise UnsupportedTargetError(
            f"{text} runs on '{backend.home}', and tune measures on the CPU.",
            hint="Give export the policy by --int8-policy FILE, and compare by bench there.",
        )
    require_backend(backend)
    return backend.name


def _check_writable(out: Path) -> None:
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ArtifactError(
            f"Cannot write the policy {out}.", hint="Give a file in an existing folder, by --out."
        )


def _reasons(found: Policy, start: Policy, trials: Sequence[Trial]) -> dict[str, str]:
    """Return the words for what was changed: the figures of the trial that did."""
    told = {}
    for trial in (trial for trial in trials if trial.decision.kept):
        name = trial.change.partition(" = ")[0]
        names = [name] if name in found.groups else list(found.groups)
        said = f"tuned: {trial.figures}"
        told.update({g: said for g in names if found.groups[g] != start.groups[g]})
    return told


class _Bench:
    """Builds variants in the work folder and measures them; what is there already is reused."""

    def __init__(self, plan: TunePlan, progress: Progress | None) -> None:
        self.plan = plan
        self.progress = progress
        self.plain: onnx.ModelProto | None = None
        self.built: dict[str, Artifact] = {}
        self.environment: dict[str, Any] = describe_environment()

    def instruments(self) -> Instruments:
        return Instruments(self._place, self._judge, self._compare)

    def groups(self, start: Policy) -> tuple[list[str], list[str]]:
        """Return the groups to change, most nodes first, and all that the graph has nodes of."""
        from segdeploy.graph.placement import place_qdq

        self._build(start)
        counts = place_qdq(self._plain(), start).summary()["groups"]
        if absent := [group for group in self.plan.groups if group not in counts]:
            raise ConfigError(
                f"The model has no nodes of the group {', '.join(absent)}.",
                hint=f"It has {', '.join(counts)}.",
            )
        wanted = [group for group in counts if group in (self.plan.groups or counts)]
        order = sorted(wanted, key=lambda group: (-sum(counts[group].values()), group))
        return order, list(counts)

    def describe(self) -> dict[str, Any]:
        """Return what the figures hold for: model, machine, versions, data."""
        plan, first = self.plan, next(iter(self.built.values()))
        seen = first.manifest.options["calibration"]
        backend = BACKENDS.get(ExportTarget.parse(plan.target).backend)
        return {
            "target": plan.target,
            "model": first.manifest.model,
            "reference": first.manifest.reference.digest if first.manifest.reference else "",
            "calibration": plan.calibration,
            "calibration_images": seen["num_images"],
            "calibration_digest": seen["digest"],
            "data": plan.data or plan.calibration,
            "size": list(first.manifest.design_size or ()),
            "cpu": self.environment["cpu"] or "unknown",
            "threads": plan.threads or usable_cores(),
            "versions": {**installed_versions(("segdeploy", "onnxruntime")), **backend.versions()},
        }

    def _build(self, policy: Policy) -> Artifact:
        """Return the artifact of a policy."""
        if policy.digest in self.built:
            return self.built[policy.digest]
        plan, name = self.plan, policy.digest[:12]
        file = plan.work / "policies" / f"{name}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, policy_text(replace(policy, evidence={})).encode())
        outcomes = export(
            plan.checkpoint,
            [plan.target],
            plan.work,
            calibration=plan.calibration,
            num_calibration_images=plan.num_calibration_images,
            int8_policy=str(file),
            size=plan.size,
            name=f"{plan.target}-{name}",
            progress=self.progress,
            judges=[find_judges(plan.data or plan.calibration)],
        )
        artifact = outcomes[0].artifact
        if artifact is None:
            raise ArtifactError(f"{plan.work} lacks the variant {name}.")
        self.built[policy.digest] = artifact
        return artifact

    def _parent(self) -> Checkpoint | Artifact:
        """Return the plain fp32 artifact that every variant is made from."""
        built = next(iter(self.built.values()))
        parent = find_linked(built, built.manifest.parent)
        if parent is None:
            raise ArtifactError(f"The parent of {built.path} is missing.")
        return parent

    def _plain(self) -> onnx.ModelProto:
        if self.plain is None:
            from segdeploy.graph.proto import load_graph

            self.plain = load_graph(self._parent().payload)
        return self.plain

    def _place(self, policy: Policy) -> Hashable:
        from segdeploy.graph.placement import place_qdq

        placement = place_qdq(self._plain(), policy)
        return (
            frozenset(placement.activations.items()),
            frozenset(placement.weights),
            frozenset(placement.source.items()),
        )

    def _judge(self, policy: Policy) -> Accuracy:
        """Return the flips against the plain graph, judged as verify judges them."""
        variant, data = self._build(policy), self.plan.data or self.plan.calibration
        digests = [variant.manifest.digest, self._parent().manifest.digest]

        def measure() -> dict[str, Any]:
            report = compare_folders(variant, self._parent(), data=data)
            return asdict(Accuracy(report.passed, report.flip_rate, report.hard_flip_rate))

        return Accuracy(**self._kept({"artifacts": digests, "data": data}, measure))

    def _compare(self, best: Policy, candidate: Policy, turn: int) -> Ratio:
        """Return the ratio of two artifacts that run in turn; one measured before is read."""
        plan, pair = self.plan, (self._build(best), self._build(candidate))
        setting = {
            "artifacts": [each.manifest.digest for each in pair],
            "turn": turn,
            "threads": plan.threads or usable_cores(),
            "seconds": plan.seconds,
            "cpu": self.environment["cpu"],
        }
        found = self._kept(
            setting,
            lambda: {"blocks_ms": [least_of_blocks(result) for result in self._measure(pair)]},
        )
        return ratio_of_blocks(*found["blocks_ms"])

    def _kept(self, setting: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> Any:
        """Return what was measured in this setting before, or measure it and keep it."""
        file = self.plan.work / _TRIALS / f"{digest_of(setting)[:24]}.json"
        known = read_result(file)
        if known is None:
            known = measure()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, known)
        return known

    def _measure(self, pair: Sequence[Artifact]) -> list[BenchResult]:
        def advance(share: float) -> None:
            if self.progress is not None:
                self.progress("time", share, 1.0)

        outcome = measure_interleaved(
            [each.path for each in pair],
            BenchPlan(threads=self.plan.threads, seconds=self.plan.seconds),
            save=False,
            progress=advance,
        )
        for failure in outcome.failures:
            if str(pair[0].path) not in {result.path for result in outcome.results}:
                raise BestFailedError(
                    f"{pair[0].path} does not run: {failure.message}", hint=failure.hint
                )
            raise failure
        return outcome.results
