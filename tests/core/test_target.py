"""Targets are written BACKEND-PRECISION, and nothing else is one."""

from __future__ import annotations

import pytest

from segdeploy.core.errors import ConfigError
from segdeploy.core.target import ExportTarget, Precision


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("backend", ["onnx", "torchscript", "my-own-backend"])
def test_a_target_reads_back_what_it_writes(backend: str, precision: Precision) -> None:
    target = ExportTarget(backend, precision)
    assert str(target) == f"{backend}-{precision.value}"
    assert ExportTarget.parse(str(target)) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "onnx",
        "int8",
        "-int8",
        "onnx-",
        "onnx-int4",
        "onnx-INT8",
        "onnx_int8",
        "onnx-int8 ",
    ],
)
def test_other_texts_are_config_errors_that_show_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a target") as caught:
        ExportTarget.parse(text)
    assert "onnx-int8" in caught.value.hint
