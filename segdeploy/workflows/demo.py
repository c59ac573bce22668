"""The whole chain on the embedded data set, in a minute or two: what a new user runs first.

Trains until the model visibly segments, exports, verifies, evaluates, benches and reports.
Every step is the public function of its stage, so this is also the shortest true example.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeploy.core.errors import ParityError

DATA = "synthetic:96x128:384"
TARGETS = ("torchscript-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8")
ENOUGH_MIOU = 0.7


@dataclass(frozen=True)
class DemoResult:
    """Where the report is, and what was reached."""

    report: Path
    rows: list[dict[str, Any]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `demo`."""
        return {"report": str(self.report), "seconds": self.seconds, "artifacts": self.rows}


def demo(out: Path, *, say: Callable[[str], object] = lambda _: None) -> DemoResult:
    """Run the chain in the run folder `out` (made; an unfinished demo there is continued).

    Raises:
        ParityError: If an artifact does not decide as its checkpoint does.
        SegDeployError: As the stages.
    """
    from segdeploy.bench import bench
    from segdeploy.evaluate import evaluate
    from segdeploy.frameworks.torch import passive_waiting, require_torch
    from segdeploy.report import report
    from segdeploy.workflows.export_verified import export_and_verify

    with passive_waiting():
        require_torch("torchvision", "onnx", "onnxscript", "onnxruntime")
    started = time.perf_counter()
    checkpoint = _train(out, say)
    say("export and verify: " + ", ".join(TARGETS))
    exports = export_and_verify(checkpoint, TARGETS, out, calibration=DATA, data=DATA)
    folders = [checkpoint, *(out / target for target in TARGETS)]
    say("evaluate")
    scores = [evaluate(folder, data=DATA) for folder in folders]
    say("bench (interleaved)")
    costs = bench(folders)
    rows = [
        {
            "target": cost.target,
            "mean_iou": score.mean_iou,
            "latency_ms": cost.latency_ms["p50"],
            "passed": each.passed if each else None,
        }
        for cost, score, each in zip(costs, scores, [None, *exports], strict=True)
    ]
    result = DemoResult(report(out), rows, time.perf_counter() - started)
    failed = [str(row["target"]) for row in rows if row["passed"] is False]
    if failed:
        raise ParityError(f"Verification failed for {', '.join(failed)}; see {result.report}.")
    return result


def _train(out: Path, say: Callable[[str], object]) -> Path:
    """Train (or continue, or reuse) the demo's model and return its checkpoint folder."""
    from segdeploy.train import TrainConfig, train

    config = TrainConfig(
        model="lraspp_mobilenet_v3_small",
        data=DATA,
        out=str(out),
        epochs=8,
        batch_size=16,
        crop=(96, 128),
        scale=(0.75, 1.5),
        jitter=0.2,
        lr=4e-3,
        warmup_steps=40,
        norm_momentum=0.1,
        ema_decay=0.95,
        val_every=4,
        note="trained on synthetic scenes (the demo)",
    )
    say(f"train {config.model} on {DATA}")
    checkpoint = train(config, resume=(out / "last").is_dir())
    reached = checkpoint.manifest.options.get("best_mean_iou", 0.0)
    if reached < ENOUGH_MIOU:
        say(f"note: mIoU {reached:.3f} is below the {ENOUGH_MIOU} that the demo aims at")
    return checkpoint.path
