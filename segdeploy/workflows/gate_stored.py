"""A baseline that was measured earlier: a `bench.json`, trusted on the same machine only.

Its launches are units as fresh ones are. A result of one launch says nothing about the bias of a
launch; `measure.sequential` then takes the candidate's spread for it, and the interval is wide:
`bench --launches 5` stores a better baseline.
"""

from __future__ import annotations

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
from segdeploy.measure.fingerprint import fingerprint_difference


def is_stored(path: Path) -> bool:
    """Return whether a baseline is a result file rather than a folder."""
    return path.is_file() or path.suffix == ".json"


@dataclass(frozen=True)
class StoredBaseline:
    """The result, and its launches."""

    path: Path
    result: BenchResult
    sides: tuple[Side, ...]

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
            sides = tuple(_sides(plain))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is not the result of a bench: {error!r}.",
                hint="Give the bench.json of an artifact folder.",
            ) from error
        return cls(path, result, sides)

    @property
    def threads(self) -> int:
        """Of the runtime when it was measured."""
        return int(self.result.environment["threads"])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input."""
        shape = self.result.input_shape
        height, width = shape[1:3] if shape[-1] == 3 else shape[2:4]
        return height, width

    def check(
        self, environment: dict[str, Any], plan: PairPlan, candidate: ModelFolder, *, allow: bool
    ) -> list[str]:
        """Return how this machine differs from the baseline's, if that is allowed.

        Raises:
            ConfigError: If it differs and that is not allowed, or something else was measured.
        """
        found = self.result.environment
        mine = describe_call(candidate.manifest, end_to_end=False)
        theirs = found.get("measured", mine)
        if (self.size, self.result.batch_size) != (plan.size, plan.batch_size) or mine != theirs:
            raise ConfigError(
                f"{self.path} measured {theirs}, {self.size[0]}x{self.size[1]}, batch "
                f"{self.result.batch_size}; the candidate would run {mine}, "
                f"{plan.size[0]}x{plan.size[1]}, batch {plan.batch_size}.",
                hint="Give the same --size and --batch-size, or bench the baseline anew.",
            )
        difference = fingerprint_difference(found, environment)
        if difference and not allow:
            raise ConfigError(
                f"{self.path} was measured elsewhere:\n  " + "\n  ".join(difference),
                hint="Bench the baseline on this machine, or give its folder; "
                "--allow-different-machine compares all the same, and never fails.",
            )
        return difference


def _sides(plain: Mapping[str, Any]) -> list[Side]:
    samples = [float(sample) for sample in plain["samples_ms"]]
    sizes = [int(size) for size in plain.get("launches") or [len(samples)]]
    if not samples or min(sizes) < 1 or sum(sizes) != len(samples) or min(samples) <= 0:
        raise ValueError("its samples are not those of whole launches")
    bounds = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    cold = (plain.get("cold_start_ms") or {}).get("total")
    memory = plain.get("peak_memory_mib")
    return [
        Side([samples[first:last]], memory_mib=memory, cold_start_ms=cold)
        for first, last in pairwise(bounds)
    ]


__all__ = ["StoredBaseline", "is_stored"]
