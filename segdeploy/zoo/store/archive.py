"""A checkpoint folder as one file: an uncompressed tar of its manifest, weights and recipe.

The same folder gives the same bytes. Weights do not compress, and without compression nothing in an
archive can be larger than the archive. Only the known bare names are taken out, and only plain
files: no links, no folders, no holes.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdeploy.core.errors import ArtifactError, CheckpointError, SegDeployError
from segdeploy.core.files import replacing_directory
from segdeploy.core.folder import (
    MANIFEST,
    WEIGHTS,
    Checkpoint,
    check_replaceable,
    load_checkpoint,
)

_NAMES = (MANIFEST, WEIGHTS, "train.toml")


def pack(checkpoint: Checkpoint) -> bytes:
    """Return the archive of a checkpoint.

    Raises:
        ArtifactError: If a file of it cannot be read.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:") as archive:
        for name in _NAMES:
            content = _read(checkpoint.path / name)
            if content is not None:
                member = tarfile.TarInfo(name)  # No owner, no time, mode 0644.
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArtifactError(f"Cannot read {file}: {error.strerror}.") from error


def unpack(packed: Path, out: Path, *, model: str) -> Checkpoint:
    """Write the archive's checkpoint to the folder `out`, whole or not at all.

    Args:
        packed: The archive.
        out: The folder; an older checkpoint there is replaced.
        model: Whose checkpoint it must be.

    Raises:
        CheckpointError: If the archive is unsafe or damaged, or holds no checkpoint of the model.
        ArtifactError: If it cannot be written, or a folder of something else is there.
    """
    check_replaceable(out)
    with replacing_directory(out) as folder:
        with _explained(packed):
            _extract(packed, folder)
            found = load_checkpoint(folder).manifest
        if found.model != model:
            raise CheckpointError(f"{packed} is a checkpoint of {found.model}, not of {model}.")
    return Checkpoint(out, found)


@contextmanager
def _explained(packed: Path) -> Iterator[None]:
    try:
        yield
    except SegDeployError as error:
        raise CheckpointError(f"{packed} holds no sound checkpoint: {error.message}") from error
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise CheckpointError(f"{packed} is not a sound archive: {error}.") from error


def _extract(packed: Path, folder: Path) -> None:
    with tarfile.open(packed, "r:") as archive:
        for member in archive:
            target = folder / member.name
            is_plain = member.type == tarfile.REGTYPE and not member.issparse()
            if member.name not in _NAMES or not is_plain or target.exists():
                raise CheckpointError(f"'{member.name}' in it is not a file of a checkpoint.")
            content = archive.extractfile(member)
            if content is not None:
                with content, target.open("xb") as file:
                    shutil.copyfileobj(content, file)
