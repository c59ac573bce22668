"""An evaluator of Core ML's program language (MIL) in torch: enough of it for segmentation nets.

After the operators' documentation in coremltools (iOS 15 and 16 operator sets). Each operator is
computed in float32, and its result rounded to fp16 where the program says so: values beyond fp16's
range become infinite as on a device, but the order of additions inside an operator is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Arguments = dict[str, Any]


class UnknownOperatorError(Exception):
    """An operator, or a form of it, that is not evaluated here."""


def evaluate(main: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a program by name.

    Raises:
        UnknownOperatorError: If it has an operator that is not in the table.
    """
    known: dict[str, Any] = dict(inputs)
    unknown = {op.op_type for op in main.operations} - {*_OPERATORS, "const"}
    if unknown:
        raise UnknownOperatorError(f"not evaluated here: {', '.join(sorted(unknown))}")
    with torch.no_grad():
        for op in main.operations:
            if op.op_type == "const":
                known[op.outputs[0].name] = _constant(op.outputs[0].val)
                continue
            arguments = {name: _read(known, value) for name, value in op.inputs.items()}
            found = _OPERATORS[op.op_type](arguments)
            several = found if isinstance(found, tuple | list) else (found,)
            for var, value in zip(op.outputs, several, strict=True):
                is_half = var.is_tensor_or_scalar_of("fp16")
                known[var.name] = value.half().float() if is_half else value
    return {var.name: known[var.name] for var in main.outputs}


def _read(known: Mapping[str, Any], value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [known[var.name] for var in value]
    return known[value.name]


def _constant(value: Any) -> Any:
    """Return a weight as a tensor, anything small (attributes) as plain Python."""
    array = np.asarray(value)
    if array.dtype.kind in "US":
        return str(array)
    if array.dtype.kind == "f" and array.ndim:
        return torch.from_numpy(array.astype(np.float32))
    return array.tolist() if array.ndim < 2 else torch.from_numpy(array.copy())


def _padding(a: Arguments) -> tuple[Tensor, list[int]]:
    """Return the input, padded already where the two sides differ, and symmetric padding left."""
    kind = a.get("pad_type", "valid")
    if kind == "valid":
        return a["x"], [0, 0]
    if kind != "custom":
        raise UnknownOperatorError(f"padding {kind}")
    top, bottom, left, right = a["pad"]
    if (top, left) == (bottom, right):
        return a["x"], [top, left]
    return functional.pad(a["x"], (left, right, top, bottom)), [0, 0]


def _conv(a: Arguments) -> Tensor:
    x, padding = _padding(a)
    return functional.conv2d(
        x, a["weight"], a.get("bias"), a.get("strides", 1), padding, a.get("dilations", 1),
        a.get("groups", 1),
    )  # fmt: skip


def _conv_transpose(a: Arguments) -> Tensor:
    strides, dilations = a.get("strides", [1, 1]), a.get("dilations", [1, 1])
    pad = a["pad"] if a.get("pad_type") == "custom" else [0, 0, 0, 0]
    full = functional.conv_transpose2d(
        a["x"], a["weight"], a.get("bias"), strides, groups=a.get("groups", 1), dilation=dilations
    )
    top, bottom, left, right = pad
    found = full[..., top : full.shape[-2] - bottom, left : full.shape[-1] - right]
    wanted = a.get("output_shape")
    if wanted is not None and list(found.shape[-2:]) != list(wanted[-2:]):
        raise UnknownOperatorError("conv_transpose with an output shape of its own")
    return found


def _max_pool(a: Arguments) -> Tensor:
    kind = a.get("pad_type", "valid")
    top, bottom, left, right = a["pad"] if kind == "custom" else [0, 0, 0, 0]
    if kind not in {"custom", "valid"}:
        raise UnknownOperatorError(f"padding {kind}")
    x = functional.pad(a["x"], (left, right, top, bottom), value=float("-inf"))
    return functional.max_pool2d(
        x, a["kernel_sizes"], a.get("strides"), ceil_mode=a.get("ceil_mode", False)
    )


def _avg_pool(a: Arguments) -> Tensor:
    x, padding = _padding(a)
    return functional.avg_pool2d(
        x, a["kernel_sizes"], a.get("strides"), padding, ceil_mode=a.get("ceil_mode", False),
        count_include_pad=not a.get("exclude_padding_from_average", False),
    )  # fmt: skip


def _upsample(mode: str) -> Callable[[Arguments], Tensor]:
    def run(a: Arguments) -> Tensor:
        x: Tensor = a["x"]
        scale = float(a.get("scale_factor_height", 1)), float(a.get("scale_factor_width", 1))
        size = [int(side * s) for side, s in zip(x.shape[-2:], scale, strict=True)]
        if mode == "nearest":
            return functional.interpolate(x, size=size, mode=mode)
        return functional.interpolate(
            x, size=size, mode=mode, align_corners=a.get("align_corners", True)
        )

    return run


def _pad(a: Arguments) -> Tensor:
    pairs = list(zip(a["pad"][::2], a["pad"][1::2], strict=True))
    flat = [side for pair in reversed(pairs) for side in pair]
    mode = a.get("mode", "constant")
    x: Tensor = a["x"]
    if mode == "constant":
        return functional.pad(x, flat, value=a.get("constant_val", 0.0))
    while flat[-2:] == [0, 0]:
        flat = flat[:-2]  # torch reflects no more than the last dimensions.
    return functional.pad(x, flat, mode=mode)


def _reduce(function: Callable[..., Any]) -> Callable[[Arguments], Tensor]:
    def run(a: Arguments) -> Tensor:
        x: Tensor = a["x"]
        axes = a.get("axes") or list(range(x.ndim))
        found: Tensor = function(x, dim=axes, keepdim=a.get("keep_dims", False))
        return found

    return run


def _split(a: Arguments) -> list[Tensor]:
    x: Tensor = a["x"]
    sizes = a.get("split_sizes") or x.shape[a["axis"]] // a["num_splits"]
    return list(torch.split(x, sizes, dim=a["axis"]))


def _slice(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    rank = x.ndim
    none = [False] * rank
    begin_mask, end_mask = a.get("begin_mask") or none, a.get("end_mask") or none
    squeeze, stride = a.get("squeeze_mask") or none, a.get("stride") or [1] * rank
    if any(step < 0 for step in stride):
        raise UnknownOperatorError("slice_by_index backwards")
    where: list[Any] = [
        a["begin"][i]
        if squeeze[i]
        else slice(
            None if begin_mask[i] else a["begin"][i],
            None if end_mask[i] else a["end"][i],
            stride[i],
        )
        for i in range(rank)
    ]
    return x[tuple(where)]


def _gelu(a: Arguments) -> Tensor:
    mode = a.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        raise UnknownOperatorError(f"gelu {mode}")
    return functional.gelu(a["x"], approximate="none" if mode == "EXACT" else "tanh")


def _matmul(a: Arguments) -> Tensor:
    x, y = (torch.as_tensor(a[name]) for name in "xy")
    x = x.transpose(-1, -2) if a.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if a.get("transpose_y") else y)


def _layer_norm(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    axes = [axis % x.ndim for axis in a["axes"]]
    if axes != list(range(x.ndim - len(axes), x.ndim)):
        raise UnknownOperatorError("layer_norm over other than the last axes")
    shape = list(x.shape[-len(axes) :])
    return functional.layer_norm(x, shape, a.get("gamma"), a.get("beta"), a.get("epsilon", 1e-5))


def _cast(a: Arguments) -> Tensor:
    kinds = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
    if a["dtype"] not in kinds:
        raise UnknownOperatorError(f"cast to {a['dtype']}")
    return torch.as_tensor(a["x"]).to(kinds[a["dtype"]])


def _reshape(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    return x.reshape([x.shape[i] if side == 0 else side for i, side in enumerate(a["shape"])])


def _squeeze(a: Arguments) -> Tensor:
    axes = a.get("axes")
    return torch.squeeze(a["x"]) if axes is None else torch.squeeze(a["x"], tuple(axes))


def _expand(a: Arguments) -> Tensor:
    x: Tensor = a["x"]
    for axis in a["axes"]:
        x = x.unsqueeze(axis)
    return x


def _two(function: Callable[..., Tensor]) -> Callable[[Arguments], Tensor]:
    def run(a: Arguments) -> Tensor:
        return function(torch.as_tensor(a["x"]), torch.as_tensor(a["y"]))

    return run


_OPERATORS: dict[str, Callable[[Arguments], Any]] = {
    "add": _two(torch.add),
    "avg_pool": _avg_pool,
    "cast": _cast,
    "clip": lambda a: torch.clamp(a["x"], a["alpha"], a["beta"]),
    "concat": lambda a: torch.cat(a["values"], dim=a["axis"]),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "equal": _two(torch.eq),
    "exp": lambda a: torch.exp(a["x"]),
    "expand_dims": _expand,
    "gelu": _gelu,
    "greater": _two(torch.gt),
    "greater_equal": _two(torch.ge),
    "identity": lambda a: a["x"],
    "inverse": lambda a: 1 / (a["x"] + a.get("epsilon", 1e-4)),
    "layer_norm": _layer_norm,
    "linear": lambda a: functional.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "max_pool": _max_pool,
    "maximum": _two(torch.maximum),
    "minimum": _two(torch.minimum),
    "mul": _two(torch.mul),
    "pad": _pad,
    "real_div": _two(torch.div),
    "reduce_argmax": lambda a: torch.argmax(a["x"], a["axis"], keepdim=a.get("keep_dims", False)),
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_sum": _reduce(torch.sum),
    "relu": lambda a: torch.relu(a["x"]),
    "relu6": lambda a: functional.relu6(a["x"]),
    "reshape": _reshape,
    "reverse": lambda a: torch.flip(a["x"], a["axes"]),
    "rsqrt": lambda a: torch.rsqrt(a["x"] + a.get("epsilon", 1e-12)),
    "sigmoid": lambda a: torch.sigmoid(a["x"]),
    "sigmoid_hard": lambda a: torch.clamp(a["alpha"] * a["x"] + a["beta"], 0, 1),
    "silu": lambda a: functional.silu(a["x"]),
    "slice_by_index": _slice,
    "softmax": lambda a: torch.softmax(a["x"], dim=a.get("axis", -1)),
    "split": _split,
    "sqrt": lambda a: torch.sqrt(a["x"]),
    "square": lambda a: torch.square(a["x"]),
    "squeeze": _squeeze,
    "stack": lambda a: torch.stack(a["values"], dim=a["axis"]),
    "sub": _two(torch.sub),
    "tanh": lambda a: torch.tanh(a["x"]),
    "thresholded_relu": lambda a: torch.where(a["x"] >= a["alpha"], a["x"], 0.0),
    "transpose": lambda a: torch.permute(a["x"], a["perm"]),
    "upsample_bilinear": _upsample("bilinear"),
    "upsample_nearest_neighbor": _upsample("nearest"),
}
