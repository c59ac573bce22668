"""Finding the reference, the data and the tolerances; what is refused and what is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeploy.backends import open_session
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DigestMismatchError,
    RunLockedError,
)
from segdeploy.core.files import write_json
from segdeploy.core.folder import load_artifact
from segdeploy.core.lock import run_lock
from segdeploy.core.target import Precision
from segdeploy.core.task import Task, decision_margin
from segdeploy.verify import verify
from segdeploy.verify.cases import plan_cases
from segdeploy.verify.judge import find_tolerance, limit_deviation
from segdeploy.verify.reference import Runner, measure_median_margin, measure_noise_floor
from segdeploy.verify.stage import find_data
from segdeploy.zoo import load_module, main_logits, save_checkpoint


def test_without_its_reference_the_error_names_against(run: Any) -> None:
    artifact = run.export()
    for name in ("checkpoint", "faulty"):  # Equal weights: either would do.
        shutil.rmtree(artifact.path.parent / name)
    with pytest.raises(ArtifactError, match="--against"):
        verify(artifact.path)


def test_a_moved_reference_is_taken_by_against_and_the_verdict_is_written(
    run: Any, tmp_path: Path
) -> None:
    artifact = run.export()
    elsewhere = tmp_path / "far" / "away"
    shutil.move(run.checkpoint.path, elsewhere)
    assert verify(artifact.path, against=elsewhere)
    assert load_artifact(artifact.path).manifest.passed is True


def test_another_reference_gives_a_report_but_no_verdict(run: Any, trained: Any) -> None:
    artifact = run.export()
    other = save_checkpoint(
        run.checkpoint.path.parent / "other", {k: v * 1.5 for k, v in trained.state_dict().items()},
        model="tiny", task=Task.MULTICLASS, classes=run.checkpoint.manifest.classes,
        preprocess=run.checkpoint.manifest.preprocess,
    )  # fmt: skip
    assert not verify(artifact.path, against=other.path)
    assert load_artifact(artifact.path).manifest.passed is None
    assert not (artifact.path / "parity.json").exists()


def test_an_artifact_may_be_the_reference(run: Any) -> None:
    first, second = run.export(name="first"), run.export(name="second")
    report = verify(second.path, against=first.path)
    assert report, report.failures
    assert report.reference.startswith("torchscript-fp32@")


def test_a_reference_of_other_classes_or_without_logits_is_refused(
    run: Any, binary_run: Any
) -> None:
    artifact = run.export()
    with pytest.raises(ConfigError, match="same problem"):
        verify(artifact.path, against=binary_run.checkpoint.path)
    labels = run.export(name="labels", io=IoContract(output=OutputKind.LABELS))
    with pytest.raises(ConfigError, match="must give logits"):
        verify(artifact.path, against=labels.path)


def test_int8_needs_data_or_a_calibration_that_names_it(run: Any) -> None:
    artifact = run.export(target="torchscript-int8")
    with pytest.raises(ConfigError, match="--data"):
        verify(artifact.path)
    write_json(artifact.path / "calibration.json", {"data": "synthetic:48x64"})
    assert find_data(artifact, None) == "synthetic:48x64"
    report = verify(artifact.path)
    assert {c["source"] for c in report.cases} == {"synthetic/val"}
    with pytest.raises(DataError):
        verify(artifact.path, data="folder:nowhere")


def test_a_calibration_set_that_is_gone_asks_for_data(run: Any) -> None:
    artifact = run.export(target="torchscript-int8")
    write_json(artifact.path / "calibration.json", {"data": "folder:nowhere"})
    with pytest.raises(ConfigError, match="--data"):
        verify(artifact.path)


def test_a_damaged_payload_is_found_and_writes_no_verdict(run: Any) -> None:
    artifact = run.export()
    content = bytearray(artifact.payload.read_bytes())
    content[len(content) // 2] ^= 1
    artifact.payload.write_bytes(content)
    with pytest.raises(DigestMismatchError):
        verify(artifact.path)
    assert not (artifact.path / "parity.json").exists()


def test_a_checkpoint_is_no_artifact(run: Any) -> None:
    with pytest.raises(ArtifactError, match="is a checkpoint"):
        verify(run.checkpoint.path)


def test_a_locked_run_is_left_alone(run: Any) -> None:
    artifact = run.export()
    with run_lock(artifact.path.parent), pytest.raises(RunLockedError):
        verify(artifact.path)


def test_no_image_is_refused(run: Any) -> None:
    with pytest.raises(ConfigError, match="At least one"):
        verify(run.export().path, num_images=0)


def test_another_task_is_refused(run: Any) -> None:
    artifact = run.export(task=Task.MULTILABEL)
    with pytest.raises(ConfigError, match=r"multilabel.* not the same problem"):
        verify(artifact.path)


def test_the_noise_floor_is_the_distance_to_fp64(run: Any) -> None:
    artifact = run.export(size=(48, 64))
    cases = plan_cases(artifact, None, 1)
    floor = measure_noise_floor(Runner(run.checkpoint, "cpu"), cases)
    (batch,) = list(cases[0].batches())
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    scaled = (batch.astype(np.float32) * np.float32(1 / 255) - mean) / std
    tensor = torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
    module = load_module(run.checkpoint)
    with torch.inference_mode():
        single = main_logits(module(tensor)).double()
        double = main_logits(module.double()(tensor.double()))
    d = (single - double).numpy()
    assert floor == pytest.approx(float((d.max(1) - d.min(1)).max()), rel=0.5)
    assert 1e-8 < floor < 1e-3


def test_the_median_margin_is_the_references(run: Any) -> None:
    artifact = run.export(size=(48, 64))
    reference = Runner(run.checkpoint, "cpu")
    batches = list(plan_cases(artifact, None, 3)[0].batches())
    margins = [decision_margin(reference.run(b)["logits"], Task.MULTICLASS) for b in batches]
    found = measure_median_margin(reference, batches)
    assert found == pytest.approx(float(np.median(margins)))


def test_tolerances_scale_with_the_reference_only() -> None:
    assert find_tolerance(Precision.FP32, 1e-5, 3.0) == limit_deviation(
        Precision.FP32, 1e-5, trained=True
    )
    for precision in (Precision.FP16, Precision.BF16, Precision.INT8):
        assert find_tolerance(precision, 1e-5, 4.0) == 2 * find_tolerance(precision, 1e-3, 2.0)
    coarse = limit_deviation(Precision.BF16, 1e-5, trained=True)
    fine = limit_deviation(Precision.FP16, 1e-5, trained=True)
    assert coarse is not None
    assert fine is not None
    assert coarse == pytest.approx(8 * fine)  # Unit roundoffs 2^-8 and 2^-11.
    assert limit_deviation(Precision.INT8, 1e-5, trained=True) is None


def test_cases_spread_over_the_data_and_differ(run: Any) -> None:
    own, pair, odd = plan_cases(run.export(), "synthetic:48x64:40", 4)
    images = [b[0] for b in own.batches()]
    assert len({i.tobytes() for i in images}) == 4
    assert min(i.std() for i in images) > 5  # Neither zeros nor flat.
    (batch,) = list(pair.batches())
    assert batch.shape == (2, 97, 130, 3)
    assert not np.array_equal(batch[0], batch[1])
    assert [b.shape for b in odd.batches()] == [(1, 225, 231, 3)]


def test_odd_sizes_keep_the_scale_of_the_images(run: Any) -> None:
    artifact = run.export()
    own, _, odd = plan_cases(artifact, "synthetic:300x290", 1)
    (image,), (cut,) = next(iter(own.batches())), next(iter(odd.batches()))
    np.testing.assert_array_equal(cut, image[37:262, 29:260])  # The middle 225x231 of 300x290.
    own, _, odd = plan_cases(artifact, "synthetic:64x260", 1)
    (image,), (cut,) = next(iter(own.batches())), next(iter(odd.batches()))
    np.testing.assert_array_equal(cut[80:144], image[:, 14:245])
    np.testing.assert_array_equal(cut[144:208], image[::-1, 14:245])
    np.testing.assert_array_equal(cut[16:80], image[::-1, 14:245])
    assert cut.flags.c_contiguous


def test_images_of_any_size_are_brought_into_bounds(run: Any, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder / "val").mkdir(parents=True)
    for name, size in (("small", (20, 50)), ("large", (3000, 2000))):
        image = Image.new("RGB", size, (90, 120, 30))
        image.save(tmp_path / "data" / "images" / "val" / f"{name}.png")
        Image.new("L", size).save(tmp_path / "data" / "labels" / "val" / f"{name}.png")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\n")
    own = plan_cases(run.export(), f"folder:{tmp_path / 'data'}", 8)[0]
    large, small = (b.shape[1:3] for b in own.batches())
    assert small == (50, 32)
    assert 0.99 * 2**21 < large[0] * large[1] <= 2**21
    assert large[1] / large[0] == pytest.approx(1.5, rel=0.01)


def test_the_device_is_the_artifacts_and_what_judges_it_runs_on_the_cpu(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine may have a GPU for the runtime, and a torch without one."""
    artifact = run.export()
    asked = {}

    def on_cpu(folder: Any, device: str) -> Any:
        asked[folder.path.name] = device
        return open_session(folder, "cpu")

    monkeypatch.setattr("segdeploy.verify.reference.open_session", on_cpu)
    assert verify(artifact.path, device="cuda:1")
    assert asked.pop(artifact.path.name) == "cuda:1"
    assert set(asked.values()) == {"cpu"}
