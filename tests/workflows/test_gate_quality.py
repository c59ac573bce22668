"""What a gate reads from files: the mIoU of two evaluations, and when they do not compare."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest

from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import Checkpoint
from segdeploy.core.gate import Verdict
from segdeploy.core.limits import GateLimits
from segdeploy.core.results import EvalResult
from segdeploy.workflows.gate import GatePlan, gate
from segdeploy.workflows.gate_metrics import _exact_verdict

PLAN = GatePlan(check_parity=False)  # Nothing runs.
BEFORE = [[1190, 10], [10, 590]]  # A mean IoU of 97.53 %.


def _evaluated(folder: Path, confusion: list[list[int]], /, **changes: Any) -> None:
    found = EvalResult(
        target="onnx-fp32", data="synthetic/val", classes=("a", "b"), num_images=4,
        confusion=np.array(confusion),
    )  # fmt: skip
    (folder / "eval.json").write_text(json.dumps({**found.to_dict(), **changes}))


@pytest.fixture
def evaluated(tiny_checkpoint: Checkpoint, tmp_path: Path) -> list[Path]:
    """Two copies of a model folder; the first has an evaluation."""
    folders = [copytree(tiny_checkpoint.path, tmp_path / name) for name in ("before", "after")]
    _evaluated(folders[0], BEFORE)
    return folders


QUALITY = GateLimits(latency=None, mean_iou=0.5)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ([[1189, 11], [11, 589]], Verdict.PASS),
        ([[1180, 20], [20, 580]], Verdict.REGRESSION),
        ([[1200, 0], [0, 600]], Verdict.IMPROVEMENT),
    ],
)
def test_lost_quality_is_counted_in_points(
    now: list[list[int]], verdict: Verdict, evaluated: list[Path]
) -> None:
    with pytest.raises(ConfigError, match=r"no .*eval\.json"):
        gate(*evaluated, plan=PLAN, limits=QUALITY)
    _evaluated(evaluated[1], now)
    assert gate(*evaluated, plan=PLAN, limits=QUALITY).verdict is verdict


@pytest.mark.parametrize(
    "changes",
    [
        {"num_images": 5}, {"data": "synthetic/test"}, {"tta": {"flip": True, "scales": [1.0]}},
        {"sliding_window": {"size": [8, 8], "overlap": 0.5}}, {"threshold": 0.4},
        {"classes": ["b", "a"]}, {"confusion": [[1180, 10], [10, 600]]},
        {"artifact": "0" * 64},
    ],
)  # fmt: skip
def test_scores_of_other_images_labels_or_artifacts_are_not_compared(
    changes: dict[str, Any], evaluated: list[Path]
) -> None:
    _evaluated(evaluated[1], BEFORE, **changes)
    with pytest.raises(ConfigError, match=r"cannot be compared|another artifact"):
        gate(*evaluated, plan=PLAN, limits=QUALITY)


@pytest.mark.parametrize(
    "changes", [{"confusion": None}, {"confusion": "x"}, {"classes": 3}, {"task": "none"}]
)
def test_a_damaged_evaluation_is_refused(changes: dict[str, Any], evaluated: list[Path]) -> None:
    _evaluated(evaluated[1], BEFORE, **changes)
    with pytest.raises(ArtifactError, match="no evaluation"):
        gate(*evaluated, plan=PLAN, limits=QUALITY)


def test_exactly_the_limit_is_within_it() -> None:
    assert _exact_verdict(100 * (0.63 - 0.625), 0.5) is Verdict.PASS
    assert _exact_verdict(11 / 10 - 1, 0.1) is Verdict.PASS
    assert _exact_verdict(0.51, 0.5) is Verdict.REGRESSION
