"""What a foreign graph is: found in its file where it says so, else by running it, else asked for.

A guess is never made in silence: what is ambiguous is an error that lists what was found and names
the flag that decides. The original is run once on a smooth picture, since files lie about shapes
and softmax can hide inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from segdeploy.backends.foreign import open_original, place_batch
from segdeploy.backends.foreign_export import prepare
from segdeploy.core.errors import ArtifactError, ConfigError, ExportError, SegDeployError
from segdeploy.core.foreign import ForeignGraph, Layout
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.graph.original import (
    check_precision,
    check_supported,
    external_files,
    load_original,
)
from segdeploy.graph.proto import load_graph, opset_version, tensor_names
from segdeploy.graph.tail import Tail, find_tail, holds_shares

MAX_SIDE = 16384  # As of any export.
_TRIAL_SIZE, _ODD_SIZE = (256, 256), (225, 231)
_KINDS: dict[int, str] = {
    TensorProto.FLOAT: "float32", TensorProto.UINT8: "uint8", TensorProto.INT64: "int64",
    TensorProto.FLOAT16: "float16", TensorProto.INT32: "int32", TensorProto.DOUBLE: "float64",
    TensorProto.BOOL: "bool", TensorProto.INT8: "int8", TensorProto.BFLOAT16: "bfloat16",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user said of the graph; None is for us to find out."""

    input: str | None = None
    layout: Layout | None = None
    output: str | None = None
    output_layout: Layout | None = None
    size: tuple[int, int] | None = None
    upsample: bool = False
    is_logits: bool = False
    preprocess: PreprocessSpec


def inspect_file(path: Path, wanted: Wanted) -> ForeignGraph:
    """Return the facts of an ONNX file.

    Raises:
        ArtifactError: If it is no ONNX file, not whole, or cannot be run.
        ExportError: If it is a graph of a kind that is not supported.
        ConfigError: If it is not clear how to feed or read it; the hint names the flag.
    """
    try:
        return _Inspector(path, wanted).inspect()
    except (SegDeployError, OSError, MemoryError):
        raise
    except Exception as error:  # ONNX's own libraries, on a file that contradicts itself.
        raise ArtifactError(
            f"{path} is damaged: {type(error).__name__}: {str(error)[:500]}"
        ) from error


def inspect_request(request: dict[str, Any]) -> dict[str, Any]:
    """Answer for another process: plain values in and out."""
    wanted = msgspec.convert(request["wanted"], Wanted)
    found: dict[str, Any] = msgspec.to_builtins(inspect_file(Path(request["path"]), wanted))
    return found


class _Inspector:
    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path, self.wanted = path, wanted
        self.model = prepare(load_original(path))
        check_supported(self.model, path)
        check_precision(self.model, path)
        self.external = external_files(load_graph(path))
        self.warnings: list[str] = []

    def inspect(self) -> ForeignGraph:
        source = self._find_input()
        layout, batch, size = self._read_shape(source)
        tail = self._find_output()
        fed = size or self.wanted.size or _TRIAL_SIZE
        logits = self._try(source, layout, tail, fed)
        output_layout, is_coarse = self._read_logits(logits, tail, layout, fed)
        axis = 1 if output_layout is Layout.NCHW else 3
        self._check_values(logits, axis, tail)
        if size is None and self.wanted.size is None and not self.wanted.upsample:
            self._warn_of_odd_sizes(source, layout, tail, output_layout)
        return ForeignGraph(
            input=source.name,
            layout=layout,
            output=tail.tensor,
            output_layout=output_layout,
            num_channels=logits.shape[axis],
            size=size,
            batch=batch,
            upsample=is_coarse or (self.wanted.upsample and size is None),
            opset=opset_version(self.model),
            cut=tail.cut,
            is_uint8=_is_uint8(source),
            external=self.external,
            warnings=tuple(self.warnings),
        )

    def _warn_of_odd_sizes(
        self, source: onnx.ValueInfoProto, layout: Layout, tail: Tail, output_layout: Layout
    ) -> None:
        """Say so if the map of an odd-sized image has another size."""
        try:
            shape = self._try(source, layout, tail, _ODD_SIZE).shape
        except (ArtifactError, ExportError):
            self.warnings.append(f"does not take {_ODD_SIZE[0]}x{_ODD_SIZE[1]}, nor such sizes")
            return
        found = shape[2:] if output_layout is Layout.NCHW else shape[1:3]
        if found != _ODD_SIZE:
            self.warnings.append(
                f"gives {found[0]}x{found[1]} for {_ODD_SIZE[0]}x{_ODD_SIZE[1]}: give --upsample "
                "to resize it to the image's size, or one --size that it keeps"
            )

    def _find_input(self) -> onnx.ValueInfoProto:
        graph = self.model.graph
        stored = {tensor.name for tensor in graph.initializer}
        inputs = {v.name: v for v in graph.input if v.name not in stored}
        name = self.wanted.input
        if name is None and len(inputs) == 1:
            name = next(iter(inputs))
        if name is None or name not in inputs:
            asked = f"no input '{name}'" if name else f"{len(inputs)} inputs"
            raise ConfigError(
                f"{self.path} has {asked}; its inputs are: {_list(inputs.values())}.",
                hint="Name the image with --input-name.",
            )
        value: onnx.ValueInfoProto = inputs[name]
        kind = value.type.tensor_type
        allowed = (TensorProto.FLOAT, TensorProto.UINT8)
        if kind.elem_type not in allowed or len(kind.shape.dim) != 4:
            raise ExportError(
                f"The input of {self.path} must be float32 or uint8 of four dimensions (a batch of "
                f"images), found {_show(value)}.",
                hint="Export the model again with a float32 image batch as its input.",
            )
        if _is_uint8(value) and not _is_identity(self.wanted.preprocess):
            raise ConfigError(
                f"{self.path} takes uint8 pixels ({_show(value)}), so it normalises them itself.",
                hint="Give --scale 1 --mean 0,0,0 --std 1,1,1.",
            )
        return value

    def _read_shape(
        self, value: onnx.ValueInfoProto
    ) -> tuple[Layout, int | None, tuple[int, int] | None]:
        """Return layout, N and (H, W) of the input; None is dynamic."""
        dims = value.type.tensor_type.shape.dim
        sides = [d.dim_value if d.dim_value > 0 else None for d in dims]  # -1 is written, too.
        layout = self.wanted.layout or self._guess_layout(value, sides)
        channels = sides[1 if layout is Layout.NCHW else 3]
        if channels not in (3, None):
            raise ExportError(
                f"The input of {self.path} has {channels} channels ({_show(value)}, {layout}); "
                "segdeploy feeds RGB images, which have 3.",
                hint="Put a layer in front that makes its channels of 3, and export again.",
            )
        if sides[0] not in (1, None):
            raise ExportError(
                f"The input of {self.path} has a fixed batch of {sides[0]} ({_show(value)}).",
                hint="Export the model again with batch 1 or a dynamic batch.",
            )
        height, width = (sides[2], sides[3]) if layout is Layout.NCHW else (sides[1], sides[2])
        if max(height or 1, width or 1) > MAX_SIDE:
            raise ExportError(
                f"The input of {self.path} is larger than {MAX_SIDE} pixels a side: {_show(value)}."
            )
        if height and width:
            return layout, sides[0], (height, width)
        if (height or width) and self.wanted.size is None:
            raise ConfigError(
                f"The input of {self.path} is half dynamic: {_show(value)}.",
                hint="Give one size: --size HxW.",
            )
        return layout, sides[0], None

    def _guess_layout(self, value: onnx.ValueInfoProto, sides: list[int | None]) -> Layout:
        first, last = sides[1], sides[3]
        if first == 3 and last != 3:
            return Layout.NCHW
        if last == 3 and first != 3:
            return Layout.NHWC
        # One and four channels: seen as what they are, and refused with the right words.
        if first in (1, 4) and last not in (1, 4):
            return Layout.NCHW
        if last in (1, 4) and first not in (1, 4):
            return Layout.NHWC
        raise ConfigError(
            f"The channels of the input {_show(value)} of {self.path} cannot be told from sizes.",
            hint="Give --layout nchw or --layout nhwc.",
        )

    def _find_output(self) -> Tail:
        graph = self.model.graph
        name = self.wanted.output
        outputs = {v.name: v for v in graph.output}
        if name is None:
            maps = [v for v in outputs.values() if self._may_be_logits(v)]
            name = maps[0].name if len(maps) == 1 else None
            if len(outputs) == 1:
                name = next(iter(outputs))
        if name is None or name not in {*tensor_names(graph)}:
            asked = f"no tensor '{name}'" if name else f"{len(outputs)} outputs"
            raise ConfigError(
                f"{self.path} has {asked}; its outputs are: {_list(outputs.values())}.",
                hint="Name the logits with --output-name.",
            )
        if len(outputs) > 1:
            left = [n for n in outputs if n != name]
            self.warnings.append(f"left out the outputs {', '.join(left)}")
        tail = Tail(name) if self.wanted.is_logits else find_tail(self.model, name)
        if tail.cut:
            self.warnings.append(f"left out {' and '.join(tail.cut[::-1])} behind the logits")
        return tail

    @staticmethod
    def _may_be_logits(value: onnx.ValueInfoProto) -> bool:
        kind = value.type.tensor_type
        has_rank = kind.HasField("shape")
        return kind.elem_type == TensorProto.FLOAT and (not has_rank or len(kind.shape.dim) == 4)

    def _try(
        self, source: onnx.ValueInfoProto, layout: Layout, tail: Tail, size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Run the original on one smooth picture and return its logits as they come."""
        runtime = open_original(self.path, source.name, tail.tensor)
        pixels = normalize_image(_smooth_picture(size), self.wanted.preprocess)[None]
        batch = place_batch(pixels, layout, is_uint8=_is_uint8(source))
        try:
            logits = runtime.run(None, {source.name: batch})[0]
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run {self.path} on an image of {size[0]}x{size[1]}: {error}",
                hint="If it takes only some sizes, give one: --size HxW.",
            ) from error
        found = np.asarray(logits)
        if found.dtype != np.float32 or found.ndim != 4:
            raise ExportError(
                f"The output '{tail.tensor}' of {self.path} is {found.dtype} of shape "
                f"{_sides(found.shape)}; logits are float32 of four dimensions.",
                hint="Name the tensor that holds the logits with --output-name; any inner one will "
                "do.",
            )
        return found

    def _read_logits(
        self, logits: NDArray[np.float32], tail: Tail, layout: Layout, fed: tuple[int, int]
    ) -> tuple[Layout, bool]:
        """Return the layout of the logits, and whether they must be resized to the image."""
        shape = logits.shape
        sizes = {Layout.NCHW: (shape[2], shape[3]), Layout.NHWC: (shape[1], shape[2])}
        decided = self._layout_of_decision(tail)
        known = self.wanted.output_layout or decided
        if known is None:
            fitting = [k for k in (layout, *Layout) if sizes[k] == fed] or [
                k for k in (layout, *Layout) if _is_coarser(sizes[k], fed)
            ]
            known = fitting[0] if fitting else None
        if known is None or not (sizes[known] == fed or _is_coarser(sizes[known], fed)):
            raise ExportError(
                f"The output '{tail.tensor}' of {self.path} has shape {_sides(shape)} for an image "
                f"of {fed[0]}x{fed[1]}, which is no map of it.",
                hint="Name the logits with --output-name, or give --output-layout nchw|nhwc.",
            )
        is_coarse = sizes[known] != fed
        if is_coarse and not self.wanted.upsample:
            found = f"{sizes[known][0]}x{sizes[known][1]}"
            raise ConfigError(
                f"The logits of {self.path} have {found} pixels for an image of {fed[0]}x{fed[1]}.",
                hint="Give --upsample to resize them to the image's size (bilinear, half-pixel).",
            )
        return known, is_coarse

    def _layout_of_decision(self, tail: Tail) -> Layout | None:
        """Return where the classes are by the operator that decides between them, if one does."""
        if tail.axis is None:
            return None
        layout = {1: Layout.NCHW, 3: Layout.NHWC}.get(tail.axis)
        if layout is None:
            raise ExportError(
                f"{self.path} ends in {tail.cut[-1]} over axis {tail.axis} of '{tail.tensor}', "
                "which holds no classes: they are on axis 1 (nchw) or 3 (nhwc).",
                hint="Mend the axis and export the model again, or give the logits with "
                "--output-name.",
            )
        return layout

    def _check_values(self, logits: NDArray[np.float32], axis: int, tail: Tail) -> None:
        if not np.isfinite(logits).all():
            raise ExportError(
                f"{self.path} gives values that are not finite for an ordinary picture.",
                hint="Its weights are damaged, or --mean, --std and --scale are not its own.",
            )
        is_sum = bool(np.abs(logits.sum(axis=axis) - 1).max() < 1e-3)
        is_share = logits.shape[axis] == 1 or is_sum or holds_shares(self.model, tail.tensor)
        is_share = is_share and logits.min() >= 0 and 0 < logits.max() <= 1
        if is_share and not self.wanted.is_logits:
            raise ConfigError(
                f"The output '{tail.tensor}' of {self.path} looks like probabilities (from "
                f"{logits.min():.3g} to {logits.max():.3g}), and its end shows no activation that "
                "could be left out.",
                hint="Name the logits with --output-name (any inner tensor will do), or give "
                "--is-logits if they are.",
            )


def _is_uint8(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.UINT8)


def _is_identity(spec: PreprocessSpec) -> bool:
    return (spec.scale, *spec.mean, *spec.std) == (1, 0, 0, 0, 1, 1, 1)


def _is_coarser(found: tuple[int, int], fed: tuple[int, int]) -> bool:
    """Return whether a size may be that of logits at an output stride, padding allowed."""
    if not all(1 < a <= b for a, b in zip(found, fed, strict=True)):
        return False
    ratios = [b / a for a, b in zip(found, fed, strict=True)]
    return max(ratios) / min(ratios) < 1 + 2 / min(found)


def _smooth_picture(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image (H, W, 3) of ramps and rings: channels differ, no two rows are equal."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float64)
    rows, columns = rows / size[0], columns / size[1]
    rings = np.sin(12 * np.hypot(rows - 0.4, columns - 0.6))
    channels = [255 * rows, 255 * columns * (1 - rows / 2), 127 + 120 * rings]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def _show(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    name = _KINDS.get(kind.elem_type, f"type {kind.elem_type}")
    if not value.type.HasField("tensor_type"):
        return f"'{value.name}' (no tensor)"
    if not kind.HasField("shape"):
        return f"'{value.name}' {name} of unknown rank"
    sides = [str(d.dim_value or d.dim_param or "?") for d in kind.shape.dim]
    return f"'{value.name}' {name} {' x '.join(sides) or 'scalar'}"


def _list(values: Any) -> str:
    shown = [_show(value) for value in values]
    return "; ".join(shown[:8]) + ("; ..." if len(shown) > 8 else "") if shown else "none"


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
