"""Checkpoint and Artifact: a folder with a manifest. Stages meet only through these.

A checkpoint holds `weights.safetensors`; an artifact holds one payload (`model.onnx`, ...). Result
files (`parity.json`, `eval.json`, `bench.json`) lie beside them and are not part of the identity.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from segdeploy.core.errors import (
    ArtifactError,
    CheckpointError,
    DigestMismatchError,
    ManifestError,
)
from segdeploy.core.files import replacing_directory, sha256_file, write_bytes, write_errors
from segdeploy.core.manifest import Ancestor, Link, Manifest, decode_manifest, encode_manifest

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FOREIGN_SOURCE = "source.json"


@dataclass(frozen=True)
class ModelFolder:
    """A folder on disk and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """What reports call it: the target of an artifact, `pytorch-fp32` for a checkpoint."""
        usual = "original-onnx" if FOREIGN_SOURCE in self.manifest.files else "pytorch-fp32"
        return self.manifest.target or usual

    @property
    def payload(self) -> Path:
        """The one binary: the first file that the manifest names."""
        return self.path / next(iter(self.manifest.files))

    @property
    def size_mib(self) -> float:
        """Size of all files of the manifest, in MiB."""
        return sum((self.path / f).stat().st_size for f in self.manifest.files) / 2**20

    @property
    def ancestors(self) -> tuple[Ancestor, ...]:
        """The lineage of what is made from this folder: all before it, and itself."""
        own = Ancestor(self.name, self.manifest.digest, dict(self.manifest.files))
        return (*self.manifest.lineage, own)

    def link_from(self, folder: Path) -> Link:
        """Return a link to this folder as seen from another."""
        return Link(self.manifest.digest, os.path.relpath(self.path, folder))


class Checkpoint(ModelFolder):
    """Trained (or initialised) weights of a zoo model."""


class Artifact(ModelFolder):
    """An exported payload with its contract."""


def load_folder(path: Path, *, check_files: bool = True) -> Checkpoint | Artifact:
    """Open a checkpoint or artifact folder and check its files against the manifest.

    Raises:
        ArtifactError: If the folder or a file of it is missing.
        ManifestError: If the manifest is damaged.
        DigestMismatchError: If a file is not the promised one.
    """
    if path.name in {"", ".."}:  # `.` has no parent to look for siblings in.
        path = path.resolve()
    manifest_path = path / MANIFEST
    try:
        content = manifest_path.read_bytes()
    except OSError as error:
        found = _why_unreadable(path, error)
        raise ArtifactError(
            f"{path} is not a checkpoint or artifact: {found}.",
            hint="Give the folder that 'segdeploy train' or 'segdeploy export' wrote, "
            "e.g. RUN/checkpoint or RUN/onnx-fp32.",
        ) from error
    manifest = decode_manifest(content, str(manifest_path))
    if not manifest.files:
        raise ManifestError(f"{manifest_path} names no files.")
    if check_files:
        _check_files(path, manifest)
    return (Checkpoint if manifest.kind == "checkpoint" else Artifact)(path, manifest)


def _why_unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, NotADirectoryError):
        return "it is a file, not a folder"
    if isinstance(error, FileNotFoundError):
        return f"no {MANIFEST} in it" if path.is_dir() else "no such folder"
    return f"{MANIFEST} cannot be read ({error.strerror})"


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a folder that must be a checkpoint.

    Raises:
        CheckpointError: If it is an artifact; else as `load_folder`.
    """
    folder = load_folder(path)
    if not isinstance(folder, Checkpoint):
        raise CheckpointError(
            f"{path} is an artifact ({folder.name}), but a checkpoint is needed.",
            hint="Give the folder that 'segdeploy train' wrote, e.g. RUN/checkpoint.",
        )
    return folder


def load_artifact(path: Path) -> Artifact:
    """Open a folder that must be an artifact.

    Raises:
        ArtifactError: If it is a checkpoint; else as `load_folder`.
    """
    folder = load_folder(path)
    if not isinstance(folder, Artifact):
        raise ArtifactError(
            f"{path} is a checkpoint, but an exported artifact is needed.",
            hint="Export it first: segdeploy export CHECKPOINT --target onnx-fp32 --out RUN.",
        )
    return folder


def _check_files(path: Path, manifest: Manifest) -> None:
    for name, promised in manifest.files.items():
        _check_file(path, name, promised)


def check_companion(folder: ModelFolder, name: str) -> None:
    """Check a file that was written with the folder; one that the manifest does not know passes.

    Raises:
        ArtifactError: If it is missing.
        DigestMismatchError: If it is not the promised one.
    """
    promised = folder.manifest.companions.get(name)
    if promised is not None:
        _check_file(folder.path, name, promised)


def _check_file(path: Path, name: str, promised: str) -> None:
    file = path / name
    if not file.is_file():
        raise ArtifactError(
            f"{path} lacks its file {name}.", hint="Copy the whole folder, or build it again."
        )
    try:
        found = sha256_file(file)
    except OSError as error:
        raise ArtifactError(f"Cannot read {file}: {error.strerror}.") from error
    if found != promised:
        raise DigestMismatchError(
            f"{file} is damaged: sha256 {found[:12]}..., the manifest says {promised[:12]}...",
            hint="Build the folder again, or restore it from a backup.",
        )


def save_folder(
    path: Path,
    manifest: Manifest,
    write: Callable[[Path], Mapping[str, Any] | None],
    versions: Mapping[str, str] | None = None,
) -> Checkpoint | Artifact:
    """Write a folder atomically: `write` fills an empty folder, then the manifest is added.

    Args:
        path: Where it shall stand; an older folder there is replaced as a whole.
        manifest: Its `files`, `companions`, `built_with` and `built_on` are filled in here. Names
            already in `files` are kept in their order (the payload first); others that `write` made
            are companions, outside the identity.
        write: Writes the files of the manifest (and any companion) into the given folder. What it
            returns was found while building, and is added to the manifest's options.
        versions: Of further packages that the files were built with.

    Raises:
        ArtifactError: If it cannot be written, or a folder of something else is there.
    """
    check_replaceable(path, manifest.files)
    with replacing_directory(path) as temporary:
        found = write(temporary)
        complete = manifest.replace(
            options={**manifest.options, **(found or {})},
            files={name: sha256_file(temporary / name) for name in manifest.files},
            companions={
                file.name: sha256_file(file)
                for file in sorted(temporary.iterdir())
                if file.is_file() and file.name not in manifest.files
            },
            built_with={**installed_versions(), **(versions or {})},
            built_on=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {platform.platform()}",
        )
        (temporary / MANIFEST).write_bytes(encode_manifest(complete))
    return (Checkpoint if complete.kind == "checkpoint" else Artifact)(path, complete)


def check_replaceable(path: Path, names: Iterable[str] = ()) -> None:
    """Check that a folder is absent, empty, or a model folder: has a manifest or one of `names`.

    Raises:
        ArtifactError: If it holds something else.
    """
    with write_errors(path):
        is_ours = any((path / name).exists() for name in (MANIFEST, *names))
        if path.is_dir() and not is_ours and any(path.iterdir()):
            raise ArtifactError(
                f"{path} holds other files and no {MANIFEST}; it will not be replaced.",
                hint="Choose an empty or new folder.",
            )


def mark_passed(folder: ModelFolder, passed: bool) -> None:
    """Write the verdict of verify into the manifest on disk."""
    manifest = folder.manifest.replace(passed=passed)
    write_bytes(folder.path / MANIFEST, encode_manifest(manifest))


def add_options(folder: ModelFolder, **options: Any) -> None:
    """Write more options into the manifest on disk: what was found after the folder was made."""
    manifest = folder.manifest.replace(options={**folder.manifest.options, **options})
    write_bytes(folder.path / MANIFEST, encode_manifest(manifest))


def find_linked(folder: ModelFolder, link: Link | None) -> Checkpoint | Artifact | None:
    """Return the folder that a link means, found by digest at its hint or beside `folder`."""
    if link is None:
        return None
    beside = sorted(p.parent for p in folder.path.parent.glob(f"*/{MANIFEST}"))
    for candidate in [folder.path / link.hint, *beside]:
        try:  # Manifest first: hashing every sibling's payload would take minutes.
            place = candidate.resolve()
            if load_folder(place, check_files=False).manifest.digest == link.digest:
                return load_folder(place)
        except (ArtifactError, OSError, ValueError, RuntimeError):
            continue  # A hint may be nonsense: a null byte, a loop of links, endless.
    return None


NOTED_PACKAGES = (
    "segdeploy", "numpy", "pillow", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "safetensors",
)  # fmt: skip


def installed_versions(names: Iterable[str] = NOTED_PACKAGES) -> dict[str, str]:
    """Return the versions of packages as far as installed; default: what can change any result."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
