"""The stage on a tiny model: what it builds computes, what it reuses, what it refuses."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from segdeploy.backends import BACKENDS, open_session
from segdeploy.backends.predictor import open_predictor
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import (
    ArtifactError,
    BuildError,
    CheckpointError,
    ConfigError,
    DigestMismatchError,
    RunLockedError,
    SegDeployError,
    UnknownNameError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import SizeRule, fixed_preprocess, normalize_image
from segdeploy.core.task import Task, predict_confidence, predict_labels
from segdeploy.data import open_dataset
from segdeploy.export import ExportOutcome, export
from segdeploy.export.plan import check_model_size

ALL = ["torchscript-fp32", "onnx-fp32", "onnx-fp16", "onnx-int8"]
DATA = "synthetic:64x80"
SIZES = [(1, 64, 96), (2, 61, 83), (1, 33, 35), (3, 97, 45)]
IMAGE_LABELS = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
# Root mean square difference as a share of the logits' spread.
CLOSE = {"torchscript-fp32": 1e-5, "onnx-fp32": 1e-5, "onnx-fp16": 2e-3, "onnx-int8": 0.08}


@pytest.fixture(scope="module")
def outcomes(checkpoint: Checkpoint) -> list[ExportOutcome]:
    run = checkpoint.path.parent
    return export(checkpoint.path, ALL, run, calibration=DATA, num_calibration_images=4)


def _images(num: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def _tensors(images: NDArray[np.uint8], checkpoint: Checkpoint) -> NDArray[np.float32]:
    return np.stack([normalize_image(i, checkpoint.manifest.preprocess) for i in images])


def test_outcomes_come_in_the_order_asked_for(outcomes: list[ExportOutcome]) -> None:
    assert [o.target for o in outcomes] == ALL
    assert not any(o.reused for o in outcomes)
    assert [o.path.name for o in outcomes] == ALL


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("shape", SIZES)
def test_every_artifact_agrees_with_eager_at_every_size(
    target: str, shape: tuple[int, int, int], outcomes: list[ExportOutcome], checkpoint: Checkpoint
) -> None:
    batch = _tensors(_images(*shape), checkpoint)
    wanted = open_session(checkpoint).run(batch)["logits"]
    session = open_session(load_artifact(outcomes[ALL.index(target)].path))
    found = session.run(batch)["logits"]
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    assert np.sqrt(np.mean((found - wanted) ** 2)) < CLOSE[target] * wanted.std()
    call = session.bind(batch)
    call()
    session.close()
    with pytest.raises(ArtifactError, match="closed"):
        session.run(batch)


def test_manifest_tells_where_an_artifact_comes_from(
    outcomes: list[ExportOutcome], checkpoint: Checkpoint
) -> None:
    by_target = {o.target: load_artifact(o.path).manifest for o in outcomes}
    source = checkpoint.manifest
    plain = by_target["onnx-fp32"]
    for target, manifest in by_target.items():
        assert manifest.target == target
        assert (manifest.model, manifest.classes, manifest.note) == (
            source.model, source.classes, source.note,
        )  # fmt: skip
        assert not manifest.trained
        assert manifest.passed is None
        assert manifest.reference is not None
        assert manifest.reference.digest == source.digest
        assert manifest.parent is not None
        from_plain = target in {"onnx-fp16", "onnx-int8"}
        assert manifest.parent.digest == (plain if from_plain else source).digest


def test_calibration_file_names_its_images(outcomes: list[ExportOutcome]) -> None:
    folder = outcomes[ALL.index("onnx-int8")].path
    found = json.loads((folder / "calibration.json").read_text())
    assert found["data"] == DATA
    assert found["split"] == "train"
    assert len(found["images"]) == 4
    assert all(len(image["sha256"]) == 64 for image in found["images"])
    assert all(r["clip"] > 0 for r in found["ranges"].values())
    assert "calibration.json" not in load_artifact(folder).manifest.files


def test_graphs_hold_no_machine_path_and_explain_themselves(
    outcomes: list[ExportOutcome],
) -> None:
    content = (outcomes[1].path / "model.onnx").read_bytes()
    for secret in (os.fsencode(Path.cwd()), b"site-packages", os.fsencode(Path(__file__).parent)):
        assert secret not in content
    props = {p.key: p.value for p in onnx.load_from_string(content).metadata_props}
    assert json.loads(props["segdeploy.classes"])[0] == "background"


def test_unchanged_work_is_reused_and_force_builds_the_same_bytes(
    outcomes: list[ExportOutcome], checkpoint: Checkpoint
) -> None:
    run = checkpoint.path.parent
    before = {o.target: o.artifact.manifest.digest for o in outcomes if o.artifact}
    again = export(checkpoint.path, ALL, run, calibration=DATA, num_calibration_images=4)
    assert all(o.reused for o in again)
    onnx_targets = ["onnx-fp32", "onnx-int8"]
    forced = export(
        checkpoint.path, onnx_targets, run, calibration=DATA, num_calibration_images=4, force=True
    )
    for outcome in forced:
        assert not outcome.reused
        assert outcome.artifact is not None
        assert outcome.artifact.manifest.digest == before[outcome.target]


@pytest.mark.usefixtures("outcomes")
def test_other_calibration_images_mean_other_work(checkpoint: Checkpoint) -> None:
    run = checkpoint.path.parent
    planned = export(
        checkpoint.path, ["onnx-int8"], run,
        calibration=DATA, num_calibration_images=3, dry_run=True,
    )  # fmt: skip
    assert [(o.target, o.reused, o.requested) for o in planned] == [
        ("onnx-int8", False, True),
        ("onnx-fp32", True, False),
    ]


@pytest.mark.usefixtures("outcomes")
def test_a_damaged_artifact_is_built_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.path.parent, run)
    payload = run / "onnx-fp16" / "model.onnx"
    content = bytearray(payload.read_bytes())
    content[len(content) // 2] ^= 1
    payload.write_bytes(content)
    (run / "onnx-int8" / "calibration.json").unlink()
    found = export(
        run / "checkpoint", ["onnx-fp16", "onnx-int8"], run,
        calibration=DATA, num_calibration_images=4,
    )  # fmt: skip
    assert [(o.path.name, o.reused) for o in found] == [
        ("onnx-fp16", False), ("onnx-int8", False), ("onnx-fp32", True),
    ]  # fmt: skip
    assert load_artifact(run / "onnx-fp16").manifest.target == "onnx-fp16"


@pytest.mark.usefixtures("outcomes")
@pytest.mark.parametrize("target", ALL)
def test_image_and_label_contracts_equal_the_reference_around_the_same_graph(
    target: str, checkpoint: Checkpoint
) -> None:
    run = checkpoint.path.parent
    made = export(
        checkpoint.path, [target], run,
        calibration=DATA, num_calibration_images=4, io=IMAGE_LABELS,
    )[0]  # fmt: skip
    assert made.path.name == f"{target}+image+labels+confidence"
    images = _images(2, 51, 66)
    found = open_session(load_artifact(made.path)).run(images)
    plain = open_session(load_artifact(run / target))
    logits = plain.run(_tensors(images, checkpoint))["logits"]
    agree = found["labels"] == predict_labels(logits, Task.MULTICLASS)
    assert found["labels"].dtype == np.uint8
    assert agree.mean() > 0.999  # Rounding differs where a runtime fuses; ties only.
    np.testing.assert_allclose(
        found["confidence"], predict_confidence(logits, Task.MULTICLASS), atol=2e-3
    )


def test_binary_model_in_every_format(binary_checkpoint: Checkpoint) -> None:
    run = binary_checkpoint.path.parent
    io = IoContract(InputKind.TENSOR, OutputKind.LABELS)
    found = export(
        binary_checkpoint.path, ALL, run, calibration=DATA, num_calibration_images=2, io=io
    )
    assert [o.path.name for o in found[:4]] == [f"{t}+labels" for t in ALL]
    assert [(o.path.name, o.requested) for o in found[4:]] == [("onnx-fp32", False)]
    batch = _tensors(_images(1, 47, 64), binary_checkpoint)
    wanted = open_session(binary_checkpoint).run(batch)["logits"][:, 0] > 0
    assert 0.01 < wanted.mean() < 0.99
    for outcome in found[:4]:
        labels = open_session(load_artifact(outcome.path)).run(batch)["labels"]
        assert (labels == wanted).mean() > (0.97 if "int8" in outcome.target else 0.999)


def test_a_static_size_takes_any_image_but_only_its_own_batch_size(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = export(
        checkpoint.path, ["onnx-fp16", "torchscript-fp32"], tmp_path / "run", size=(64, 96)
    )
    assert [o.path.name for o in found] == [
        "onnx-fp16+64x96", "torchscript-fp32+64x96", "onnx-fp32+64x96",
    ]  # fmt: skip
    for outcome in found:
        with open_predictor(outcome.path) as predictor:
            assert predictor.manifest.preprocess.size_rule is SizeRule.FIXED
            assert predictor.predict(_images(1, 90, 50)[0]).labels.shape == (90, 50)
            assert predictor.session.run(np.zeros((3, 3, 64, 96), np.float32))
            with pytest.raises(SegDeployError, match="any x 3 x 64 x 96"):
                predictor.session.run(np.zeros((1, 3, 64, 64), np.float32))


def test_preprocessing_of_a_static_size_keeps_letterbox_and_kernel(checkpoint: Checkpoint) -> None:
    spec = checkpoint.manifest.preprocess
    assert fixed_preprocess(spec, None) is spec
    fixed = fixed_preprocess(spec, (64, 96))
    assert (fixed.size_rule, fixed.size, fixed.mean) == (SizeRule.FIXED, (64, 96), spec.mean)


def test_dry_run_writes_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    planned = export(checkpoint.path, ["onnx-fp16"], out, dry_run=True)
    assert [(o.target, o.artifact) for o in planned] == [("onnx-fp16", None), ("onnx-fp32", None)]
    assert planned[0].parent == "onnx-fp32"
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("targets", "options", "error", "says"),
    [
        (["onnx-fp23"], {}, ConfigError, "not a target"),
        (["onx-fp32"], {}, UnknownNameError, "Did you mean onnx"),
        (["torchscript-int8"], {"calibration": DATA}, UnsupportedTargetError, "torchscript-fp32"),
        (["onnx-bf16"], {}, UnsupportedTargetError, "no precision bf16"),
        (["onnx-int8"], {}, ConfigError, "--calibration"),
        (["onnx-int8"], {"calibration": "camvit:x"}, UnknownNameError, "camvid"),
        (["onnx-int8"], {"calibration": DATA, "num_calibration_images": 0}, ConfigError, "one"),
        (["onnx-fp32"], {"size": (31, 64)}, ConfigError, "31x64"),
        (["onnx-fp32"], {"size": (64, 99999)}, ConfigError, "99999"),
        (["onnx-fp32", "onnx-fp16"], {"name": "x"}, ConfigError, "one target"),
        (["onnx-fp32"], {"name": "../x"}, ConfigError, "bare"),
        (["onnx-fp32"], {"name": ""}, ConfigError, "bare"),
        (["onnx-fp16"], {"name": "onnx-fp32"}, ConfigError, "parent"),
        ([], {}, ConfigError, "at least one target"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_written(
    targets: list[str],
    options: dict[str, object],
    error: type[SegDeployError],
    says: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        export(checkpoint.path, targets, tmp_path / "run", **options)  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_and_an_artifact_in_its_place_are_refused(
    outcomes: list[ExportOutcome], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.path, copy)
    weights = copy / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DigestMismatchError):
        export(copy, ["onnx-fp32"], tmp_path / "run")
    with pytest.raises(CheckpointError, match="is an artifact"):
        export(outcomes[1].path, ["onnx-fp16"], tmp_path / "run")
    with pytest.raises(ArtifactError, match="no such folder"):
        export(tmp_path / "nothing", ["onnx-fp16"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_an_artifact_is_never_replaced(checkpoint: Checkpoint, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.path, run / "checkpoint")
    (run / "onnx-fp32").mkdir()
    (run / "onnx-fp32" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ArtifactError, match="will not be replaced"):
        export(run / "checkpoint", ["onnx-fp32"], run)
    with pytest.raises(ArtifactError, match="will not be replaced"):
        export(run / "checkpoint", ["onnx-fp32"], run, name="checkpoint")
    assert (run / "onnx-fp32" / "thesis.txt").read_text() == "the only copy"


def test_a_run_folder_in_use_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(RunLockedError):
            export(checkpoint.path, ["torchscript-fp32"], tmp_path)
    finally:
        os.close(handle)
    assert not any(tmp_path.iterdir())


def test_a_file_in_place_of_the_run_folder_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ArtifactError, match="Cannot write below"):
        export(checkpoint.path, ["torchscript-fp32"], tmp_path / "run")


def test_a_failing_converter_leaves_nothing_and_shows_its_log(
    broken_checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildError) as caught:
        export(broken_checkpoint.path, ["onnx-fp32"], tmp_path / "run")
    assert caught.value.log
    assert caught.value.__cause__ is not None
    assert not (tmp_path / "run").exists()
    assert not capsys.readouterr().out


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left")])
def test_an_interrupted_build_keeps_the_old_artifact(
    interruption: BaseException | type[BaseException],
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    first = export(checkpoint.path, ["torchscript-fp32"], run)[0]
    before = {p.name: p.read_bytes() for p in first.path.iterdir()}

    def fail(_self: object, request: object) -> None:
        request.payload.write_bytes(b"half")  # type: ignore[attr-defined]
        raise interruption

    backend = BACKENDS.get("torchscript")
    monkeypatch.setattr(type(backend), "build", fail)
    expected = ArtifactError if isinstance(interruption, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        export(checkpoint.path, ["torchscript-fp32"], run, force=True)
    assert {p.name: p.read_bytes() for p in first.path.iterdir()} == before
    assert [p.name for p in run.iterdir()] == ["torchscript-fp32"]


def test_calibration_never_touches_the_evaluation_split(
    outcomes: list[ExportOutcome],
) -> None:
    folder = outcomes[ALL.index("onnx-int8")].path
    seen = {i["sha256"] for i in json.loads((folder / "calibration.json").read_text())["images"]}
    val = open_dataset(DATA, "val")
    for index in range(len(val)):
        image = val[index].image
        digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
        assert digest not in seen


def test_eager_torch_is_not_asked_to_warn(checkpoint: Checkpoint) -> None:
    """filterwarnings = error: a leaking deprecation of torch.jit would fail here."""
    session = open_session(checkpoint)
    assert session.run(np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 5, 32, 32)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "model",
    ["dpt_timm/vit_base_patch16_224.augreg_in21k", "unet_timm/swin_tiny_patch4_window7_224"],
)
def test_a_model_of_one_size_asks_for_it(model: str) -> None:
    with pytest.raises(ConfigError, match="exported at one size") as caught:
        check_model_size(model, None)
    assert "--size 224x224" in caught.value.hint or "--size 512x512" in caught.value.hint
    check_model_size(model, (224, 224))
    check_model_size("unet_resnet34", None)
