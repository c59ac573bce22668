"""bench = cost: latency, throughput and peak memory, several artifacts in one interleaved run.

from segdeploy.bench import bench
eager, onnx = bench([Path("runs/demo/checkpoint"), Path("runs/demo/onnx-fp32")], size=(360, 480))
print(onnx.latency_ms["p50"] / eager.latency_ms["p50"])
"""

from __future__ import annotations

from segdeploy.bench.interleave import BenchOutcome, bench, measure_interleaved
from segdeploy.bench.plan import BenchPlan

__all__ = ["BenchOutcome", "BenchPlan", "bench", "measure_interleaved"]
