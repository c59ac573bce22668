"""Which artifact of an earlier run a candidate is compared with: that of its model and name.

A new target has no counterpart, which is no failure. A baseline in which nothing has one is: a
mistyped path would else pass every gate. A baseline that is one model's, or one artifact, may not
serve another model: names of artifacts are alike in all of them.
"""

from __future__ import annotations

import os
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


def find_baseline(root: Path, model: str, artifact: Path, *, is_only_model: bool) -> Path | None:
    """Return the counterpart of an artifact: ROOT/MODEL/NAME, ROOT/NAME, or ROOT itself.

    ROOT/NAME serves where ROOT is called as the model, ROOT itself where it is of this name and
    target, in a folder called as the model; a run of one model may call it otherwise. Where a
    folder holds no artifact any more, its `bench.json` is a stored baseline; what it measured is
    called as it says.

    Raises:
        ArtifactError: If a manifest or a result cannot be read.
    """
    places = [root / model / artifact.name]
    if is_only_model or _called(root).name == model:
        places.append(root / artifact.name)
    for place in places:
        if (found := _what_stands_in(place)) is not None:
            return found
    found = _what_stands_in(root)
    if found is None:
        return None
    name, target = _said_of(found)
    is_of_model = is_only_model or name.parent.name == model
    is_same = name.name == artifact.name and target == _said_of(artifact)[1]
    return found if is_of_model and is_same else None


def _what_stands_in(place: Path) -> Path | None:
    """Return a place if it is an artifact or a result, else the result in it, if there is one."""
    if is_stored(place) or (place / MANIFEST).is_file():
        return place if place.exists() else None
    return place / BENCH if (place / BENCH).is_file() else None


def _said_of(place: Path) -> tuple[Path, str]:
    """Return where an artifact or what was measured stood, and its target."""
    if is_stored(place):
        result = StoredBaseline.load(place).result
        return Path(result.path), result.target
    return _called(place), load_folder(place, check_files=False).name


def _called(place: Path) -> Path:
    """Return a place as it is written, whatever it links to, without dots."""
    return Path(os.path.normpath(place.absolute()))


def check_matches(outcomes: Sequence[StageOutcome], root: Path) -> list[StageOutcome]:
    """Return the outcomes; if no gate found a counterpart, each is an error."""
    gates = [outcome for outcome in outcomes if outcome.stage == "gate"]
    if not gates or any(outcome.kind != NO_COUNTERPART for outcome in gates):
        return list(outcomes)
    reason = f"Nothing in the baseline {root} is of a model and an artifact of this run, by name."
    return [
        replace(o, status=Status.ERROR, kind="ConfigError", reason=reason, exit_code=2)
        if o.stage == "gate"
        else o
        for o in outcomes
    ]
