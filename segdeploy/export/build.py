"""One step of a plan: reuse the artifact that is there, or build it.

Equal build key, same work: the key covers the parent's digest, the contract, the calibration
images, the preprocessing and the versions of all tools. A folder that is damaged is never reused.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segdeploy.backends import BACKENDS
from segdeploy.backends.isolation import Builder
from segdeploy.core.contract import contract_tensors
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, BuildError
from segdeploy.core.files import digest_of, write_json
from segdeploy.core.folder import (
    Artifact,
    Checkpoint,
    ModelFolder,
    check_companion,
    installed_versions,
    load_folder,
    save_folder,
)
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import fixed_preprocess
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.export.calibration import CALIBRATION, CalibrationSet, Progress, describe
from segdeploy.export.plan import Step

RECIPE = 3  # Raise it when the same inputs give another graph: older artifacts are then rebuilt.


@dataclass(frozen=True)
class BuildContext:
    """What all steps of an export share; `versions` of packages by backend, `missing` ones."""

    checkpoint: Checkpoint
    calibration: CalibrationSet | None
    progress: Progress | None
    builder: Builder
    versions: Mapping[str, dict[str, str]]
    missing: Mapping[str, BackendUnavailableError]


def describe_artifact(step: Step, parent: ModelFolder, context: BuildContext) -> Manifest:
    """Return the manifest of the artifact that a step makes, with its build key."""
    source = context.checkpoint.manifest
    inputs, outputs = contract_tensors(
        step.io, source.task, len(source.classes), step.size, batch=step.batch
    )
    options: dict[str, Any] = {"size": list(step.size) if step.size else "dynamic"}
    backend = BACKENDS.get(step.target.backend)
    if step.target.precision is Precision.INT8 and context.calibration is not None:
        options["calibration"] = {
            "data": context.calibration.spec,
            "num_images": len(context.calibration.indices),
            "digest": context.calibration.digest,
        }
    manifest = Manifest(
        kind="artifact",
        model=source.model,
        task=source.task,
        classes=source.classes,
        preprocess=fixed_preprocess(source.preprocess, step.size, step.bounds),
        inputs=inputs,
        outputs=outputs,
        files=dict.fromkeys((backend.payload_name, *backend.other_files), ""),
        io=step.io,
        target=str(step.target),
        parent=parent.link_from(step.folder),
        reference=context.checkpoint.link_from(step.folder),
        lineage=parent.ancestors,
        design_size=step.size or (step.bounds.usual if step.bounds else source.design_size),
        bounds=step.bounds,
        trained=source.trained,
        note=source.note,
        options=options,
    )
    return manifest.replace(build_key=_build_key(manifest, context.versions[backend.name]))


def _build_key(manifest: Manifest, versions: Mapping[str, str]) -> str:
    plain = msgspec.to_builtins(manifest)
    for link in ("parent", "reference"):
        plain[link] = plain[link]["digest"]  # Where it lies may change; what it is may not.
    return digest_of(
        {"manifest": plain, "recipe": RECIPE, "versions": {**installed_versions(), **versions}}
    )


def reusable_artifact(step: Step, wanted: Manifest) -> Artifact | None:
    """Return the artifact that is already there, whole and made by the same work, or None."""
    try:
        found = load_folder(step.folder)
    except ArtifactError:
        return None
    if not isinstance(found, Artifact) or found.manifest.build_key != wanted.build_key:
        return None
    if step.target.precision is not Precision.INT8:
        return found
    try:
        check_companion(found, CALIBRATION)
    except ArtifactError:
        return None
    return found if (step.folder / CALIBRATION).is_file() else None


def build_artifact(
    step: Step, wanted: Manifest, parent: ModelFolder, context: BuildContext
) -> Artifact:
    """Build a step's artifact and put it in its place.

    Raises:
        BuildError: If a converter fails.
        ArtifactError: If it cannot be written. In either case an older artifact is untouched.
    """
    backend = BACKENDS.get(step.target.backend)

    def write(folder: Path) -> None:
        request = BuildRequest(
            checkpoint=context.checkpoint,
            payload=folder / backend.payload_name,
            precision=step.target.precision,
            io=step.io,
            size=step.size,
            bounds=step.bounds,
            options={"facts": _facts(wanted)},
        )
        with tempfile.TemporaryDirectory() as scratch:
            if step.parent is not None:
                graph = Path(scratch) / "graph.onnx"
                graph.write_bytes(_finished_graph(step, wanted, parent, context, folder))
                request = dataclasses.replace(request, graph=graph)
            elif step.target.precision is Precision.INT8 and context.calibration is not None:
                images = _write_batches(Path(scratch), wanted, context.calibration, context)
                write_json(folder / CALIBRATION, describe(context.calibration, {}))
                request = dataclasses.replace(request, calibration=images)
            context.builder.build(backend, request)

    saved = save_folder(step.folder, wanted, write, context.versions[backend.name])
    return Artifact(saved.path, saved.manifest)


def _write_batches(
    folder: Path, wanted: Manifest, calibration: CalibrationSet, context: BuildContext
) -> tuple[Path, ...]:
    """Write the calibration images for a converter that calibrates by itself."""
    found = []
    for index, batch in enumerate(
        calibration.batches(wanted.preprocess, context.progress, "calibration images")
    ):
        found.append(folder / f"{index:05}.npy")
        np.save(found[-1], batch)
    return tuple(found)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """What a graph tells about itself (its metadata)."""
    plain = msgspec.to_builtins(manifest)
    names = ("model", "task", "classes", "preprocess", "io", "target", "note", "lineage")
    return {name: plain[name] for name in names if plain[name]}


def _finished_graph(
    step: Step, wanted: Manifest, parent: ModelFolder, context: BuildContext, folder: Path
) -> bytes:
    """Return the graph to build from; int8 also writes calibration.json into `folder`."""
    from segdeploy.export.graphs import (
        Ranges,
        apply_contract,
        convert_precision,
        find_ranges,
    )
    from segdeploy.graph.proto import graph_bytes, load_graph

    plain = load_graph(parent.payload)

    def ranges() -> Ranges:
        if context.calibration is None:
            raise BuildError("An int8 graph needs calibration images.")
        found = find_ranges(plain, context.calibration, wanted.preprocess, context.progress)
        write_json(folder / CALIBRATION, describe(context.calibration, found))
        return found

    rest = BACKENDS.get(step.target.backend).rest
    graph = convert_precision(plain, step.target.precision, ranges, rest)
    return graph_bytes(apply_contract(graph, step.io, wanted))
