"""A model that came as an ONNX file: how its original is fed and read.

It is a checkpoint folder as any other, so that every stage finds its reference by digest; what
stands for weights and code is the original file, byte for byte (`model.onnx`, and its external
data), and `source.json` beside it. Both are part of the folder's identity: the same file read at
another output or in another layout is another model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import msgspec

from segdeploy.core.errors import ManifestError
from segdeploy.core.folder import FOREIGN_SOURCE as SOURCE
from segdeploy.core.folder import Checkpoint, ModelFolder

ORIGINAL = "model.onnx"


class Layout(StrEnum):
    """Order of the axes of a batch: channels first or last."""

    NCHW = "nchw"
    NHWC = "nhwc"


@dataclass(frozen=True, kw_only=True)
class ForeignGraph:
    """The facts of an original file.

    `input` and `output` are tensor names; `output` is where the logits are, which may lie before a
    final softmax or argmax (`cut` names what is left out). `size` (H, W) and `batch` are None
    where dynamic. `upsample` says that the logits are resized to the image's size (bilinear,
    half-pixel centres), `is_uint8` that the model takes pixels and normalises them itself.
    `external` are files of weights beside it. `warnings` are for people.
    """

    input: str
    layout: Layout
    output: str
    output_layout: Layout
    num_channels: int
    size: tuple[int, int] | None
    batch: int | None
    upsample: bool
    opset: int
    is_uint8: bool = False
    cut: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def is_foreign(folder: ModelFolder) -> bool:
    """Return whether a folder holds the original of a foreign model."""
    return isinstance(folder, Checkpoint) and SOURCE in folder.manifest.files


def encode_facts(facts: ForeignGraph) -> bytes:
    """Return the content of `source.json`: what the model is, so without what was said of it."""
    plain = msgspec.json.encode(replace(facts, warnings=()))
    return msgspec.json.format(plain, indent=2) + b"\n"


def read_facts(folder: ModelFolder) -> ForeignGraph:
    """Return the facts of a foreign checkpoint.

    Raises:
        ManifestError: If `source.json` is damaged.
    """
    path: Path = folder.path / SOURCE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ForeignGraph)
    except (OSError, msgspec.DecodeError) as error:
        raise ManifestError(
            f"{path} is not valid: {error}", hint="Import the model again."
        ) from error


__all__ = [
    "ORIGINAL",
    "SOURCE",
    "ForeignGraph",
    "Layout",
    "encode_facts",
    "is_foreign",
    "read_facts",
]
