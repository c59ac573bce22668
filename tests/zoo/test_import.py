"""Weights of other libraries become checkpoints that compute the same logits, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segdeploy.core.errors import ArtifactError, CheckpointError, ConfigError, UnknownNameError
from segdeploy.core.folder import Checkpoint, load_checkpoint
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.frameworks.torchvision import prepare_torchvision
from segdeploy.zoo import create_model, load_module, main_logits
from segdeploy.zoo.importing import import_notes, import_weights

prepare_torchvision()
from torchvision.models import segmentation  # noqa: E402

smp: Any = pytest.importorskip("segmentation_models_pytorch")

LRASPP = "lraspp_mobilenet_v3_large"


def _lraspp(num_classes: int = 4) -> nn.Module:
    net = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes
    )
    return _structured(net)


def _deeplab(num_classes: int = 4, *, aux: bool = True) -> nn.Module:
    net = segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=aux
    )
    return _structured(net)


def _structured(net: nn.Module) -> nn.Module:
    """Random weights and statistics, so that a tensor in the wrong place would show."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return net.eval()


def _logits(net: nn.Module, image: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = main_logits(net(image))
    return logits


def _assert_equal(found: nn.Module, reference: nn.Module, size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected, ours = _logits(reference, image), _logits(found, image)
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def _save(state: Any, tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
        lambda state: {f"net.{k}": v for k, v in state.items()},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {k: v for k, v in state.items() if not k.endswith("batches_tracked")},
    ],
)
def test_every_usual_wrapping_gives_the_same_model(tmp_path: Path, wrap: Any) -> None:
    reference = _lraspp()
    path = _save(wrap(reference.state_dict()), tmp_path)
    checkpoint = import_weights(path, model=LRASPP, out=tmp_path / "run" / "checkpoint")
    assert checkpoint.manifest.classes == ("class_0", "class_1", "class_2", "class_3")
    assert import_notes(checkpoint) == []
    _assert_equal(load_module(load_checkpoint(checkpoint.path)), reference, (65, 47))


@pytest.mark.parametrize(
    ("model", "make"),
    [
        ("deeplabv3_mobilenet_v3_large", _deeplab),
        ("unet_resnet18", lambda: smp.Unet("resnet18", encoder_weights=None, classes=6)),
        ("fpn_resnet18", lambda: smp.FPN("resnet18", encoder_weights=None, classes=1)),
        ("unet_mobilenet_v2", lambda: smp.Unet("mobilenet_v2", encoder_weights=None, classes=2)),
    ],
)
def test_k_is_read_and_logits_are_the_librarys(tmp_path: Path, model: str, make: Any) -> None:
    reference = _structured(make())
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    checkpoint = import_weights(
        tmp_path / "w.safetensors", model=model, out=tmp_path / "c", note="licence: none"
    )
    image = torch.zeros(2, 3, 64, 64)
    num_classes = _logits(reference, image).shape[1]
    manifest = checkpoint.manifest
    assert len(manifest.classes) == num_classes
    assert manifest.task is (Task.BINARY if num_classes == 1 else Task.MULTICLASS)
    assert manifest.note == "licence: none"
    assert manifest.options["imported"]["file"] == "w.safetensors"
    assert len(manifest.options["imported"]["sha256"]) == 64
    _assert_equal(load_module(checkpoint), reference, (96, 64))


def _official_names() -> list[str]:
    """Keys of the authors' U-2-Net but for the six sides."""
    heights = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4}
    names = []
    for stage in [*heights, *(f"{n}d" for n in "12345")]:
        height = heights[stage[0]]
        inner = ["in", *map(str, range(1, height + 1)), *(f"{n}d" for n in range(1, height))]
        names += [f"stage{stage}.rebnconv{each}" for each in inner]
    return names


def test_the_official_u2net_is_converted(tmp_path: Path) -> None:
    from segdeploy.zoo.architectures.u2net import _our_key

    ours = _structured(create_model("u2net_lite", 1))
    own = ours.state_dict()
    official: dict[str, Tensor] = {}
    for name in _official_names():
        official[f"{name}.conv_s1.weight"] = own[_our_key(f"{name}.conv_s1.weight")]
        bias = torch.randn(len(official[f"{name}.conv_s1.weight"]))
        official[f"{name}.conv_s1.bias"] = bias
        for part in ("weight", "bias", "running_mean", "running_var"):
            key = f"{name}.bn_s1.{part}"
            official[key] = own[_our_key(key)] + (bias if part == "running_mean" else 0)
    for side in [*(f"side{n}" for n in range(1, 7)), "outconv"]:
        for part in ("weight", "bias"):
            official[f"{side}.{part}"] = own[_our_key(f"{side}.{part}")]
    checkpoint = import_weights(_save(official, tmp_path), model="u2net_lite", out=tmp_path / "c")
    assert checkpoint.manifest.task is Task.BINARY
    assert "official U-2-Net" in import_notes(checkpoint)[0]
    _assert_equal(load_module(checkpoint), ours, (65, 47))
    with pytest.raises(CheckpointError, match="does not fit unet") as caught:
        import_weights(_save(official, tmp_path), model="unet", out=tmp_path / "d")
    assert "--model u2net" in caught.value.hint


def test_class_names_task_and_preprocessing_are_kept(tmp_path: Path) -> None:
    path = _save(_lraspp(2).state_dict(), tmp_path)
    preprocess = PreprocessSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    checkpoint = import_weights(
        path, model=LRASPP, out=tmp_path / "c", classes=["road", "car"], task=Task.MULTILABEL,
        preprocess=preprocess,
    )  # fmt: skip
    manifest = load_checkpoint(checkpoint.path).manifest
    assert manifest.classes == ("road", "car")
    assert manifest.task is Task.MULTILABEL
    assert manifest.preprocess == preprocess
    assert manifest.design_size == (520, 520)
    for classes, task in ((["road"], None), (["a", "b", "c"], None), (["a"], Task.BINARY)):
        with pytest.raises(ConfigError, match="2 logit channels"):
            import_weights(path, model=LRASPP, out=tmp_path / "d", classes=classes, task=task)
    assert not (tmp_path / "d").exists()


def test_a_missing_auxiliary_head_is_made_afresh_and_told(tmp_path: Path) -> None:
    reference = _deeplab(aux=False)
    path = _save(reference.state_dict(), tmp_path)
    name = "deeplabv3_mobilenet_v3_large"
    first = import_weights(path, model=name, out=tmp_path / "a")
    _assert_equal(load_module(first), reference, (64, 64))
    assert "auxiliary head" in import_notes(first)[0]
    assert "aux_classifier.0.weight" in import_notes(first)[0]
    second = import_weights(path, model=name, out=tmp_path / "b")
    assert first.manifest.digest == second.manifest.digest  # Fresh, but the same every time.


def test_what_is_not_the_models_is_left_out_and_told(tmp_path: Path) -> None:
    reference = _lraspp()
    state = {f"model.{k}": v for k, v in reference.state_dict().items()}
    path = _save({"state_dict": state | {"criterion.weight": torch.ones(4)}}, tmp_path)
    checkpoint = import_weights(path, model=LRASPP, out=tmp_path / "c")
    assert import_notes(checkpoint) == ["Left out: what is not the model's (criterion.weight)."]
    _assert_equal(load_module(checkpoint), reference, (64, 64))


def _without(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if "backbone.3." not in k}


def _with_more(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {f"extra.{i}": torch.zeros(2) for i in range(9)}


def _reshaped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {"backbone.0.0.weight": torch.zeros(16, 4, 3, 3)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without, ["missing: backbone.3.block.0.0.weight", "more"]),
        (_with_more, ["9 unexpected: extra.0, extra.1", "and 5 more"]),
        (
            _reshaped,
            ["1 of another shape: backbone.0.0.weight (found 16x4x3x3, wanted 16x3x3x3)"],
        ),
    ],
)
def test_a_mismatch_names_the_keys(tmp_path: Path, change: Any, said: list[str]) -> None:
    path = _save(change(dict(_lraspp().state_dict())), tmp_path)
    with pytest.raises(CheckpointError, match=f"does not fit {LRASPP}") as caught:
        import_weights(path, model=LRASPP, out=tmp_path / "c")
    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("make", "model", "hint"),
    [
        (lambda: smp.Unet("resnet18", encoder_weights=None), "fcn_resnet18", "segmentation_models"),
        (_deeplab, "unet_resnet18", "torchvision's segmentation nets"),
        (lambda: segmentation.fcn_resnet50(weights_backbone=None).backbone, "unet", "keys such as"),
    ],
)
def test_keys_of_another_library_give_a_hint(
    tmp_path: Path, make: Any, model: str, hint: str
) -> None:
    path = _save(make().state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        import_weights(path, model=model, out=tmp_path / "c")
    assert hint in caught.value.hint


def test_whole_numbers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    """As in a quantized model, whose scales are kept elsewhere."""
    state = _lraspp().state_dict()
    state["classifier.cbr.0.weight"] = state["classifier.cbr.0.weight"].to(torch.int8)
    path = _save(state, tmp_path)
    with pytest.raises(CheckpointError, match=r"kinds of numbers.*classifier\.cbr\.0\.weight"):
        import_weights(path, model=LRASPP, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_existing_folder_is_kept_without_force(tmp_path: Path) -> None:
    path = _save(_lraspp().state_dict(), tmp_path)
    first = import_weights(path, model=LRASPP, out=tmp_path / "c")
    with pytest.raises(ConfigError, match="exists") as caught:
        import_weights(path, model=LRASPP, out=tmp_path / "c", note="again")
    assert "--force" in caught.value.hint
    assert load_checkpoint(first.path) == first
    again = import_weights(path, model=LRASPP, out=tmp_path / "c", note="again", force=True)
    assert load_checkpoint(tmp_path / "c").manifest.note == "again" == again.manifest.note
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="will not be replaced"):
        import_weights(path, model=LRASPP, out=tmp_path / "mine", force=True)


def test_an_unknown_model_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="lrasp_mobilenet"):
        import_weights(tmp_path / "lost.pth", model="lrasp_mobilenet", out=tmp_path / "c")
    with pytest.raises(CheckpointError, match="no weights at"):
        import_weights(tmp_path / "lost.pth", model="unet", out=tmp_path / "c")


def test_a_checkpoint_folder_keeps_what_it_knows(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = tiny_checkpoint.manifest.model
    found = import_weights(tiny_checkpoint.path, model=model, out=tmp_path / "copy").manifest
    assert found.classes == tiny_checkpoint.manifest.classes
    assert found.preprocess == tiny_checkpoint.manifest.preprocess
