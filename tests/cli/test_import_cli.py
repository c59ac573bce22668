"""Weights from elsewhere, and a model of one's own through the whole chain, by command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from segdeploy.core.folder import load_checkpoint
from segdeploy.core.trust import ALLOW_CODE
from segdeploy.data import open_dataset
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import load_module, main_logits

prepare_torchvision()
from torchvision.models import segmentation  # noqa: E402

smp: Any = pytest.importorskip("segmentation_models_pytorch")

Run = Callable[..., tuple[int, str, str]]
DATA = "synthetic:64x96:32"
TARGETS = ("torchscript-fp32", "onnx-fp32", "onnx-int8")

_NET = """
    from torch import nn

    class Net(nn.Module):
        '''Logits of a quarter of the input's size, as many nets give them.'''

        def __init__(self, num_classes):
            super().__init__()
            self.encoder = nn.Sequential(*self.block(3, 16, 2), *self.block(16, 32, 2))
            self.head = nn.Sequential(*self.block(32, 32, 1), nn.Conv2d(32, num_classes, 1))

        @staticmethod
        def block(inputs, outputs, stride):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return conv, nn.BatchNorm2d(outputs), nn.ReLU()

        def forward(self, x):
            return self.head(self.encoder(x))

    class Chatty(Net):
        def forward(self, x):
            print("here I am")
            return super().forward(x)

    class Fails(Net):
        def forward(self, x):
            raise KeyError("no such layer")

    class Unused(Net):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            self.other = nn.Linear(2, 2)

    class Needy(nn.Module):
        def __init__(self, num_classes, width):
            super().__init__()
"""


@pytest.fixture(autouse=True)
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file `own_model.py` in the current folder; no permission to import code."""
    (tmp_path / "own_model.py").write_text(textwrap.dedent(_NET))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(ALLOW_CODE, "")
    yield
    sys.modules.pop("own_model", None)


def _structured(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return net.eval()


def _torchvision() -> nn.Module:
    net: nn.Module = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    return net


def _smp() -> nn.Module:
    net: nn.Module = smp.Unet("resnet18", encoder_weights=None, classes=3)
    return net


@pytest.mark.parametrize(
    ("model", "make"), [("lraspp_mobilenet_v3_large", _torchvision), ("unet_resnet18", _smp)]
)
def test_a_librarys_weights_become_a_checkpoint_of_the_same_logits(
    cli: Run, tmp_path: Path, model: str, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    reference = _structured(make())
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    (tmp_path / "classes.txt").write_text("road\ncar\n\nsky\n")
    code, out, err = cli(
        "import", "w.pth", "--model", model, "--out", "run/checkpoint", "--classes", "classes.txt",
        "--mean", "0.5,0.5,0.5", "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["classes"] == ["road", "car", "sky"]
    checkpoint = load_checkpoint(Path(document["path"]))
    assert checkpoint.manifest.preprocess.mean == (0.5, 0.5, 0.5)
    assert checkpoint.manifest.preprocess.std == (0.229, 0.224, 0.225)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, found = main_logits(reference(image)), main_logits(load_module(checkpoint)(image))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    code, _, err = cli("import", "w.pth", "--model", model, "--out", "run/checkpoint")
    assert code == 2
    assert "--force" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "unett"], "Did you mean unet"),
        (["--model", "unet"], "There are no weights at"),
        (["--model", "unet", "--mean", "1,2"], "three numbers"),
        (["--model", "unet", "--task", "panoptic"], "panoptic"),
    ],
)
def test_mistakes_of_import_are_exit_2(cli: Run, arguments: list[str], message: str) -> None:
    code, out, err = cli("import", "lost.pth", *arguments, "--out", "run/checkpoint")
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("run").exists()


def test_show_tells_facts_and_blocks(cli: Run) -> None:
    code, out, err = cli("show", "lraspp_mobilenet_v3_large", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["num_parameters"] == 3_221_538  # torchvision's documentation.
    assert found["macs"] / 1e9 == pytest.approx(2.086, abs=5e-4)
    assert [b["name"] for b in found["blocks"] if "." not in b["name"]] == [
        "backbone",
        "classifier",
    ]
    assert (found["output_stride"], found["source"]) == (8, "arXiv:1905.02244")
    code, out, _ = cli("show", "own_model:Net", "--size", "32x64", "--num-classes", "2")
    assert code == 0
    assert "encoder" in out
    assert cli("show", "own_model:Net", "--size", "32")[0] == 2
    assert cli("show", "nonsense")[0] == 2


def test_what_own_code_prints_stays_out_of_the_document(cli: Run) -> None:
    code, out, err = cli("show", "own_model:Chatty", "--size", "32x32", "--json")
    assert code == 0, err
    assert json.loads(out)["name"] == "own_model:Chatty"
    assert "here I am" in err


def test_what_own_code_prints_in_ranks_stays_out_of_the_document() -> None:
    line = ("train", "--model", "own_model:Chatty", "--data", "synthetic:32x32:4", "--out", "run",
            "--epochs", "1", "--batch-size", "2", "--workers", "0", "--device", "cpu",
            "--nproc", "2", "--json")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "segdeploy", *line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "own_model:Chatty"
    assert "here I am" in done.stderr


def test_own_code_that_fails_is_no_bug_of_ours(cli: Run) -> None:
    code, _, err = cli("show", "own_model:Fails", "--size", "32x32")
    assert code == 2
    assert "KeyError: 'no such layer'" in err
    sys.path.insert(0, "")
    import own_model  # type: ignore[import-not-found]

    torch.save(own_model.Fails(5).state_dict(), "w.pth")
    assert cli("import", "w.pth", "--model", "own_model:Fails", "--out", "c")[0] == 0
    code, _, err = cli("evaluate", "c", "--data", "synthetic:32x32:4", "--allow-code", "--no-save")
    assert "Traceback" not in err
    assert code == 2


def test_own_parameters_that_nothing_uses_train_in_two_processes(cli: Run) -> None:
    line = ("train", "--model", "own_model:Unused", "--data", "synthetic:32x32:8", "--out", "run")
    code, _, err = cli(*line, "--epochs", "1", "--batch-size", "2", "--workers", "0",
                       "--device", "cpu", "--nproc", "2")  # fmt: skip
    assert code == 0, err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_model:Needy", "missing a required argument: 'width'"),
        ("own_model:Lost", "has no attribute 'Lost'"),
        ("no_module:Net", "No module named 'no_module'"),
    ],
)
def test_a_model_that_cannot_be_made_is_exit_2(cli: Run, model: str, message: str) -> None:
    code, _, err = cli("train", "--model", model, "--data", DATA, "--out", "run")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_recipe_from_elsewhere_may_not_bring_code(cli: Run) -> None:
    Path("recipe.toml").write_text('model = "own_model:Net"\ndata = "synthetic"\nout = "run"\n')
    code, _, err = cli("train", "recipe.toml")
    assert code == 2
    assert "--allow-code" in err
    assert "own_model" not in sys.modules


@pytest.fixture
def run(cli: Run) -> Path:
    """A trained run of the own model."""
    code, _, err = cli(
        "train", "--model", "own_model:Net", "--data", DATA, "--out", "run", "--epochs", "6",
        "--batch-size", "8", "--warmup-steps", "4", "--lr", "0.01", "--workers", "0",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    return Path("run")


def test_an_own_model_goes_through_the_whole_chain(cli: Run, run: Path) -> None:
    checkpoint = str(run / "checkpoint")
    Image.fromarray(open_dataset("synthetic:50x70", "test")[0].image).save("photo.png")
    export = ["export", checkpoint, "--out", "run", "--calibration", DATA,
              *(word for target in TARGETS for word in ("--target", target))]  # fmt: skip
    sys.modules.pop("own_model")
    for line in (
        export,
        ["evaluate", checkpoint, "--data", DATA],
        ["predict", checkpoint, "photo.png", "--out", "masks"],
        ["bench", checkpoint],
        ["show", checkpoint],
        ["train", "--out", "run", "--resume"],
    ):
        code, _, err = cli(*line)
        assert code == 2, line
        assert "names the model own_model:Net" in err, line
        assert "--allow-code" in err
        assert "own_model" not in sys.modules
    code, out, err = cli(*export, "--allow-code", "--json")
    assert code == 0, err
    assert [each["passed"] for each in json.loads(out)] == [True] * 3
    _check_without_permission(cli)
    score = json.loads(cli("evaluate", checkpoint, "--data", DATA, "--allow-code", "--json")[1])
    artifact = json.loads(cli("evaluate", "run/onnx-fp32", "--data", DATA, "--json")[1])
    assert artifact["mean_iou"] == pytest.approx(score["mean_iou"], abs=1e-3)
    timed = cli("bench", checkpoint, "run/onnx-int8", "--allow-code", "--seconds", "0.2",
                "--warmup", "0.05", "--json")  # fmt: skip
    assert [each["target"] for each in json.loads(timed[1])] == ["pytorch-fp32", "onnx-int8"]
    assert cli("show", checkpoint, "--allow-code")[0] == 0
    assert cli("train", "--out", "run", "--resume", "--model", "own_model:Net")[0] == 0
    assert cli("report", "run")[0] == 0
    assert all(name in Path("run/report.html").read_text() for name in TARGETS)


def _check_without_permission(cli: Run) -> None:
    """An exported graph runs without the code; judging it against the checkpoint needs it."""
    os.environ[ALLOW_CODE] = ""
    code, _, err = cli("predict", "run/onnx-fp32", "photo.png", "--out", "masks")
    assert code == 0, err
    with Image.open("masks/photo.png") as mask:
        assert mask.size == (70, 50)
    code, _, err = cli("verify", "run/onnx-fp32", "--data", DATA)
    assert code == 2
    assert "--allow-code" in err
    code, _, err = cli("verify", "run/onnx-fp32", "--data", DATA, "--allow-code")
    assert code == 0, err
