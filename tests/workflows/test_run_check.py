"""`verify RUN`: every digest, from the artifacts up to the checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.manifest import encode_manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.export import export
from segdeploy.verify import RunCheck, verify, verify_run


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a checkpoint, onnx-fp32 and its child onnx-int8, with its calibration."""
    run: Path = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(tiny_checkpoint.path, run / "checkpoint")
    export(
        run / "checkpoint", ["onnx-int8"], run, calibration="synthetic:64x96",
        num_calibration_images=2,
    )  # fmt: skip
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def _problems(found: RunCheck) -> dict[str, str]:
    return {folder.name: "; ".join(folder.problems) for folder in found.folders if folder.problems}


def test_a_whole_run_names_every_ancestor(run: Path) -> None:
    found = verify_run(run)
    assert found
    assert {f.name: f.lineage for f in found.folders} == {
        "checkpoint": [],
        "onnx-fp32": ["pytorch-fp32"],
        "onnx-int8": ["pytorch-fp32", "onnx-fp32"],
    }
    lineage = load_artifact(run / "onnx-int8").manifest.lineage
    weights = load_artifact(run / "onnx-fp32").manifest.files
    assert lineage[1].files == weights
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


@pytest.mark.parametrize(
    ("file", "broken"),
    [
        ("checkpoint/weights.safetensors", {"checkpoint", "onnx-fp32", "onnx-int8"}),
        ("onnx-fp32/model.onnx", {"onnx-fp32", "onnx-int8"}),
        ("onnx-int8/model.onnx", {"onnx-int8"}),
        ("onnx-int8/calibration.json", {"onnx-int8"}),
    ],
)
def test_one_changed_byte_is_found_in_the_folder_and_in_all_that_came_of_it(
    run: Path, file: str, broken: set[str]
) -> None:
    content = bytearray((run / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run / file).write_bytes(content)
    assert set(_problems(verify_run(run))) == broken


def test_a_missing_ancestor_and_a_foreign_one_are_found(run: Path) -> None:
    shutil.rmtree(run / "onnx-fp32")
    found = _problems(verify_run(run))
    assert list(found) == ["onnx-int8"]
    assert "onnx-fp32" in found["onnx-int8"]


def test_results_of_another_payload_are_found(run: Path) -> None:
    (run / "onnx-fp32" / "bench.json").write_text('{"environment": {"artifact": "0123"}}')
    (run / "onnx-int8" / "parity.json").write_text('{"reference": "pytorch-fp32@000000000000"}')
    found = _problems(verify_run(run))
    assert "bench.json" in found["onnx-fp32"]
    assert "parity.json" in found["onnx-int8"]


def test_results_of_another_target_and_damaged_ones_are_problems_of_one_folder(run: Path) -> None:
    (run / "onnx-fp32" / "parity.json").write_text('{"target": "onnx-int8"}')
    (run / "onnx-int8" / "eval.json").write_text('{"target": "onnx-int8"')
    (run / "checkpoint" / "bench.json").write_text("[1]")
    found = _problems(verify_run(run))
    assert "parity.json is of the target onnx-int8" in found["onnx-fp32"]
    assert "cannot be read" in found["onnx-int8"]
    assert "not a result document" in found["checkpoint"]


def test_a_verdict_that_contradicts_the_manifest_is_found(run: Path) -> None:
    passed = load_artifact(run / "onnx-fp32").manifest.passed
    (run / "onnx-fp32" / "parity.json").write_text(json.dumps({"passed": passed}))
    assert "onnx-fp32" not in _problems(verify_run(run))
    (run / "onnx-fp32" / "parity.json").write_text(json.dumps({"passed": not passed}))
    assert "another verdict" in _problems(verify_run(run))["onnx-fp32"]


def test_a_lost_manifest_and_a_strange_file_are_found(run: Path) -> None:
    (run / "onnx-fp32" / "manifest.json").unlink()
    (run / "checkpoint" / "other.so").write_bytes(b"x")
    (run / "checkpoint" / "samples").mkdir()
    written = ("profile.json", "profile.svg", "sustained.svg")  # By `bench`.
    for name in (*written, "calibration.html", "calibration_report.json"):
        (run / "checkpoint" / name).write_text("{}")
    found = _problems(verify_run(run))
    assert "no manifest.json" in found["onnx-fp32"]
    assert found["checkpoint"] == "it holds other.so, which its manifest does not know"


@pytest.mark.parametrize(
    "change", [{"classes": tuple("abcde")}, {"preprocess": PreprocessSpec(pad_value=3)}]
)
def test_words_that_are_not_the_checkpoints_are_found(run: Path, change: dict[str, Any]) -> None:
    """A manifest that was written again, checksum and all."""
    place = run / "onnx-int8"
    manifest = load_artifact(place).manifest.replace(**change)
    (place / "manifest.json").write_bytes(encode_manifest(manifest))
    what = next(iter(change))
    assert f"its {what} is not that of its checkpoint" in _problems(verify_run(run))["onnx-int8"]
    if what == "preprocess":
        report = verify(place)
        assert what in {failure.rule for failure in report.failures}


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no checkpoint and no artifact"):
        verify_run(tmp_path)
