"""Predict with an ONNX artifact whose logits are the three colour channels themselves.

So the right label of a pixel is known without any model: the channel that is largest there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import segdeploy.cli.predict
from segdeploy.backends.predictor import open_predictor
from segdeploy.cli.app import run_app
from segdeploy.core.contract import InputKind, IoContract, OutputKind, contract_tensors
from segdeploy.core.errors import ArtifactError, ConfigError, DataError
from segdeploy.core.folder import save_folder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.data.pictures import overlay, palette
from segdeploy.predict import predict
from segdeploy.predict.inputs import find_images, name_results

assert segdeploy.cli.predict  # Registers the command.
CLASSES = ("red", "green", "blue")
PLAIN = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def write_onnx(
    path: Path, nodes: list[onnx.NodeProto], specs: tuple[Any, Any], **weights: Any
) -> None:
    def info(spec: Any) -> onnx.ValueInfoProto:
        kinds = {
            "float32": TensorProto.FLOAT,
            "uint8": TensorProto.UINT8,
            "uint16": TensorProto.UINT16,
        }
        shape = [side or f"{spec.name}_{axis}" for axis, side in enumerate(spec.shape)]
        return helper.make_tensor_value_info(spec.name, kinds[spec.dtype], shape)

    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [info(specs[0])], [info(specs[1])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def make_artifact(
    path: Path, *, preprocess: PreprocessSpec = PLAIN, size: tuple[int, int] | None = None
) -> Path:
    """Logits are the input."""
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, size)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.MULTICLASS, classes=CLASSES,
        preprocess=preprocess, inputs=inputs, outputs=outputs, files={"model.onnx": ""},
        target="onnx-fp32",
    )  # fmt: skip
    node = helper.make_node("Identity", ["tensor"], ["logits"])
    save_folder(
        path, manifest, lambda f: write_onnx(f / "model.onnx", [node], (inputs[0], outputs[0]))
    )
    return path


def make_wide_artifact(path: Path) -> Path:
    """Give 300 classes; the label is 290 plus the first channel of a uint8 image."""
    classes = tuple(f"class {index}" for index in range(300))
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS)
    inputs, outputs = contract_tensors(io, Task.MULTICLASS, 300, None)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.MULTICLASS, classes=classes, preprocess=PLAIN,
        inputs=inputs, outputs=outputs, files={"model.onnx": ""}, target="onnx-fp32", io=io,
    )  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["image", "first"], ["channel"], axis=3),
        helper.make_node("Cast", ["channel"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Add", ["wide", "offset"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["labels"], to=TensorProto.UINT16),
    ]
    weights = {"first": np.array(0, np.int64), "offset": np.array(290, np.int32)}
    save_folder(
        path,
        manifest,
        lambda f: write_onnx(f / "model.onnx", nodes, (inputs[0], outputs[0]), **weights),
    )
    return path


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "run" / "onnx-fp32")


def draw(path: Path, size: tuple[int, int] = (13, 21), seed: int = 0) -> NDArray[np.uint8]:
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image


def read(path: str | Path) -> NDArray[Any]:
    with Image.open(path) as picture:
        return np.array(picture)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_mask_holds_class_indices_and_overlay_the_tinted_image(
    artifact: Path, tmp_path: Path
) -> None:
    image = draw(tmp_path / "in" / "a.png")
    (found,) = predict(artifact, [tmp_path / "in" / "a.png"], tmp_path / "out")
    want = image.argmax(-1)
    with Image.open(found.mask) as mask:
        assert mask.mode == "P"
        colors = np.array(mask.getpalette()).reshape(-1, 3)
    assert np.array_equal(read(found.mask), want)
    assert np.array_equal(colors[:3], palette(3)[:3])
    assert np.array_equal(read(found.overlay), overlay(image, want.astype(np.uint8), 3))
    assert (found.height, found.width) == (13, 21)
    assert found.classes == {
        name: pytest.approx((want == k).mean()) for k, name in enumerate(CLASSES)
    }
    assert names(tmp_path / "out") == {"a.png", "a_overlay.png"}


def test_the_mask_has_the_pictures_own_size_whatever_the_model_takes(tmp_path: Path) -> None:
    from segdeploy.core.preprocess import SizeRule

    spec = PreprocessSpec(
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size_rule=SizeRule.LETTERBOX, size=(32, 32)
    )
    artifact = make_artifact(tmp_path / "run" / "onnx-fp32", preprocess=spec, size=(32, 32))
    image = np.zeros((50, 200, 3), np.uint8)
    image[:, :100, 2] = image[:, 100:, 1] = 200
    Image.fromarray(image).save(tmp_path / "wide.png")
    (found,) = predict(artifact, [tmp_path / "wide.png"], tmp_path / "out")
    mask = read(found.mask)
    assert mask.shape == (50, 200)
    assert (mask[:, :90] == 2).all()
    assert (mask[:, 110:] == 1).all()


def test_exif_rotation_is_applied(artifact: Path, tmp_path: Path) -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, :10, 0] = image[:, 10:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Stored lying on its side: shown after a quarter turn clockwise.
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    (found,) = predict(artifact, [tmp_path / "turned.png"], tmp_path / "out")
    mask = read(found.mask)
    assert mask.shape == (20, 10)
    assert (mask[:10] == 0).all()
    assert (mask[10:] == 2).all()


def test_labels_beyond_255_are_written_with_16_bits(tmp_path: Path) -> None:
    artifact = make_wide_artifact(tmp_path / "run" / "onnx-fp32")
    image = np.zeros((4, 9, 3), np.uint8)
    image[..., 0] = np.arange(9)
    Image.fromarray(image).save(tmp_path / "a.png")
    (found,) = predict(artifact, [tmp_path / "a.png"], tmp_path / "out")
    assert np.array_equal(read(found.mask), 290 + image[..., 0].astype(np.uint16))
    assert found.classes["class 298"] == pytest.approx(1 / 9)


def test_a_binary_model_says_yes_above_the_threshold(tmp_path: Path) -> None:
    """The logit is the red channel in [0, 1]; sigmoid(0.5) = 0.6225."""
    inputs, outputs = contract_tensors(IoContract(), Task.BINARY, 1, None)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.BINARY, classes=("red",), preprocess=PLAIN,
        inputs=inputs, outputs=outputs, files={"model.onnx": ""}, target="onnx-fp32",
    )  # fmt: skip
    node = helper.make_node("Gather", ["tensor", "first"], ["logits"], axis=1)
    save_folder(
        tmp_path / "onnx-fp32",
        manifest,
        lambda f: write_onnx(
            f / "model.onnx", [node], (inputs[0], outputs[0]), first=np.array([0], np.int64)
        ),
    )
    red = draw(tmp_path / "a.png")[..., 0] / 255
    for threshold, want in ((None, red > 0), (0.6225, red > 0.5)):
        (found,) = predict(
            tmp_path / "onnx-fp32", [tmp_path / "a.png"], tmp_path / "out", threshold=threshold
        )
        assert np.array_equal(read(found.mask), want)


def test_a_session_of_a_refused_predictor_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a process, which would stay."""
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 3, None)
    manifest = Manifest(
        kind="artifact", model="none", task=Task.MULTICLASS, classes=tuple("abc"),
        preprocess=PLAIN, inputs=inputs, outputs=outputs, files={"model.onnx": ""},
        target="onnx-fp32",
    )  # fmt: skip
    save_folder(tmp_path / "onnx-fp32", manifest, lambda f: (f / "model.onnx").touch())
    session = MagicMock()
    monkeypatch.setattr("segdeploy.backends.predictor.open_session", lambda *_: session)
    with pytest.raises(ConfigError):
        open_predictor(tmp_path / "onnx-fp32", threshold=0.5)
    session.close.assert_called_once_with()


def test_folders_patterns_and_files_are_taken_once_each(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.txt", ".hidden.png", "deep/d.png", "e[1].png"):
        draw(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    found = find_images([tmp_path, str(tmp_path / "*.png"), tmp_path / "a.png"])
    assert [path.name for path in found] == ["a.png", "b.JPG", "e[1].png"]
    assert find_images([str(tmp_path / "**" / "d.png")]) == [tmp_path / "deep" / "d.png"]
    assert find_images([str(tmp_path / "e[1].png")]) == [tmp_path / "e[1].png"]


@pytest.mark.parametrize("asked", [[], ["absent.png"], ["*.nothing"], ["empty"]])
def test_an_argument_that_means_no_image_is_refused(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        predict(artifact, asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_names_get_distinct_results(artifact: Path, tmp_path: Path) -> None:
    files = ["x/a.png", "x/a.bmp", "y/a.png", "x/A.tif", "x/b.png", "x/b_overlay.png"]
    wanted = {name: draw(tmp_path / name, seed=i).argmax(-1) for i, name in enumerate(files)}
    found = predict(artifact, [tmp_path / name for name in files], tmp_path / "out")
    assert len(names(tmp_path / "out")) == 2 * len(files)
    for name, file in zip(files, found, strict=True):
        assert np.array_equal(read(file.mask), wanted[name])


def test_result_names_are_distinct_without_regard_to_case() -> None:
    images = [Path(n) for n in ("a.jpg", "A.jpg", "a.png", "a_jpg.png", "a_overlay.png", "c.png")]
    found = name_results(images)
    written = [f"{n}{s}".lower() for n in found for s in ("", "_overlay")]
    assert len(set(written)) == len(written)
    assert found[-1] == "c"


@pytest.mark.parametrize("damage", ["empty", "truncated", "text"])
def test_a_damaged_picture_is_named_after_the_others_are_done(
    artifact: Path, tmp_path: Path, damage: str
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        draw(tmp_path / "in" / name)
    bad = tmp_path / "in" / "b.png"
    content = bad.read_bytes()
    bad.write_bytes({"empty": b"", "truncated": content[:200], "text": b"hello"}[damage])
    with pytest.raises(DataError, match=r"b\.png"):
        predict(artifact, [tmp_path / "in"], tmp_path / "out")
    assert names(tmp_path / "out") == {"a.png", "a_overlay.png", "c.png", "c_overlay.png"}


def test_a_picture_that_a_static_artifact_cannot_take_is_named(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "run" / "onnx-fp32", size=(8, 8))
    draw(tmp_path / "in" / "fits.png", (8, 8))
    draw(tmp_path / "in" / "large.png", (9, 8))
    with pytest.raises(DataError, match=r"large\.png"):
        predict(artifact, [tmp_path / "in"], tmp_path / "out")
    assert names(tmp_path / "out") == {"fits.png", "fits_overlay.png"}


def test_no_picture_or_label_beside_it_is_ever_replaced(artifact: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.jpg")
    label = tmp_path / "in" / "a.png"
    label.write_bytes(b"a precious label")
    with pytest.raises(DataError, match="would be replaced"):
        predict(artifact, [tmp_path / "in" / "a.jpg"], tmp_path / "in")
    assert label.read_bytes() == b"a precious label"
    assert names(tmp_path / "in") == {"a.jpg", "a.png"}


def test_an_output_that_cannot_be_a_folder_is_an_artifact_error(
    artifact: Path, tmp_path: Path
) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ArtifactError):
        predict(artifact, [tmp_path / "a.png"], tmp_path / "out")


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["segdeploy", *map(str, words)])
    return run_app()


def test_the_command_prints_one_json_document_and_exits_2_for_damage(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"broken")
    code = call(
        monkeypatch, "predict", artifact, tmp_path / "in", "--out", tmp_path / "o", "--json"
    )
    said = capsys.readouterr()
    assert code == 2
    (entry,) = json.loads(said.out)
    assert entry["mask"] == str(tmp_path / "o" / "a.png")
    assert "b.png" in said.err
    assert "Traceback" not in said.err


NO_TORCH = "import sys\nfor name in ('torch', 'torchvision'): sys.modules[name] = None\n"


def test_predict_bench_and_report_work_without_torch(artifact: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_TORCH)
    code = (
        "import importlib.util, sys\n"
        "from pathlib import Path\n"
        "assert importlib.util.find_spec('torch') is None\n"
        "from segdeploy.predict import predict\n"
        "from segdeploy.bench import bench\n"
        "from segdeploy.report import report\n"
        "from segdeploy.workflows.doctor import diagnose\n"
        "model, images, out = map(Path, sys.argv[1:])\n"
        "predict(model, [images], out)\n"
        "(result,) = bench([model], seconds=0, warmup_s=0, size=(8, 8), threads=1)\n"
        "assert 'torch_threads' not in result.environment['runtime']\n"
        "report(model.parent)\n"
        "found = {f.name: f for f in diagnose().packages + diagnose().targets}\n"
        "assert found['onnx-fp32'].available\n"
        "assert 'segdeploy[torch]' in found['torchscript-fp32'].hint\n"
    )
    arguments = [str(artifact), str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").exists()
    assert (artifact.parent / "report.html").exists()
