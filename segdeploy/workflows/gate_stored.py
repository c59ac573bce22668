"""A baseline that was measured earlier: a `bench.json`, trusted on the same machine only.

Its launches are units as fresh ones are. A result of one launch says nothing about the bias of a
launch; `measure.sequential` then takes the candidate's spread for it, and the interval is wide:
`bench --launches 5` stores a better baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from segdeploy.bench.call import describe_call
from segdeploy.bench.pairs import PairPlan, Side
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.results import BenchResult, read_result
from segdeploy.measure.fingerprint import fingerprint, fingerprint_difference

_MOST_THREADS = 1024  # As plans allow.


def is_stored(path: Path) -> bool:
    """Return whether a baseline is a result file rather than a folder."""
    return path.is_file() or path.suffix == ".json"


@dataclass(frozen=True)
class StoredBaseline:
    """The result, and its launches."""

    path: Path
    result: BenchResult
    sides: tuple[Side, ...]
    size: tuple[int, int]
    threads: int

    @classmethod
    def load(cls, path: Path) -> StoredBaseline:
        """Read a `bench.json`.

        Raises:
            ArtifactError: If it is missing, damaged, or not the result of a bench.
        """
        plain = read_result(path) if path.suffix == ".json" else None
        if plain is None:
            raise ArtifactError(
                f"{path} is no result of a bench.",
                hint="Give an artifact folder, or the bench.json of one.",
            )
        try:
            result = BenchResult.from_dict(plain)
            found = cls(path, result, tuple(_sides(plain)), _size(result), _threads(result))
            fingerprint(result.environment)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ArtifactError(
                f"{path} is not the result of a bench: {error!r}.",
                hint="Give the bench.json of an artifact folder.",
            ) from error
        return found

    def check(
        self, environment: dict[str, Any], plan: PairPlan, candidate: ModelFolder, *, allow: bool
    ) -> list[str]:
        """Return how this machine differs from the baseline's, if that is allowed.

        Raises:
            ConfigError: If it differs and that is not allowed, or something else was measured.
        """
        found = self.result.environment
        mine = describe_call(candidate.manifest, end_to_end=False)
        theirs = found.get("measured", "who knows what")
        if found.get("in_process"):
            raise ConfigError(
                f"{self.path} was measured by --in-process: its memory and its idle threads are "
                "those of everything in that process.",
                hint="Bench the baseline without --in-process.",
            )
        if (self.size, self.result.batch_size) != (plan.size, plan.batch_size) or mine != theirs:
            raise ConfigError(
                f"{self.path} measured {theirs}, {self.size[0]}x{self.size[1]}, batch "
                f"{self.result.batch_size}; the candidate would run {mine}, "
                f"{plan.size[0]}x{plan.size[1]}, batch {plan.batch_size}.",
                hint="Give the same --size and --batch-size, or bench the baseline anew.",
            )
        return self.compare_machine(environment, allow=allow)

    def compare_machine(self, environment: dict[str, Any], *, allow: bool) -> list[str]:
        """Return how a machine, and the runtime that ran, differ from the baseline's.

        Raises:
            ConfigError: If they differ and that is not allowed.
        """
        difference = fingerprint_difference(self.result.environment, environment)
        if difference and not allow:
            raise ConfigError(
                f"{self.path} was measured elsewhere:\n  " + "\n  ".join(difference),
                hint="Bench the baseline on this machine, or give its folder; "
                "--allow-different-machine compares all the same, and fails nothing by it.",
            )
        return difference


def _size(result: BenchResult) -> tuple[int, int]:
    """Return (H, W) of the input."""
    if len(result.input_shape) != 4:
        raise ValueError(f"an input of shape {result.input_shape}")
    shape = [int(side) for side in result.input_shape]
    height, width = shape[1:3] if shape[-1] == 3 else shape[2:4]
    return height, width


def _threads(result: BenchResult) -> int:
    threads = result.environment["threads"]
    if not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"{threads!r} threads")
    return threads


def _sides(plain: Mapping[str, Any]) -> list[Side]:
    samples = [float(sample) for sample in plain["samples_ms"]]
    sizes = [int(size) for size in plain.get("launches") or [len(samples)]]
    if not samples or min(sizes) < 1 or sum(sizes) != len(samples) or min(samples) <= 0:
        raise ValueError("its samples are not those of whole launches")
    bounds = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    memory = _each(plain, "launch_memory_mib", plain.get("peak_memory_mib"), len(sizes))
    cold = _each(
        plain, "cold_starts_ms", (plain.get("cold_start_ms") or {}).get("total"), len(sizes)
    )
    return [
        Side([samples[first:last]], memory_mib=memory[index], cold_start_ms=cold[index])
        for index, (first, last) in enumerate(pairwise(bounds))
    ]


def _each(plain: Mapping[str, Any], name: str, single: Any, count: int) -> list[float | None]:
    """Return a launch's value each; one value of several launches says nothing of their spread."""
    values = plain.get(name) or [single if count == 1 else None] * count
    plain_values = [value.get("total") if isinstance(value, dict) else value for value in values]
    if len(plain_values) != count:
        raise ValueError(f"{name} is not of {count} launches")
    found = [None if value is None else float(value) for value in plain_values]
    if any(value is not None and not 0 < value < math.inf for value in found):
        raise ValueError(f"{name} holds what is not positive")
    return found


__all__ = ["StoredBaseline", "is_stored"]
