"""One step of a plan: reuse the artifact that is there, or build it.

Equal build key, same work: the key covers the parent's digest, the contract, the calibration
images, the preprocessing and the versions of all tools. A folder that is damaged is never reused.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from segdeploy.backends import BACKENDS
from segdeploy.backends.isolation import Builder
from segdeploy.core.contract import InputKind, OutputKind, contract_tensors
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
from segdeploy.export.upsampling import Upsampled, find_in_graph
from segdeploy.graph.policy import Policy

NORMALIZATION = "normalization"
"""Option of a graph with image input: whether the first convolution took it, and what is left."""
PLACEMENT = "placement.json"
"""Of an int8 graph: what became of every node, and why; the counts stand in the manifest."""

RECIPE = 3  # Raise it when the same inputs give another graph: older artifacts are then rebuilt.
# A change of one backend raises its own (`Backend.recipe`).


@dataclass(frozen=True)
class BuildContext:
    """What all steps of an export share.

    `versions` of packages, `missing` ones and `policies` of int8 graphs are by backend;
    `upsampling` is that of the module, where low-resolution logits are asked for.
    """

    checkpoint: Checkpoint
    calibration: CalibrationSet | None
    progress: Progress | None
    builder: Builder
    versions: Mapping[str, dict[str, str]]
    missing: Mapping[str, BackendUnavailableError]
    policies: Mapping[str, Policy] = field(default_factory=dict)
    upsampling: Upsampled | None = None


def describe_artifact(step: Step, parent: ModelFolder, context: BuildContext) -> Manifest:
    """Return the manifest of the artifact that a step makes, with its build key."""
    source = context.checkpoint.manifest
    upsampling, low_size = None, None
    if step.io.output is OutputKind.LOW_LOGITS:
        upsampling, low_size = context.upsampling or find_in_graph(parent)
    inputs, outputs = contract_tensors(
        step.io, source.task, len(source.classes), step.size, batch=step.batch, low_size=low_size
    )
    options: dict[str, Any] = {"size": list(step.size) if step.size else "dynamic"}
    backend = BACKENDS.get(step.target.backend)
    if _sees_images(step) and context.calibration is not None:
        options["calibration"] = {
            "data": context.calibration.spec,
            "num_images": len(context.calibration.indices),
            "digest": context.calibration.digest,
        }
        if is_graph_int8(step):
            options["calibration"]["options"] = context.calibration.options.to_dict()
    if step.io.input is InputKind.IMAGE and step.parent is not None:
        options[NORMALIZATION] = "folded"  # For the build key: older graphs are built again.
    if (policy := _policy_of(step, context)) is not None:
        options["int8"] = policy.identity
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
        upsampling=upsampling,
        trained=source.trained,
        note=source.note,
        options=options,
    )
    return manifest.replace(
        build_key=_build_key(manifest, context.versions[backend.name], backend.recipe)
    )


def _sees_images(step: Step) -> bool:
    """Return whether calibration images change the work: int8, and a graph that is cast to fp16."""
    is_cast = step.target.precision is Precision.FP16 and step.parent is not None
    return is_cast or step.target.precision is Precision.INT8


def _policy_of(step: Step, context: BuildContext) -> Policy | None:
    """Return which nodes an int8 graph quantises; a converter that calibrates decides itself."""
    return context.policies[step.target.backend] if is_graph_int8(step) else None


def is_graph_int8(step: Step) -> bool:
    """Return whether a step's int8 is nodes that we put into an ONNX graph."""
    return step.parent is not None and step.target.precision is Precision.INT8


def _build_key(manifest: Manifest, versions: Mapping[str, str], recipe: int) -> str:
    plain = msgspec.to_builtins(manifest)
    if plain["upsampling"] is None:
        del plain["upsampling"]  # Keys of all other artifacts are older than this field.
    plain["options"].get("int8", {}).pop("policy", None)  # Its digest says what it does.
    for link in ("parent", "reference"):
        plain[link] = plain[link]["digest"]  # Where it lies may change; what it is may not.
    recipes = [RECIPE, recipe] if recipe else RECIPE
    return digest_of(
        {"manifest": plain, "recipe": recipes, "versions": {**installed_versions(), **versions}}
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

    def write(folder: Path) -> dict[str, Any]:
        request = BuildRequest(
            checkpoint=context.checkpoint,
            payload=folder / backend.payload_name,
            precision=step.target.precision,
            io=step.io,
            size=step.size,
            bounds=step.bounds,
            options={"facts": _facts(wanted)},
        )
        found: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as scratch:
            if step.parent is not None:
                graph = Path(scratch) / "graph.onnx"
                content, found = _finished_graph(step, wanted, parent, context, folder)
                graph.write_bytes(content)
                request = dataclasses.replace(request, graph=graph)
            elif step.target.precision is Precision.INT8 and context.calibration is not None:
                images = _write_batches(Path(scratch), wanted, context.calibration, context)
                write_json(folder / CALIBRATION, describe(context.calibration, {}))
                request = dataclasses.replace(request, calibration=images)
            context.builder.build(backend, request)
        return found

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
    names = (
        "model", "task", "classes", "preprocess", "io", "target", "note", "lineage", "upsampling",
    )  # fmt: skip
    return {name: plain[name] for name in names if plain[name]}


def _finished_graph(
    step: Step, wanted: Manifest, parent: ModelFolder, context: BuildContext, folder: Path
) -> tuple[bytes, dict[str, Any]]:
    """Return the graph to build from, and what was found while it was made.

    int8 also writes calibration.json and placement.json into `folder`.
    """
    import onnx

    from segdeploy.export.graphs import (
        Ranges,
        apply_contract,
        convert_precision,
        find_peaks,
        find_ranges,
        finish_int8,
        prepare_int8,
    )
    from segdeploy.graph.fold_normalization import fold_normalization
    from segdeploy.graph.overflow import Peaks
    from segdeploy.graph.proto import graph_bytes, load_graph
    from segdeploy.graph.qdq import half_scale

    plain, rest = load_graph(parent.payload), BACKENDS.get(step.target.backend).rest
    policy = _policy_of(step, context)
    images, spec, progress = context.calibration, wanted.preprocess, context.progress
    if step.io.input is InputKind.IMAGE:
        plain, spec = fold_normalization(plain, spec)
    if is_graph_int8(step) and images is not None:
        plain = prepare_int8(plain, images, spec, progress)

    def ranges() -> Ranges:
        if images is None:
            raise BuildError("An int8 graph needs calibration images.")
        found = find_ranges(plain, images, spec, progress, policy)
        is_half = rest is Precision.FP16
        write_json(folder / CALIBRATION, describe(images, found, half_scale if is_half else float))
        return found

    def peaks(model: onnx.ModelProto) -> Peaks | None:
        return None if images is None else find_peaks(model, images, spec, progress)

    def finish(model: onnx.ModelProto) -> onnx.ModelProto:
        return model if images is None else finish_int8(plain, model, images, spec, progress)

    graph, found = convert_precision(
        plain, step.target.precision, ranges, rest, peaks, policy, finish
    )
    if "int8" in found:
        write_json(folder / PLACEMENT, {"nodes": found["int8"].pop("nodes")})
    if step.io.input is InputKind.IMAGE:
        found[NORMALIZATION] = {"folded": spec != wanted.preprocess, "subtracts": list(spec.mean)}
    return graph_bytes(apply_contract(graph, step.io, wanted.replace(preprocess=spec))), found
