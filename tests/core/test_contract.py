"""The tensors of a payload follow from the contract; folder suffixes from what is not default."""

from __future__ import annotations

import pytest

from segdeploy.core.contract import (
    InputKind,
    IoContract,
    OutputKind,
    TensorSpec,
    contract_tensors,
)
from segdeploy.core.task import Task

IMAGE, TENSOR = InputKind.IMAGE, InputKind.TENSOR
LOGITS, LABELS, BOTH = OutputKind.LOGITS, OutputKind.LABELS, OutputKind.LABELS_CONFIDENCE


@pytest.mark.parametrize(
    ("io", "suffix"),
    [
        (IoContract(), ""),
        (IoContract(IMAGE), "+image"),
        (IoContract(TENSOR, LABELS), "+labels"),
        (IoContract(IMAGE, LABELS), "+image+labels"),
        (IoContract(IMAGE, BOTH), "+image+labels+confidence"),
    ],
)
def test_the_suffix_names_what_is_not_default(io: IoContract, suffix: str) -> None:
    assert io.suffix == suffix


@pytest.mark.parametrize("size", [None, (360, 480)])
@pytest.mark.parametrize(
    ("task", "classes", "channels", "dtype"),
    [
        (Task.MULTICLASS, 11, 11, "uint8"),
        (Task.MULTICLASS, 255, 255, "uint8"),
        (Task.MULTICLASS, 256, 256, "uint16"),
        (Task.BINARY, 1, 1, "uint8"),
    ],
)
def test_tensors_have_the_names_types_and_shapes_of_the_design(
    size: tuple[int, int] | None, task: Task, classes: int, channels: int, dtype: str
) -> None:
    h, w = size or (None, None)
    tensor = TensorSpec("tensor", "float32", (None, 3, h, w))
    image = TensorSpec("image", "uint8", (None, h, w, 3))
    logits = TensorSpec("logits", "float32", (None, channels, h, w))
    labels = TensorSpec("labels", dtype, (None, h, w))
    confidence = TensorSpec("confidence", "float32", (None, h, w))
    for kind, taken in ((TENSOR, tensor), (IMAGE, image)):
        for output, given in (
            (LOGITS, (logits,)),
            (LABELS, (labels,)),
            (BOTH, (labels, confidence)),
        ):
            found = contract_tensors(IoContract(kind, output), task, classes, size)
            assert found == ((taken,), given)
