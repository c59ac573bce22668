"""Deployment targets: a backend and a precision, written `onnx-int8`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from segdeploy.core.errors import ConfigError


class Precision(StrEnum):
    """Number format of the weights and activations of a graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class ClipMethod(StrEnum):
    """How the range of an int8 activation is chosen from what calibration saw."""

    MSE = "mse"
    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"


@dataclass(frozen=True, order=True)
class ExportTarget:
    """Backend + precision; `str()` is the form that users write."""

    backend: str
    precision: Precision

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `backend-precision`; whether the backend exists is the backends' table to say.

        Raises:
            ConfigError: If the text has no known precision.
        """
        backend, _, precision = text.rpartition("-")
        known = [p.value for p in Precision]
        if not backend or precision not in known:
            raise ConfigError(
                f"'{text}' is not a target.",
                hint=f"Write BACKEND-PRECISION, e.g. onnx-int8; precisions: {', '.join(known)}. "
                "See 'segdeploy list targets'.",
            )
        return cls(backend, Precision(precision))

    def __str__(self) -> str:
        return f"{self.backend}-{self.precision}"
