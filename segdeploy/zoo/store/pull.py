"""Out of the store: fetch a file into the cache, and make a checkpoint of it where asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ConfigError, DigestMismatchError, DownloadError
from segdeploy.core.files import sha256_file
from segdeploy.core.folder import Checkpoint
from segdeploy.core.trust import check_trusted
from segdeploy.zoo.store.archive import unpack
from segdeploy.zoo.store.cache import cached_file
from segdeploy.zoo.store.download import Progress, download, is_whole
from segdeploy.zoo.store.index import Entry, Format
from segdeploy.zoo.store.locations import local_path
from segdeploy.zoo.store.reading import read_index
from segdeploy.zoo.store.sources import Patience


@dataclass(frozen=True)
class Pulled:
    """An entry's file in the cache, whole and checked, and the checkpoint made of it."""

    entry: Entry
    file: Path
    checkpoint: Checkpoint | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `segdeploy zoo pull`."""
        return {
            "name": self.entry.name,
            "model": self.entry.model,
            "format": str(self.entry.format),
            "file": str(self.file),
            "size_bytes": self.file.stat().st_size,
            "sha256": sha256_file(self.file),
            "checkpoint": str(self.checkpoint.path) if self.checkpoint else None,
            "digest": self.checkpoint.manifest.digest if self.checkpoint else None,
        }


def pull(
    name: str,
    *,
    out: Path | None = None,
    index: str | None = None,
    offline: bool = False,
    force: bool = False,
    patience: Patience | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch an entry of the store, unless it is in the cache.

    Args:
        name: Of the entry.
        out: Where a checkpoint folder shall stand; None only fetches.
        index: Path or URL; None means `SEGDEPLOY_ZOO` or the index that comes with segdeploy.
        offline: Never touch the network.
        force: Replace a checkpoint that stands at `out`.
        patience: With a server that is slow or in trouble.
        progress: Called with (done, total) bytes.

    Raises:
        UnknownNameError: If the index has no such entry.
        ConfigError: If the index is not valid, or `out` exists.
        DownloadError: If it cannot be fetched.
        DigestMismatchError: If it is not the file that the index promises.
        CheckpointError: If it is no sound checkpoint, or weights of another model.
        ArtifactError: If it cannot be written.
    """
    if out is not None and not force and out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} exists.", hint="Choose another --out, or give --force.")
    entry = read_index(index, offline=offline, patience=patience).get(name)
    file = cached_file(entry)
    if offline and local_path(entry.url) is None:
        _check_cached(entry, file)
    else:
        download(entry, file, patience, progress)
    return Pulled(entry, file, None if out is None else _make_checkpoint(entry, file, out, force))


def _check_cached(entry: Entry, file: Path) -> None:
    hint = f"Run 'segdeploy zoo pull {entry.name}' without --offline."
    if not file.is_file():
        raise DownloadError(f"'{entry.name}' is not in the cache: there is no {file}.", hint=hint)
    if not is_whole(entry, file):
        raise DigestMismatchError(f"{file} is damaged: it is not '{entry.name}'.", hint=hint)


def _make_checkpoint(entry: Entry, file: Path, out: Path, force: bool) -> Checkpoint:
    if entry.format is Format.CHECKPOINT:
        return unpack(file, out, model=entry.model)
    from segdeploy.frameworks.torch import require_torch

    check_trusted(entry.model, f"the entry '{entry.name}' of the index")
    require_torch("safetensors")
    from segdeploy.zoo.importing import import_weights

    return import_weights(
        file,
        model=entry.model,
        out=out,
        classes=None if isinstance(entry.classes, int) else entry.classes,
        preprocess=entry.preprocess,
        note="; ".join(text for text in (entry.source, entry.note, entry.licence) if text),
        force=force,
    )
