"""`manifest.json`: what a model folder is, made from what, and whether it was found good.

Schema promise: this segdeploy reads every schema version up to `SCHEMA_VERSION`; fields are only
added, with a default that keeps an older folder's meaning. A newer version is refused with a hint.

Two digests: `digest` is the folder's identity (what it computes: files, model, contract), so a
verdict written later does not change it and other folders can refer to it. `checksum` in the file
covers all fields, so that a changed byte anywhere is found. Both show integrity, not origin.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from segdeploy.core.contract import IoContract, SizeBounds, TensorSpec, Upsampling
from segdeploy.core.errors import ManifestError, SegDeployError
from segdeploy.core.files import canonical_json, digest_of
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task

SCHEMA_VERSION = 1
_IDENTITY = ("kind", "model", "task", "classes", "preprocess", "io", "target", "files")


@dataclass(frozen=True)
class Link:
    """Another model folder: its digest, and where it lay relative to this one (a hint only)."""

    digest: str
    hint: str


@dataclass(frozen=True)
class Ancestor:
    """A model folder that another was made from: enough to know it when it is not there.

    `name` is its target, or `pytorch-fp32` of a checkpoint; `files` maps names to sha256.
    """

    name: str
    digest: str
    files: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is known of a model folder.

    `classes` are the K label names; a binary task has one (the foreground). `files` maps bare
    names to sha256. `parent` is what it was converted from, `reference` the checkpoint that
    defines right, `lineage` all ancestors from that checkpoint to the parent. `build_key` is the
    digest of everything a stage depended on; equal key, same work. `companions` maps further files
    of the folder (recipe, training state, calibration) to sha256: no part of the identity, checked
    by who reads them. `bounds` limits dynamic sizes. `upsampling` says how labels are made of
    low-resolution logits. `passed` is the verdict of verify, None before. `trained` is False for
    weights that were never trained, which parity judges by the noise floor only.
    """

    kind: Literal["checkpoint", "artifact"]
    model: str
    task: Task
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, str]
    io: IoContract = field(default_factory=IoContract)
    target: str | None = None
    parent: Link | None = None
    reference: Link | None = None
    lineage: tuple[Ancestor, ...] = ()
    design_size: tuple[int, int] | None = None
    bounds: SizeBounds | None = None
    upsampling: Upsampling | None = None
    trained: bool = True
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    build_key: str = ""
    companions: dict[str, str] = field(default_factory=dict)
    built_with: dict[str, str] = field(default_factory=dict)
    built_on: str = ""
    passed: bool | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        names = set(self.classes)
        if not names or len(names) != len(self.classes) or not all(n.strip() for n in names):
            raise ManifestError(f"Class names must be present and unique, found {self.classes}.")
        if self.task is Task.BINARY and len(self.classes) != 1:
            raise ManifestError(f"A binary task has one class name, found {self.classes}.")
        for name in self.files:
            if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                raise ManifestError(f"'{name}' is not a bare file name.")

    @property
    def digest(self) -> str:
        """Identity of the folder: sha256 over what it computes."""
        plain = msgspec.to_builtins(self)
        identity = {name: plain[name] for name in _IDENTITY}
        if self.upsampling is not None:  # Older folders have none, and keep their identity.
            identity["upsampling"] = plain["upsampling"]
        return digest_of(identity)

    def replace(self, **changes: Any) -> Manifest:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of `manifest.json`, with its checksum."""
    # Through JSON, so that the checksum is taken of what a reader will see (keys are text there).
    plain = msgspec.json.decode(msgspec.json.encode(manifest))
    plain["checksum"] = _checksum(plain)
    return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def decode_manifest(content: bytes, where: str) -> Manifest:
    """Read the content of a `manifest.json`; `where` names it in messages.

    Raises:
        ManifestError: If it is no JSON, was changed, is newer, or lacks or misuses a field.
    """
    try:
        plain = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{where} is not readable JSON: {error}.", hint=_REBUILD) from error
    if not isinstance(plain, dict) or not isinstance(plain.get("schema_version"), int):
        raise ManifestError(f"{where} is not a segdeploy manifest (no schema_version).")
    if plain["schema_version"] > SCHEMA_VERSION:
        raise ManifestError(
            f"{where} has schema version {plain['schema_version']}; this segdeploy reads up to "
            f"{SCHEMA_VERSION}.",
            hint="Install a newer segdeploy.",
        )
    found = plain.pop("checksum", None)
    if found != _checksum(plain):
        raise ManifestError(f"{where} was changed after it was written.", hint=_REBUILD)
    try:
        return msgspec.convert(plain, Manifest)
    except (msgspec.ValidationError, SegDeployError) as error:
        raise ManifestError(f"{where} is not valid: {error}", hint=_REBUILD) from error


_REBUILD = "Build the folder again, or restore it from a backup."


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(plain)).hexdigest()
