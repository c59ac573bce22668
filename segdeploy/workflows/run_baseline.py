"""Which artifact of an earlier run a candidate is compared with: the one of the same name.

A new target has no counterpart, which is no failure. A baseline in which nothing has one is: a
mistyped path would else pass every gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import MANIFEST, load_folder
from segdeploy.workflows.gate_stored import StoredBaseline, is_stored
from segdeploy.workflows.run_memory import BENCH
from segdeploy.workflows.run_result import StageOutcome, Status

NO_COUNTERPART = "no counterpart"


def check_baseline(root: Path, out: Path) -> None:
    """Check that a baseline is there, and is not what the run itself writes.

    Raises:
        ConfigError: If it is not there, or lies in `out`: an artifact compared with itself passes.
    """
    if not (root.is_dir() or (root.is_file() and is_stored(root))):
        raise ConfigError(
            f"The baseline {root} is neither a folder nor a bench.json.",
            hint="Give the folder of an earlier run (its `out`), or an artifact of one.",
        )
    if root.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"The baseline {root} lies in {out}, which this run writes: each artifact would be "
            "compared with itself.",
            hint="Give this run another --out, or the folder of an earlier run as the baseline.",
        )


def find_baseline(root: Path, model: str, artifact: Path) -> Path | None:
    """Return ROOT/model/NAME, else ROOT/NAME, else ROOT if it is of this target.

    Where a folder holds no artifact any more, its `bench.json` is a stored baseline.

    Raises:
        ArtifactError: If a manifest or a result cannot be read.
    """
    if is_stored(root):
        return root if StoredBaseline.load(root).result.target == _target(artifact) else None
    for place in (root / model / artifact.name, root / artifact.name):
        for file in (MANIFEST, BENCH):
            if (place / file).is_file():
                return place if file == MANIFEST else place / file
    if not (root / MANIFEST).is_file():
        return None
    return root if _target(root) == _target(artifact) else None


def _target(folder: Path) -> str:
    return load_folder(folder, check_files=False).name


def check_matches(outcomes: Sequence[StageOutcome], root: Path) -> list[StageOutcome]:
    """Return the outcomes; if no gate found a counterpart, each is an error."""
    gates = [outcome for outcome in outcomes if outcome.stage == "gate"]
    if not gates or any(outcome.kind != NO_COUNTERPART for outcome in gates):
        return list(outcomes)
    reason = f"Nothing in the baseline {root} has the name of an artifact of this run."
    return [
        replace(o, status=Status.ERROR, kind="ConfigError", reason=reason, exit_code=2)
        if o.stage == "gate"
        else o
        for o in outcomes
    ]
