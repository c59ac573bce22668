"""report = one page about a run, from its result files alone; it computes and measures nothing.

from segdeploy.report import report
report(Path("runs/demo"))  # runs/demo/report.html, and report.md beside it
"""

from __future__ import annotations

from segdeploy.report.write import report, write_report, write_reports

__all__ = ["report", "write_report", "write_reports"]
