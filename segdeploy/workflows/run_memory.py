"""What a run already knows: `run.json`, written after every stage, so that a killed run goes on.

A stage is taken as it stands when its key (the digest of all it depended on) is the same, its
result file is still the one that it wrote, and it came to an answer: passed or failed.
A failed check is not tried again until it passes, nor is a gate that may not judge; an error or an
inconclusive gate is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from segdeploy.core.errors import ArtifactError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.gate import GateResult, Verdict
from segdeploy.core.results import read_result
from segdeploy.workflows.run_config import RESOLVED, RunConfig, run_toml
from segdeploy.workflows.run_keys import file_key
from segdeploy.workflows.run_result import StageOutcome, Status

MEMORY, BENCH, GATE = "run.json", "bench.json", "gate.json"
_ANSWERS = {Status.PASSED, Status.FAILED}


class Memory:
    """The outcomes of a run folder, by place (`model/artifact/stage`)."""

    def __init__(self, out: Path, config: RunConfig, *, force: bool) -> None:
        self._out = out
        self._force = force
        self._known = _read(out)
        self.outcomes: list[StageOutcome] = []
        self.error: ArtifactError | None = None
        write_bytes(out / RESOLVED, run_toml(config))

    def find(self, place: str, key: str, file: Path) -> StageOutcome | None:
        """Return the answer of an earlier run that is still good, or None.

        Args:
            place: Of the stage.
            key: What it would depend on now.
            file: The result, which must still be that of this answer.
        """
        known = self._known.get(place)
        if self._force or known is None or known.key != key:
            return None
        if known.status not in _ANSWERS and known.kind != Verdict.UNJUDGED:
            return None
        if not known.result or known.result != file_key(file):
            return None
        found = replace(known, reused=True, seconds=0.0)
        return found if found.stage != "gate" else _with_gate(found, file)

    def keep(self, outcome: StageOutcome) -> StageOutcome:
        """Take an outcome into the run, on disk as well.

        What cannot be written is kept as `error`, until a later one is: it hides no answer.
        """
        self.outcomes.append(outcome)
        self._known[outcome.place] = outcome
        if not outcome.reused:
            plain = {p: msgspec.to_builtins(replace(o, gate=None)) for p, o in self._known.items()}
            try:
                write_json(self._out / MEMORY, {"schema_version": 1, "stages": plain})
            except ArtifactError as error:
                self.error = error
            else:
                self.error = None
        return outcome

    def keep_result(self, outcome: StageOutcome, key: str, file: Path) -> StageOutcome:
        """Take an outcome that was just found under this key, and wrote this file."""
        return self.keep(replace(outcome, key=key, result=file_key(file)))

    def settle(
        self, place: str, key: str, file: Path, work: Callable[[], StageOutcome]
    ) -> StageOutcome:
        """Return what is known of a place, else the work's outcome, kept under this key."""
        found = self.find(place, key, file)
        return self.keep_result(work(), key, file) if found is None else self.keep(found)


def _read(out: Path) -> dict[str, StageOutcome]:
    """Return what is on disk; a damaged file is no knowledge, and costs a repeated run only."""
    try:
        plain: dict[str, Any] = (read_result(out / MEMORY) or {}).get("stages", {})
        return msgspec.convert(plain, dict[str, StageOutcome])
    except (ArtifactError, msgspec.ValidationError):
        return {}


def _with_gate(outcome: StageOutcome, file: Path) -> StageOutcome | None:
    try:
        return replace(outcome, gate=msgspec.convert(read_result(file), GateResult))
    except (ArtifactError, msgspec.ValidationError):
        return None
