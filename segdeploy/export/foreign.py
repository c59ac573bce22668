"""A foreign `model.onnx` becomes a checkpoint: RUN/source, the reference of all that is made of it.

An ONNX file says nothing of how pixels become its input, and little of what its output means. What
it does not say comes from flags or a TOML file; preprocessing has no default at all, since a wrong
one gives an empty mask and no error.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec

from segdeploy.backends.isolation import inspect_foreign
from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.files import sha256_file, write_bytes
from segdeploy.core.folder import Checkpoint, load_folder, save_folder
from segdeploy.core.foreign import (
    ORIGINAL,
    SOURCE,
    ForeignGraph,
    Layout,
    encode_facts,
    is_foreign,
)
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import Kernel, PreprocessSpec, SizeRule
from segdeploy.core.task import Task

SOURCE_FOLDER = "source"
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What is said of a foreign model, by flags or TOML; None is not said.

    `mean` and `std` are in the model's channel order: its input is (pixel x scale - mean) / std.
    """

    input_name: str | None = None
    layout: Layout | None = None
    output_name: str | None = None
    output_layout: Layout | None = None
    upsample: bool | None = None
    is_logits: bool | None = None
    task: Task | None = None
    classes: tuple[str, ...] | None = None
    scale: float | None = None
    mean: Triple | None = None
    std: Triple | None = None
    channel_order: str | None = None
    size_rule: SizeRule | None = None
    kernel: Kernel | None = None
    antialias: bool | None = None
    pad_value: int | None = None
    note: str | None = None

    def is_empty(self) -> bool:
        """Return whether nothing is said."""
        return all(getattr(self, f.name) is None for f in fields(self))

    def over(self, other: ForeignOptions) -> ForeignOptions:
        """Return these options, with the other's where nothing is said here."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: v for name, v in said.items() if v is not None})


def read_options(path: Path) -> ForeignOptions:
    """Return the options of a TOML file.

    Raises:
        ConfigError: If it cannot be read, or has a wrong key or value.
    """
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    known = [f.name for f in fields(ForeignOptions)]
    if unknown := sorted(set(plain) - set(known)):
        raise ConfigError(
            f"{path} has unknown keys: {', '.join(unknown)}.", hint=f"Known: {', '.join(known)}."
        )
    try:
        return msgspec.convert(plain, ForeignOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}.") from error


@dataclass(frozen=True)
class ForeignImport:
    """A foreign checkpoint as it will stand in the run folder, and the files to write there."""

    checkpoint: Checkpoint
    original: Path
    facts: ForeignGraph

    def describe(self) -> list[str]:
        """Return what was understood, a line each."""
        facts, manifest = self.facts, self.checkpoint.manifest
        spec = manifest.preprocess
        size = "x".join(map(str, facts.size)) if facts.size else "any"
        batch = facts.batch or "any"
        mean, std = _numbers(spec.mean), _numbers(spec.std)
        return [
            f"{self.original.name}: opset {facts.opset}",
            f"input '{facts.input}': {facts.layout}, batch {batch}, size {size}",
            f"pixels: {spec.channel_order} x {spec.scale:.6g}, mean {mean}, std {std}, "
            + spec.size_rule,
            f"logits '{facts.output}': {facts.output_layout}, {facts.num_channels} channels"
            + (", resized to the image" if facts.upsample else ""),
            f"task: {manifest.task}, classes {', '.join(manifest.classes[:8])}"
            + (", ..." if len(manifest.classes) > 8 else ""),
            *facts.warnings,
        ]

    def write(self, *, force: bool) -> Checkpoint:
        """Put the checkpoint into its place, or take the one that is there.

        Raises:
            ConfigError: If another model stands there.
            ArtifactError: If it cannot be written.
        """
        there = _existing(self.checkpoint.path)
        is_same = there is not None and there.manifest.digest == self.checkpoint.manifest.digest
        if is_same and (whole := _existing(self.checkpoint.path, check_files=True)) is not None:
            return whole
        if there is not None and not is_same and not force:
            raise ConfigError(
                f"{there.path} holds another foreign model, or the same read differently "
                f"({there.manifest.model}).",
                hint="Use another --out, or --force to replace it; what was made of it is stale.",
            )
        saved = save_folder(self.checkpoint.path, self.checkpoint.manifest, self._fill)
        return Checkpoint(saved.path, saved.manifest)

    def _fill(self, folder: Path) -> None:
        write_bytes(folder / SOURCE, encode_facts(self.facts))
        for source, name in _files(self.original, self.facts):
            try:
                shutil.copyfile(source, folder / name)
            except OSError as error:
                raise ArtifactError(f"Cannot copy {source}: {error.strerror}.") from error
        for name, promised in self.checkpoint.manifest.files.items():
            if sha256_file(folder / name) != promised:
                raise ArtifactError(f"{name} of {self.original} changed while it was read.")


def plan_import(
    original: Path, out: Path, options: ForeignOptions, size: tuple[int, int] | None = None
) -> ForeignImport:
    """Return what an ONNX file will be in the run folder `out`; nothing is written.

    Raises:
        ConfigError: If something must be said that was not.
        ArtifactError, ExportError: If it cannot be read, or not be handled.
    """
    _check_place(out / SOURCE_FOLDER)
    preprocess = _preprocess(original, options)
    facts = inspect_foreign(
        original,
        {
            "input": options.input_name,
            "layout": options.layout,
            "output": options.output_name,
            "output_layout": options.output_layout,
            "size": size,
            "upsample": bool(options.upsample),
            "is_logits": bool(options.is_logits),
            "preprocess": preprocess,
        },
    )
    _check_external_names(original, facts)
    task = _find_task(original, options.task, facts)
    classes = _find_classes(original, options.classes, task, facts.num_channels)
    inputs, outputs = contract_tensors(
        IoContract(), task, len(classes), facts.size, batch=facts.batch
    )
    digests = {name: sha256_file(source) for source, name in _files(original, facts)}
    digests[SOURCE] = hashlib.sha256(encode_facts(facts)).hexdigest()
    manifest = Manifest(
        kind="checkpoint",
        model=f"foreign/{_model_name(original)}",
        task=task,
        classes=classes,
        preprocess=_sized(preprocess, options, facts.size),
        inputs=inputs,
        outputs=outputs,
        files=digests,
        design_size=facts.size or size,
        note=options.note or "",
        options={"original": original.name},
    )
    return ForeignImport(Checkpoint(out / SOURCE_FOLDER, manifest), original, facts)


def _check_place(folder: Path) -> None:
    """Refuse a place that holds something else than a foreign checkpoint."""
    if folder.exists() and _existing(folder) is None and any(folder.iterdir()):
        raise ArtifactError(
            f"{folder} exists and is no foreign model; it will not be replaced.",
            hint="Use another --out.",
        )


def _existing(folder: Path, *, check_files: bool = False) -> Checkpoint | None:
    """Return the foreign checkpoint at a place, if it is one (and whole)."""
    try:
        found = load_folder(folder, check_files=check_files)
    except ArtifactError:
        return None
    return found if isinstance(found, Checkpoint) and is_foreign(found) else None


def _files(original: Path, facts: ForeignGraph) -> list[tuple[Path, str]]:
    beside = [(original.parent / name, name) for name in facts.external]
    return [(original, ORIGINAL), *beside]


def _check_external_names(original: Path, facts: ForeignGraph) -> None:
    """Refuse weights in a file that has the name of one of our own in RUN/source."""
    for name in facts.external:
        if name.casefold() == ORIGINAL or name.casefold().endswith((".json", ".jsonl")):
            raise ConfigError(
                f"{original} keeps weights in {name}; files of such names in {SOURCE_FOLDER}/ are "
                "segdeploy's own.",
                hint="Save the model as one file: onnx.save(onnx.load(OLD), NEW).",
            )


def _model_name(original: Path) -> str:
    return re.sub(r"[^\w.-]+", "_", original.stem) or "model"


def _preprocess(original: Path, options: ForeignOptions) -> PreprocessSpec:
    """Return the arithmetic of the preprocessing; its size rule comes later."""
    if options.mean is None or options.std is None or options.scale is None:
        missing = [n for n in ("scale", "mean", "std") if getattr(options, n) is None]
        raise ConfigError(
            f"How pixels become the input of {original} is not in the file: "
            f"{', '.join(f'--{n}' for n in missing)} not given.",
            hint="The input is (pixel x scale - mean) / std, pixel 0..255. Usual are:\n"
            "  --scale 0.00392156862745098 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225  "
            "(PyTorch)\n"
            "  --scale 0.00784313725490196 --mean 1,1,1 --std 1,1,1  (TensorFlow: -1..1)\n"
            "  --scale 1 --mean 0,0,0 --std 1,1,1  (0..255)",
        )
    return PreprocessSpec(
        scale=options.scale,
        mean=options.mean,
        std=options.std,
        channel_order=options.channel_order or "rgb",
        kernel=options.kernel or Kernel.BILINEAR,
        antialias=True if options.antialias is None else options.antialias,
        pad_value=114 if options.pad_value is None else options.pad_value,
    )


def _sized(
    spec: PreprocessSpec, options: ForeignOptions, size: tuple[int, int] | None
) -> PreprocessSpec:
    """Return the preprocessing with its size rule: images are brought to a fixed size."""
    rule = options.size_rule or (SizeRule.FIXED if size else SizeRule.KEEP)
    allowed = (SizeRule.FIXED, SizeRule.LETTERBOX) if size else (SizeRule.KEEP,)
    if rule not in allowed:
        raise ConfigError(
            f"The size rule {rule} does not fit a model of {'one' if size else 'any'} size.",
            hint=f"Use {' or '.join(allowed)}.",
        )
    return replace(spec, size_rule=rule, size=size)


def _find_task(original: Path, said: Task | None, facts: ForeignGraph) -> Task:
    channels = facts.num_channels
    if said is Task.BINARY and channels != 1:
        raise ConfigError(
            f"A binary task has 1 channel; the logits of {original} have {channels}.",
            hint="Use --task multiclass --classes background,foreground for two.",
        )
    if said is not None:
        return said
    if channels == 1:
        return Task.BINARY
    if facts.cut and facts.cut[-1] == "Sigmoid":
        raise ConfigError(
            f"{original} ends in a sigmoid over {channels} channels.",
            hint="Give --task multilabel (each class is a yes or no) or --task multiclass.",
        )
    return Task.MULTICLASS


def _find_classes(
    original: Path, said: tuple[str, ...] | None, task: Task, channels: int
) -> tuple[str, ...]:
    if said is None:
        binary = task is Task.BINARY
        return ("foreground",) if binary else tuple(f"class_{k}" for k in range(channels))
    if len(said) != channels:
        raise ConfigError(
            f"{len(said)} class names were given; the logits of {original} have {channels} "
            "channels.",
            hint="Give --classes one name for each channel, in their order.",
        )
    return said


def _numbers(values: Triple) -> str:
    return ",".join(f"{value:.6g}" for value in values)
