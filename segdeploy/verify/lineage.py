"""A whole run folder: is every file the promised one, back to the checkpoint?

Nothing is run. A folder is sound if its manifest and all its files are what they were when they
were written, it holds nothing else, every ancestor that its lineage names is here with the same
files, its classes and preprocessing are those of its checkpoint, its results are of its target,
and its verdict is not a failure. Result files have no digest: a number in them may be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import ArtifactError, SegDeployError
from segdeploy.core.folder import (
    MANIFEST,
    WEIGHTS,
    Artifact,
    ModelFolder,
    check_companion,
    find_linked,
    load_folder,
)
from segdeploy.core.manifest import Ancestor, Link, Manifest
from segdeploy.core.preprocess import fixed_preprocess
from segdeploy.core.results import read_result


@dataclass(frozen=True)
class FolderCheck:
    """What was found of one folder: `problems` is empty if it is sound.

    `lineage` are the names of its ancestors, checkpoint first. `passed` is its parity verdict.
    """

    name: str
    digest: str | None
    lineage: list[str]
    num_files: int
    passed: bool | None
    problems: list[str]


@dataclass(frozen=True)
class RunCheck:
    """All model folders of a run; `bool()` means that all are sound."""

    run: str
    folders: list[FolderCheck]

    @property
    def passed(self) -> bool:
        """Whether no folder has a problem."""
        return not any(folder.problems for folder in self.folders)

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `verify RUN`."""
        return {
            "run": self.run,
            "passed": self.passed,
            "folders": [asdict(f) for f in self.folders],
        }


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder: no model folder itself, but with some in it."""
    return not (path / MANIFEST).exists() and any(path.glob(f"*/{MANIFEST}"))


def verify_run(run: Path) -> RunCheck:
    """Check every digest of a run folder, up to the checkpoint that each artifact was made from.

    Raises:
        ArtifactError: If there is no model folder in it.
    """
    places = sorted(place for place in run.iterdir() if _is_model_folder(place))
    if not any((place / MANIFEST).exists() for place in places):
        raise ArtifactError(
            f"{run} holds no checkpoint and no artifact.",
            hint="Give the run folder that 'segdeploy train' or 'segdeploy export' wrote.",
        )
    return RunCheck(str(run), [_check(place) for place in places])


_RESULTS = (
    "parity.json", "eval.json", "bench.json", "images.csv", "samples", "sustained.svg",
    "profile.json", "profile.svg", "calibration.html", "calibration_report.json",
)  # fmt: skip
"""What stages write beside a payload; no part of a folder's identity."""


def _is_model_folder(place: Path) -> bool:
    """Return whether a folder has a manifest, or has lost it."""
    marks = [place / name for name in (MANIFEST, WEIGHTS, *_RESULTS[:3])]
    is_hidden = place.name.startswith(".")
    return place.is_dir() and not is_hidden and any(p.exists() for p in [*marks, *_payloads(place)])


def _payloads(place: Path) -> list[Path]:
    return sorted(place.glob("model.*"))


def _check(place: Path) -> FolderCheck:
    try:
        folder = load_folder(place)
    except SegDeployError as error:
        return FolderCheck(place.name, None, [], 0, None, [error.message])
    manifest = folder.manifest
    problems = [
        *_check_companions(folder),
        *_check_strangers(folder),
        *_check_lineage(folder),
        *_check_results(folder),
    ]
    if manifest.passed is False:
        problems.append("it failed verification")
    return FolderCheck(
        name=place.name,
        digest=manifest.digest,
        lineage=[ancestor.name for ancestor in manifest.lineage],
        num_files=1 + len(manifest.files) + len(manifest.companions),
        passed=manifest.passed,
        problems=problems,
    )


def _check_companions(folder: ModelFolder) -> list[str]:
    problems = []
    for name in folder.manifest.companions:
        try:
            check_companion(folder, name)
        except SegDeployError as error:
            problems.append(error.message)
    return problems


def _check_strangers(folder: ModelFolder) -> list[str]:
    manifest = folder.manifest
    known = {MANIFEST, *manifest.files, *manifest.companions, *_RESULTS}
    strangers = sorted(
        {p.name for p in folder.path.iterdir() if not p.name.startswith(".")} - known
    )
    return [f"it holds {name}, which its manifest does not know" for name in strangers]


def differing_facts(manifest: Manifest, reference: Manifest) -> list[str]:
    """Return which of an artifact's words are not those of its checkpoint."""
    shape = manifest.inputs[0].shape
    sides = shape[1:3] if manifest.io.input is InputKind.IMAGE else shape[2:4]
    height, width = sides if len(sides) == 2 else (None, None)
    size = (height, width) if height and width else None
    wanted = fixed_preprocess(reference.preprocess, size, manifest.bounds)
    found = {
        "preprocess": manifest.preprocess == wanted,
        "classes": manifest.classes == reference.classes,
        "task": manifest.task is reference.task,
    }
    return [name for name, is_same in found.items() if not is_same]


def _check_lineage(folder: ModelFolder) -> list[str]:
    """Return what is wrong with the ancestors: missing, others, or not the ones linked to."""
    manifest = folder.manifest
    if not isinstance(folder, Artifact):
        return []
    lineage = manifest.lineage
    problems = []
    for link, ancestor, what in (
        (manifest.parent, lineage[-1:], "parent"), (manifest.reference, lineage[:1], "reference"),
    ):  # fmt: skip
        if link is None or not ancestor:
            problems.append(f"its manifest names no {what}")
        elif link.digest != ancestor[0].digest:
            problems.append(f"its {what} is not the one of its lineage")
    problems += [p for ancestor in lineage for p in _check_ancestor(folder, ancestor)]
    reference = find_linked(folder, manifest.reference)
    if reference is not None:
        differing = differing_facts(manifest, reference.manifest)
        problems += [f"its {what} is not that of its checkpoint" for what in differing]
    return problems


def _check_ancestor(folder: ModelFolder, ancestor: Ancestor) -> list[str]:
    found = find_linked(folder, Link(ancestor.digest, _hint(folder, ancestor)))
    short = f"{ancestor.name} (sha256 {ancestor.digest[:12]}...)"
    if found is None:
        return [f"its ancestor {short} is not here, or is damaged"]
    if dict(found.manifest.files) != ancestor.files:
        return [f"its ancestor {short} has other files"]
    return []


def _hint(folder: ModelFolder, ancestor: Ancestor) -> str:
    links: Sequence[Link | None] = (folder.manifest.parent, folder.manifest.reference)
    return next((k.hint for k in links if k is not None and k.digest == ancestor.digest), ".")


def _check_results(folder: ModelFolder) -> list[str]:
    """Return the result files that are unreadable or of something else."""
    problems, found = [], {}
    for name in _RESULTS[:3]:
        try:
            found[name] = read_result(folder.path / name) or {}
        except SegDeployError as error:
            problems.append(error.message)
    for name, result in found.items():
        if result.get("target", folder.name) != folder.name:
            problems.append(f"{name} is of the target {result['target']}")
    digest, link = folder.manifest.digest, folder.manifest.reference
    if _measured(found.get("bench.json", {})) not in {None, digest}:
        problems.append("bench.json was measured on another payload")
    judged = str(found.get("parity.json", {}).get("reference", "")).partition("@")[2]
    if judged and link is not None and not link.digest.startswith(judged):
        problems.append("parity.json was judged against another reference")
    verdict = found.get("parity.json", {}).get("passed", folder.manifest.passed)
    if verdict != folder.manifest.passed:
        problems.append("parity.json has another verdict than its manifest")
    return problems


def _measured(bench: Mapping[str, Any]) -> Any:
    environment = bench.get("environment")
    return environment.get("artifact") if isinstance(environment, dict) else None
