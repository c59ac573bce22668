"""Verify: is an artifact as good as its reference? Judged in decisions, see docs/numerics.md.

report = verify(Path("runs/a/onnx-int8"), data="camvid:data/camvid")
bool(report), report.flip_rate, report.failures
"""

from __future__ import annotations

from segdeploy.verify.stage import compare_folders, verify

__all__ = ["compare_folders", "verify"]
