"""Several stages in a row: `demo`, `export_and_verify`, `diagnose`.

from segdeploy.workflows import export_and_verify
found = export_and_verify(Path("runs/a/checkpoint"), ["onnx-fp32"], Path("runs/a"))
"""

from __future__ import annotations

from segdeploy.workflows.demo import DemoResult, demo
from segdeploy.workflows.export_verified import VerifiedExport, export_and_verify

__all__ = ["DemoResult", "VerifiedExport", "demo", "export_and_verify"]
