"""Low-resolution logits where more than a label map is asked: the full interpolation serves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdeploy.backends.contract_module import ContractModule, find_low_logits, find_upsampling
from segdeploy.backends.predictor import open_predictor
from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.bench import BenchPlan, measure_interleaved
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import DataError, ManifestError, UnsupportedTargetError
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task
from segdeploy.data import open_dataset
from segdeploy.export import export
from segdeploy.upsampling import Upsampler, upsample_logits

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pair(
    undecided_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Artifact]:
    """TorchScript, any size: one with low-resolution logits, one with logits."""
    run = tmp_path_factory.mktemp("pair")
    made = [
        export(undecided_checkpoint.path, ["torchscript-fp32"], run, io=IoContract(output=kind))[0]
        for kind in (OutputKind.LOW_LOGITS, OutputKind.LOGITS)
    ]
    return load_artifact(made[0].path), load_artifact(made[1].path)


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "views",
    [
        {},
        {"tta": TtaSpec((1.0, 1.25), flip=True)},
        {"window": SlidingWindow((64, 64))},
    ],
)
def test_views_and_windows_see_the_same_logits(
    pair: tuple[Artifact, Artifact], views: dict[str, object]
) -> None:
    image = _image(97, 130)
    found = []
    for artifact in pair:
        with open_predictor(artifact.path, **views) as predictor:  # type: ignore[arg-type]
            found.append(predictor.predict(image, with_confidence=True))
    assert found[0].confidence is not None
    assert found[1].confidence is not None
    np.testing.assert_allclose(found[0].confidence, found[1].confidence, atol=2e-5)
    assert (found[0].labels != found[1].labels).mean() < 1e-4


def test_bench_measures_up_to_the_labels(pair: tuple[Artifact, Artifact]) -> None:
    for is_end_to_end, told in ((False, "tensor to labels by way of low-logits"), (True, "image")):
        plan = BenchPlan(SIZE, threads=1, seconds=0.05, warmup_s=0.05, end_to_end=is_end_to_end)
        outcome = measure_interleaved([pair[0].path, pair[1].path], plan, save=False)
        assert not outcome.failures
        assert str(outcome.results[0].environment["measured"]).startswith(told)
        shape = (1, *SIZE, 3) if is_end_to_end else (1, 3, *SIZE)
        assert outcome.results[0].input_shape == shape


def test_bind_reads_the_image_at_each_call(pair: tuple[Artifact, Artifact]) -> None:
    image = open_dataset("synthetic:64x96:16", "val")[0].image.copy()
    with open_predictor(pair[0].path) as predictor:
        call = predictor.bind(image)
        first = call().copy()
        image[:] = image[::-1].copy()
        np.testing.assert_array_equal(call(), predictor.predict(image).labels)
        assert not np.array_equal(first, call())
        with pytest.raises(DataError, match="uint8 RGB"):
            predictor.bind(image[..., :2])


def test_a_manifest_that_does_not_say_how_is_refused(pair: tuple[Artifact, Artifact]) -> None:
    with pytest.raises(ManifestError, match="does not say how"):
        Upsampler.of(pair[0].manifest.replace(upsampling=None))


class Ends(torch.nn.Module):
    """A network that ends as its test says."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending
        self.head = torch.nn.Conv2d(3, 4, 1, stride=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.head(x)
        resize = torch.nn.functional.interpolate
        if self.ending == "factor":
            return resize(low, scale_factor=4, mode="bilinear")
        if self.ending == "odd factor":
            return resize(low, scale_factor=4.1, mode="bilinear")[..., : x.shape[2], : x.shape[3]]
        if self.ending == "antialias":
            return resize(low, x.shape[2:], mode="bilinear", antialias=True)
        if self.ending == "nearest":
            return resize(low, x.shape[2:])
        if self.ending.startswith(("added", "in place")):
            full = resize(low, x.shape[2:], mode="bilinear")
            return full + 1 if self.ending == "added" else _write(self.ending, low, full)
        return resize(low, (128, 128), mode="bilinear")


def _write(ending: str, low: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Return the same object with other values."""
    if ending.endswith("relu"):
        return torch.nn.functional.relu(full, inplace=True)
    changed = low if ending.endswith("before") else full
    changed[:, :1] += 1  # Of a part: by way of a view.
    return full


@pytest.mark.parametrize(
    ("ending", "why"),
    [
        ("odd factor", "do not come out of"),
        ("antialias", "antialias"),
        ("nearest", "nearest"),
        ("added", "do not come out of"),
        ("other size", "not to the size of the image"),
        ("in place", "changed in place"),
        ("in place, relu", "changed in place"),
        ("in place, before", "changed in place"),
    ],
)
def test_modules_that_end_otherwise_are_refused(ending: str, why: str) -> None:
    with torch.no_grad(), pytest.raises(UnsupportedTargetError, match=why):
        find_low_logits(Ends(ending), torch.zeros(1, 3, 64, 64))
    with pytest.raises(UnsupportedTargetError, match=why):
        find_upsampling(Ends(ending), (64, 64))


def test_a_factor_that_divides_evenly_is_an_upsampling_to_a_size() -> None:
    batch = torch.rand(1, 3, 64, 64)
    module = Ends("factor").eval()
    found = find_low_logits(module, batch)
    full = upsample_logits(found.logits.detach().numpy(), (64, 64), align_corners=False)
    np.testing.assert_allclose(full, module(batch).detach().numpy(), atol=1e-5)


def test_inference_mode_counts_no_writes() -> None:
    with torch.inference_mode():
        found = find_low_logits(Ends("factor"), torch.zeros(1, 3, 64, 64))
    assert found.logits.shape == (1, 4, 16, 16)


def test_low_precision_ends_in_float32() -> None:
    io = IoContract(InputKind.TENSOR, OutputKind.LOW_LOGITS)
    module = ContractModule(
        Ends("factor").to(torch.bfloat16), io, Task.MULTICLASS, 4, PreprocessSpec()
    )
    found = module(torch.rand(1, 3, 64, 64).to(torch.bfloat16))
    assert isinstance(found, torch.Tensor)
    assert found.dtype is torch.float32
    assert found.shape == (1, 4, 16, 16)
