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
from segdeploy.workflows.run_result import StageOutcome, Status

NO_COUNTERPART = "no counterpart"


def check_baseline(root: Path, out: Path) -> None:
    """Check that a baseline is there, and is not what the run itself writes.

    Raises:
        ConfigError: If it is no folder, or lies in `out`: an artifact compared with itself passes.
    """
    if not root.is_dir():
        raise ConfigError(
            f"The baseline {root} is no folder.",
            hint="Give the folder of an earlier run (its `out`), or an artifact of one.",
        )
    if root.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"The baseline {root} lies in {out}, which this run writes: each artifact would be "
            "compared with itself.",
            hint="Give this run another --out, or the folder of an earlier run as the baseline.",
        )


def find_baseline(root: Path, model: str, artifact: Path) -> Path | None:
    """Return ROOT/model/NAME, else ROOT/NAME, else ROOT if it is an artifact of this target.

    Raises:
        ArtifactError: If a manifest cannot be read.
    """
    for place in (root / model / artifact.name, root / artifact.name):
        if (place / MANIFEST).is_file():
            return place
    if not (root / MANIFEST).is_file():
        return None
    names = [load_folder(each, check_files=False).name for each in (root, artifact)]
    return root if names[0] == names[1] else None


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
