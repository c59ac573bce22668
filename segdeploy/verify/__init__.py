"""Verify: is an artifact as good as its reference? Judged in decisions, see docs/numerics.md.

report = verify(Path("runs/a/onnx-int8"), data="camvid:data/camvid")
bool(report), report.flip_rate, report.failures
verify_run(Path("runs/a")).folders  # every digest, up to the checkpoint; nothing is run
"""

from __future__ import annotations

from segdeploy.verify.cases import find_judges
from segdeploy.verify.lineage import RunCheck, is_run, verify_run
from segdeploy.verify.stage import compare_folders, verify

__all__ = ["RunCheck", "compare_folders", "find_judges", "is_run", "verify", "verify_run"]
