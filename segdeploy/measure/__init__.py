"""Measuring: the one clock, the machine's fingerprint, and when a number is too noisy to trust."""

from __future__ import annotations

from segdeploy.frameworks.threads import usable_cores
from segdeploy.measure.clock import sample_ms, warm_up
from segdeploy.measure.environment import describe_environment, peak_memory_mib

__all__ = ["describe_environment", "peak_memory_mib", "sample_ms", "usable_cores", "warm_up"]
