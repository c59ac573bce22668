"""Into the store: pack a checkpoint, put it where the store lies, and name it in the index.

The file is there before the index names it, so whoever reads finds all that is named. An index on
this machine's disks is locked meanwhile; one in an object store has no lock: let one job push.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.files import write_errors
from segdeploy.core.folder import Checkpoint, load_checkpoint
from segdeploy.core.results import EvalResult, read_result
from segdeploy.zoo.store.archive import pack
from segdeploy.zoo.store.filesystems import check_writable, exists, write_whole
from segdeploy.zoo.store.index import Entry, Format, Metrics, add_entry, decode_index
from segdeploy.zoo.store.locations import local_path, relate, shown
from segdeploy.zoo.store.reading import ZOO, read_whole
from segdeploy.zoo.store.sources import open_stream


@dataclass(frozen=True)
class Pushed:
    """What the index says now, and the identity of the checkpoint."""

    entry: Entry
    index: str
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `segdeploy zoo push`."""
        return {"index": self.index, "digest": self.digest, **self.entry.to_dict()}


def push(
    checkpoint: Path,
    *,
    name: str,
    url: str,
    index: str | None = None,
    metrics_from: Path | None = None,
    licence: str = "",
    force: bool = False,
) -> Pushed:
    """Add a checkpoint to a store.

    Args:
        checkpoint: Its folder.
        name: In the index.
        url: Path or URL of the file, or, with a slash at its end, of the folder for it.
        index: Path or URL of the index; made if absent. None means `SEGDEPLOY_ZOO`.
        metrics_from: An `eval.json` of the checkpoint.
        licence: What the weights may be used for, for people; an SPDX name where there is one.
        force: Replace another content of the same name.

    Raises:
        ConfigError: If the index or the address cannot be written to, or is not valid.
        ArtifactError: If the folder is no sound checkpoint, another content has the name already,
            or something cannot be written.
        DownloadError: If a remote file cannot be read or written.
    """
    found = load_checkpoint(checkpoint)
    location = _own_index(index)
    packed = pack(found)
    entry = _describe(found, packed, name=name, licence=licence, metrics_from=metrics_from)
    target = url + f"{name}-{entry.sha256[:16]}.tar" if url.endswith("/") else url
    check_writable(target)
    if relate(location, target) == relate(location, location):
        raise ConfigError(f"{shown(target)} is the index itself.", hint="Give another --url.")
    with _locked(location):
        content = read_whole(location) if exists(location) else b""
        known = decode_index(content, location).entries if content else {}
        if name in known and known[name].sha256 != entry.sha256 and not force:
            raise _taken(f"'{name}' is in the index {shown(location)} with another content.")
        _put(packed, target, force=force)
        entry = replace(entry, url=relate(location, target))
        write_whole(location, add_entry(content, entry, location))
    return Pushed(replace(entry, url=target), location, found.manifest.digest)


def _own_index(index: str | None) -> str:
    location = index or os.environ.get(ZOO)
    if not location:
        raise ConfigError("There is no index to push to.", hint=f"Give --index, or set {ZOO}.")
    check_writable(location)
    return location


def _describe(
    checkpoint: Checkpoint, packed: bytes, *, name: str, licence: str, metrics_from: Path | None
) -> Entry:
    manifest = checkpoint.manifest
    return Entry(
        name=name,
        model=manifest.model,
        format=Format.CHECKPOINT,
        classes=manifest.classes,
        url="",
        sha256=hashlib.sha256(packed).hexdigest(),
        size_bytes=len(packed),
        preprocess=manifest.preprocess,
        metrics=() if metrics_from is None else (_read_metrics(metrics_from),),
        licence=licence,
        note=manifest.note,
    )


def _read_metrics(path: Path) -> Metrics:
    try:
        result = EvalResult.from_dict(read_result(path) or {})
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not the eval.json of an evaluation.",
            hint="Write one: segdeploy evaluate CHECKPOINT --data D.",
        ) from error
    return Metrics(
        data=result.data,
        mean_iou=result.mean_iou,
        pixel_accuracy=result.pixel_accuracy,
        num_images=result.num_images,
    )


def _put(packed: bytes, target: str, *, force: bool) -> None:
    """Write the archive, unless it is there."""
    if exists(target):
        if _sha256_at(target) == hashlib.sha256(packed).hexdigest():
            return
        if not force:
            raise _taken(f"There is another file at {shown(target)}.")
    write_whole(target, packed)


def _sha256_at(location: str) -> str:
    digest = hashlib.sha256()
    with closing(open_stream(location)) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _taken(said: str) -> ArtifactError:
    return ArtifactError(said, hint="Choose another name or address, or replace it: --force.")


@contextmanager
def _locked(location: str) -> Iterator[None]:
    """Let one process at a time change an index of this machine, by a lock on its folder."""
    path = local_path(location)
    if path is None:
        yield
        return
    folder = path.resolve().parent
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        with write_errors(folder):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
