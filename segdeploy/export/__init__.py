"""Export: from a checkpoint to one artifact folder per target.

outcomes = export(Path("runs/a/checkpoint"), ["onnx-fp32", "onnx-int8"], Path("runs/a"),
                  calibration="camvid:data/camvid")
outcomes[0].artifact, outcomes[0].reused
"""

from __future__ import annotations

from segdeploy.backends.isolation import BUILD_LIMIT_S
from segdeploy.export.calibration import Int8Options
from segdeploy.export.foreign import ForeignOptions
from segdeploy.export.plan import Size
from segdeploy.export.stage import NUM_CALIBRATION_IMAGES, ExportOutcome, export

__all__ = [
    "BUILD_LIMIT_S",
    "NUM_CALIBRATION_IMAGES",
    "ExportOutcome",
    "ForeignOptions",
    "Int8Options",
    "Size",
    "export",
]
