"""The CPU part of the GPU acceptance: all builds, what needs no GPU runs, the rest says why."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from segdeploy.core.folder import Checkpoint
from segdeploy.frameworks.cuda import Gpu, find_gpu

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu_acceptance.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    import sys

    spec = importlib.util.spec_from_file_location("gpu_acceptance", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(find_gpu() is not None, reason="needs a machine without GPU")
@pytest.mark.usefixtures("tensorrt")
def test_the_cpu_part_builds_all_runs_what_it_can_and_says_why_not(
    program: ModuleType,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "result.json"
    cells = program.main([
        str(tiny_checkpoint.path), "--cpu", "--data", "synthetic:64x96:16", "--size", "64x96",
        "--targets", "onnx-fp32,tensorrt-fp16", "--seconds", "0.3",
        "--out", str(out),
    ])  # fmt: skip
    found = {cell.target: cell for cell in cells}
    onnx = found["onnx-fp32"]
    assert (onnx.device, onnx.passed, onnx.why_not) == ("cpu", True, None)
    assert onnx.latency_ms["p50"] > 0
    assert found["pytorch-fp32"].latency_ms["p50"] > 0
    engine = found["tensorrt-fp16"]
    assert engine.size_mib > 0.5  # It was built.
    assert (engine.passed, engine.latency_ms, engine.gpu_memory_mib) == (None, None, None)
    assert "needs an NVIDIA GPU" in engine.why_not
    assert [each["target"] for each in json.loads(out.read_text())["cells"]] == list(found)
    assert "why not" in capsys.readouterr().out


def test_without_a_gpu_and_without_asking_for_the_cpu_it_refuses(
    program: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_gpu() is not None:
        pytest.skip("needs a machine without GPU")
    with pytest.raises(SystemExit):
        program.main([])
    assert "--cpu" in capsys.readouterr().err


def test_every_gpu_has_its_own_file(program: ModuleType) -> None:
    gpu = Gpu("NVIDIA H200", "9.0", "580.65", "13.0")
    assert program.result_file(gpu).name == "gpu-nvidia-h200.json"
