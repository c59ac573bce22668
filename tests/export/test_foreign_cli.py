"""Foreign ONNX files in a run: lineage, sizes, command line; the real ones to a label map."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeploy.backends import open_session
from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.errors import BackendUnavailableError, ConfigError, UnsupportedTargetError
from segdeploy.core.folder import Artifact, load_checkpoint, load_folder
from segdeploy.core.foreign import is_foreign
from segdeploy.core.preprocess import SizeRule
from segdeploy.data import open_dataset
from segdeploy.export import ForeignOptions, export
from segdeploy.verify import verify

UNIT = ForeignOptions(scale=1 / 255, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
UNIT_FLAGS = ("--scale", "0.00392156862745098", "--mean", ".5,.5,.5", "--std", ".25,.25,.25")
THEIRS = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 3, 48, 64] image) => (float[1, 5, 48, 64] shares)
<float[5, 3, 1, 1] w = {1, -2, 1, 0.5, 0, -1, -3, 2, 0.25, 1, 1, -2, 0, -1, 1}>
{
    scores = Conv(image, w)
    shares = Softmax <axis = 1> (scores)
}
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A file that ends in a softmax over five classes."""
    path = tmp_path / "theirs.onnx"
    onnx.save(onnx.parser.parse_model(THEIRS), str(path))
    return path


Cli = Callable[..., tuple[int, str, str]]


def test_dry_run_says_what_was_understood_and_writes_nothing(
    cli: Cli, theirs: Path, tmp_path: Path
) -> None:
    line = ["export", str(theirs), "--target", "onnx-fp32", "--out", str(tmp_path / "run")]
    code, _, err = cli(*line, *UNIT_FLAGS, "--dry-run")
    assert code == 0, err
    for said in (
        "opset 17", "'image': nchw, batch 1, size 48x64", "mean 0.5,0.5,0.5, std 0.25,0.25,0.25",
        "logits 'scores'", "5 channels", "task: multiclass", "left out Softmax",
    ):  # fmt: skip
        assert said in err
    assert not (tmp_path / "run").exists()


def test_preprocessing_has_no_default(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    line = ["export", str(theirs), "--target", "onnx-fp32", "--out", str(tmp_path / "run")]
    code, _, err = cli(*line, "--mean", "0,0,0")
    assert code == 2
    assert "--scale, --std not given" in err
    assert "--std 0.229,0.224,0.225" in err


def test_toml_says_it_and_flags_win(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    config = tmp_path / "theirs.toml"
    config.write_text(
        'scale = 1.0\nmean = [1, 2, 3]\nstd = [4, 5, 6]\nchannel_order = "bgr"\n'
        'classes = ["a", "b", "c", "d", "e"]\n'
    )
    line = ["export", str(theirs), "--target", "onnx-fp32", "--out", str(tmp_path / "run")]
    code, _, err = cli(*line, "--model-config", str(config), "--classes", "v,w,x,y,z", "--json")
    assert code == 0, err
    manifest = load_folder(tmp_path / "run" / "onnx-fp32").manifest
    assert manifest.classes == ("v", "w", "x", "y", "z")
    assert manifest.preprocess.channel_order == "bgr"
    assert list(manifest.preprocess.std) == [4, 5, 6]
    for text, word in (("meen = 1", "unknown keys: meen"), ("scale = 'x'", "float"), ("=", "TOML")):
        config.write_text(text)
        code, _, err = cli(*line, "--model-config", str(config))
        assert code == 2
        assert word in err


def test_isolated_path_gives_the_same(
    cli: Cli, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("1", "0"):
        monkeypatch.setenv("SEGDEPLOY_IN_PROCESS", name)
        line = ["export", str(theirs), "--target", "onnx-fp32", "--out", str(tmp_path / name)]
        code, _, err = cli(*line, *UNIT_FLAGS)
        assert code == 0, err  # Verified too, the original in a child.
        found.append((tmp_path / name / "onnx-fp32" / "model.onnx").read_bytes())
        code, _, err = cli(*line, *UNIT_FLAGS, "--input-name", "nothing")
        assert code == 2
        assert "no input 'nothing'; its inputs are: 'image' float32 1 x 3 x 48 x 64" in err
    assert found[0] == found[1]


def exported(path: Path, out: Path, **more: Any) -> Artifact:
    """Return the plain artifact of a file."""
    artifact = export(path, ["onnx-fp32"], out, foreign=UNIT, **more)[0].artifact
    assert artifact is not None
    return artifact


def test_lineage_digests_and_reuse(theirs: Path, tmp_path: Path) -> None:
    path, run = theirs, tmp_path / "run"
    artifact = exported(path, run)
    source = load_checkpoint(run / "source")
    assert is_foreign(source)
    assert (run / "source" / "model.onnx").read_bytes() == path.read_bytes()
    for link in (artifact.manifest.parent, artifact.manifest.reference):
        assert link is not None
        assert link.digest == source.manifest.digest
    before = (run / "source" / "manifest.json").read_bytes()
    assert export(path, ["onnx-fp32"], run, foreign=UNIT)[0].reused
    assert export(run / "source", ["onnx-fp32"], run)[0].reused  # The folder is a checkpoint.
    assert (run / "source" / "manifest.json").read_bytes() == before
    (run / "source" / "model.onnx").write_bytes(b"damaged")
    assert export(path, ["onnx-fp32"], run, foreign=UNIT)[0].reused  # And the source is mended.
    assert (run / "source" / "model.onnx").read_bytes() == path.read_bytes()
    other = tmp_path / "other.onnx"
    onnx.save(onnx.parser.parse_model(THEIRS.replace("48", "40")), str(other))
    with pytest.raises(ConfigError, match="holds another foreign model"):
        exported(other, run)
    assert exported(other, run, force=True).manifest.inputs[0].shape == (1, 3, 40, 64)
    with pytest.raises(ConfigError, match="is no file"):
        export(run / "source", ["onnx-fp32"], run, foreign=UNIT)


def test_same_file_gives_same_bytes(theirs: Path, tmp_path: Path) -> None:
    first, second = (exported(theirs, tmp_path / name).payload for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_fixed_size_model_refuses_another_size(theirs: Path, tmp_path: Path) -> None:
    path = theirs
    with pytest.raises(ConfigError, match="takes 48x64 only, and --size is 64x64"):
        exported(path, tmp_path / "run", size=(64, 64))
    assert not (tmp_path / "run").exists()
    artifact = exported(path, tmp_path / "run", size=(48, 64))
    assert artifact.path.name == "onnx-fp32"
    assert artifact.manifest.preprocess.size_rule is SizeRule.FIXED
    assert artifact.manifest.preprocess.size == (48, 64)
    with pytest.raises(ConfigError, match="takes 1 image a call"):
        exported(path, tmp_path / "run", max_batch=4)
    with pytest.raises(UnsupportedTargetError, match="made from a PyTorch module"):
        export(path, ["torchscript-fp32"], tmp_path / "run", foreign=UNIT)


def test_original_runs_on_the_cpu_only(theirs: Path, tmp_path: Path) -> None:
    exported(theirs, tmp_path / "run")
    source = load_checkpoint(tmp_path / "run" / "source")
    with pytest.raises(BackendUnavailableError, match="is run on the CPU, not on 'cuda'"):
        open_session(source, "cuda")


REAL = {
    "sinet_portrait": (
        (320, 320),
        ForeignOptions(
            scale=1.0, mean=(102.890434, 111.25247, 126.91212),
            std=(16047.8946, 16019.4531, 16920.704775), channel_order="bgr",
            classes=("background", "portrait"),
        ),
    ),
    "deeplabv3_mnv2_dm05_513": (
        (513, 513),
        ForeignOptions(
            scale=1 / 127.5, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0),
            classes=("background", "person"),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_models_end_to_end(cli: Cli, shared_data: Path, tmp_path: Path, name: str) -> None:
    path, run = shared_data / "foreign_onnx" / f"{name}.onnx", tmp_path / "run"
    size, options = REAL[name]
    plain = export(path, ["onnx-fp32"], run, foreign=options)[0].artifact
    assert plain is not None
    camvid = shared_data / "camvid"
    report = verify(plain.path, data=f"camvid:{camvid}", num_images=1)
    assert report.passed, report.failures
    assert report.flip_rate <= 1e-5
    photo = min((camvid / "val").iterdir())
    expected = _label_map(path, photo, size, options)
    for folder in (plain.path, run / "source"):
        code, _, err = cli("predict", str(folder), str(photo), "--out", str(tmp_path / folder.name))
        assert code == 0, err
        masks = [f for f in (tmp_path / folder.name).rglob("*.png") if "overlay" not in f.name]
        found = np.asarray(Image.open(masks[0]))
        assert (found != expected).mean() <= 1e-4


def test_bench_and_evaluate_take_it(cli: Cli, theirs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    names = ",".join(open_dataset("synthetic:48x64:8", "val").classes)
    line = ["export", str(theirs), "--target", "onnx-fp32", "--out", str(run)]
    code, _, err = cli(*line, *UNIT_FLAGS, "--classes", names)
    assert code == 0, err
    code, out, err = cli("bench", str(run / "onnx-fp32"), "--seconds", "0.1", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["target"] == "onnx-fp32"
    found = []
    for folder in (run / "source", run / "onnx-fp32"):
        code, out, err = cli("evaluate", str(folder), "--data", "synthetic:48x64:8", "--json")
        assert code == 0, err
        found.append(json.loads(out)["confusion"])
    assert found[0] == found[1]


def _label_map(
    path: Path, photo: Path, size: tuple[int, int], options: ForeignOptions
) -> NDArray[np.uint8]:
    """The app's own path: Pillow, NumPy and ONNX Runtime on the original file."""
    image = Image.open(photo).convert("RGB")
    small = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32)
    if options.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    batch = (pixels * (options.scale or 1) - np.asarray(options.mean)) / np.asarray(options.std)
    runtime = onnxruntime.SessionOptions()
    runtime.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), runtime, ["CPUExecutionProvider"])
    placed = batch.transpose(2, 0, 1)[None].astype(np.float32)
    logits = session.run(None, {session.get_inputs()[0].name: placed})[0]
    labels = logits[0].argmax(0).astype(np.uint8)
    rows = ((np.arange(image.height) + 0.5) * size[0] / image.height).astype(int)
    columns = ((np.arange(image.width) + 0.5) * size[1] / image.width).astype(int)
    found: NDArray[np.uint8] = labels[rows][:, columns]
    return found
