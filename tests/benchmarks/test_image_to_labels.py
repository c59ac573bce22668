"""Ways from an image to labels: results of two CPUs stay apart, and rivals read living memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import render_int8
from benchmarks.image_to_labels import keep_other_cpu
from benchmarks.int8_policies import known_models
from benchmarks.pipelines import expert_openvino
from benchmarks.render_parts import cpu_of

ZEN4 = {"cpu": "AMD EPYC", "cpu_flags": ["avx512_vnni"]}
ZEN5 = {"cpu": "AMD EPYC (family 26, model 2)", "cpu_flags": ["avx512_vnni", "avx_vnni"]}


def measured(environment: dict[str, Any], p50_ms: float, **more: Any) -> dict[str, Any]:
    row = {"p50_ms": p50_ms, "min_ms": 1.0, "peak_memory_mib": 1.0, "agreement": 1.0}
    rows = [{**row, "pipeline": f"{kind}: x", **more} for kind in ("tutorial", "expert")]
    return {
        "rows": rows, "size": [8, 8], "threads": 2, "model": "m", "environment": environment
    }  # fmt: skip


def test_results_of_another_cpu_stay_and_those_of_this_one_are_replaced() -> None:
    found = keep_other_cpu({}, "scene", measured(ZEN4, 9))
    found = keep_other_cpu(found, "photo", measured(ZEN4, 1))
    found = keep_other_cpu(found, "photo", measured(ZEN5, 2))
    assert list(found) == ["photo", "photo, AMD EPYC (family 25)", "scene"]
    found = keep_other_cpu(found, "photo", measured(ZEN5, 3))
    assert list(found) == ["photo", "photo, AMD EPYC (family 25)", "scene"]
    found = keep_other_cpu(found, "photo", measured(ZEN4, 4))
    shown = {name: case["rows"][0]["p50_ms"] for name, case in found.items()}
    assert shown == {"photo": 4, "photo, AMD EPYC (family 26, model 2)": 3, "scene": 9}


def test_policies_of_two_cpus_never_share_a_result(tmp_path: Path) -> None:
    out = tmp_path / "int8_policies_onnx.json"
    assert known_models(out, ZEN5) == {}
    out.write_text(json.dumps({**ZEN4, "models": {"unet": {}}}))
    assert known_models(out, ZEN4) == {"unet": {}}
    with pytest.raises(ValueError, match=r"is of AMD EPYC \(family 25\): give a --suffix"):
        known_models(out, ZEN5)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        (ZEN4, "AMD EPYC (family 25)"), (ZEN5, "AMD EPYC (family 26, model 2)"),
        ({**ZEN5, "cpu": "AMD EPYC"}, "AMD EPYC (family 26)"),
        ({"cpu": "AMD EPYC", "cpu_flags": ["avx2"]}, "AMD EPYC"),
        ({"cpu": "Intel(R) Xeon(R)", "cpu_flags": ["avx512_vnni"]}, "Intel(R) Xeon(R)"),
        ({"cpu": None}, "a CPU"),
    ],
)  # fmt: skip
def test_older_results_get_the_generation_that_their_flags_tell(
    environment: dict[str, Any], wanted: str
) -> None:
    assert cpu_of(environment) == wanted


def test_the_page_tells_what_a_ratio_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = [2.0, 1.5, 2.5]
    new = measured(ZEN5, 2, tutorial_by_this=ratio, expert_by_this=ratio)
    cases = {"photo": new, "photo, other": measured(ZEN4, 4)}
    monkeypatch.setattr(render_int8, "read", {"image_to_labels": cases}.get)
    first, second = render_int8.image_to_labels().split("Made by")[:2]
    assert "2.00 (1.50..2.50)" in first
    assert "(95 % interval)" in first
    assert "| 1.00 | 1.00 |" in second
    assert "of medians of all calls" in second


def test_a_bound_rival_reads_memory_that_lives(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13

    image = opset13.parameter([1, 3, 256, 512], np.float32, name="x")
    logits = opset13.relu(image)  # The labels are which channel is the brightest.
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.Model([logits], [image], "m"), path)
    picture = np.random.default_rng(0).integers(0, 256, (256, 512, 3), np.uint8)
    call = expert_openvino({"path": str(path), "hint": "f32", "threads": 1}, picture.copy())
    before = call()
    gc.collect()
    waste = [np.full(picture.shape, 7, np.uint8) for _ in range(8)]
    np.testing.assert_array_equal(call(), before)
    assert len(np.unique(before)) == 3
    assert len(waste) == 8

    frozen = picture.copy()
    frozen.flags.writeable = False  # As Pillow's.
    call = expert_openvino({"path": str(path), "hint": "f32", "threads": 1}, frozen)
    np.testing.assert_array_equal(call(), before)
