"""U2Net on data in DUTS's layout: training on seven maps, soft masks, saliency's scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdeploy.core.folder import load_checkpoint
from segdeploy.core.preprocess import preprocess_image
from segdeploy.data import open_dataset
from segdeploy.evaluate import evaluate
from segdeploy.train import TrainConfig, train
from segdeploy.zoo import load_module, main_logits

SIDE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright disc on a dark ground, whose soft mask fades out over some pixels."""
    top, rng = tmp_path_factory.mktemp("duts"), np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for folder, count in (("DUTS-TR", 4), ("DUTS-TE", 2)):
        for kind in ("Image", "Mask"):
            (top / folder / f"{folder}-{kind}").mkdir(parents=True)
        for index in range(count):
            away = np.hypot(rows - rng.integers(24, 40), columns - rng.integers(24, 40))
            soft = np.clip(255 - 32 * (away - 14), 0, 255).astype(np.uint8)
            image = np.clip(soft[..., None] // 2 + rng.integers(0, 60, (SIDE, SIDE, 3)), 0, 255)
            pictures = {"Image": image.astype(np.uint8), "Mask": soft}
            for kind, pixels in pictures.items():
                suffix = "jpg" if kind == "Image" else "png"
                file = top / folder / f"{folder}-{kind}" / f"{index}.{suffix}"
                Image.fromarray(pixels).save(file)
    return top


@pytest.mark.slow
def test_u2net_learns_and_is_scored_as_the_field_does(root: Path, tmp_path: Path) -> None:
    data = f"duts:{root}"
    config = TrainConfig(
        model="u2net_lite", data=data, out=str(tmp_path / "run"), epochs=6, batch_size=4,
        crop=(SIDE, SIDE), scale=(1.0, 1.0), workers=0, device="cpu", optimizer="adamw", lr=2e-3,
        loss="binary_cross_entropy", aux_weight=1.0, norm_momentum=0.5, val_every=6,
    )  # fmt: skip
    checkpoint = train(config)
    result = evaluate(checkpoint.path, data=data, save=False)
    module = load_module(load_checkpoint(checkpoint.path))
    dataset, errors, tables = open_dataset(data), [], np.zeros((2, 2), np.int64)
    curves = []
    for index in range(2):
        sample = dataset[index]
        spec = checkpoint.manifest.preprocess
        with torch.inference_mode():
            tensor = torch.from_numpy(preprocess_image(sample.image, spec))[None]
            chance = main_logits(module(tensor))[0, 0].double().sigmoid().numpy()
        with Image.open(root / "DUTS-TE" / "DUTS-TE-Mask" / f"{sample.name}.png") as picture:
            truth = np.asarray(picture) >= 128  # A soft mask is the object from half bright on.
        np.testing.assert_array_equal(sample.label, truth)
        errors.append(np.abs(chance - truth).mean())
        guesses = [chance >= k / 255 for k in range(255)]
        hits = np.array([(g & truth).sum() for g in guesses], float)
        found = np.array([g.sum() for g in guesses], float)
        curves.append([hits / np.maximum(found, 1), np.full(255, truth.sum())])
        curves[-1][1] = hits / curves[-1][1]
        yes = chance > 0.5
        for t in (0, 1):
            for p in (0, 1):
                tables[t, p] += ((truth == t) & (yes == p)).sum()
    precision, recall = np.mean(curves, axis=0)
    with np.errstate(invalid="ignore"):
        f = 1.3 * precision * recall / (0.3 * precision + recall)
    assert result.mae == pytest.approx(np.mean(errors), abs=1e-5)
    assert result.max_f == pytest.approx(np.nanmax(f), abs=1e-4)
    np.testing.assert_allclose(result.confusion, tables, atol=2)  # Beside 0.5 exactly.
    iou = tables[1, 1] / (tables.sum() - tables[0, 0])
    assert result.foreground_iou == pytest.approx(iou, abs=1e-3)
    assert result.foreground_dice == pytest.approx(2 * iou / (1 + iou), abs=1e-3)
    assert iou > 0.4


def test_the_loss_is_the_plain_sum_of_seven_cross_entropies() -> None:
    from torch.nn import functional

    from segdeploy.core.task import Task
    from segdeploy.train.losses.weighted import create_loss
    from segdeploy.zoo import create_model
    from segdeploy.zoo.outputs import split_outputs

    torch.manual_seed(0)
    module = create_model("u2net_lite", 1).train()
    label = torch.randint(0, 2, (2, 32, 32))
    main, others = split_outputs(module(torch.randn(2, 3, 32, 32)))
    assert len(others) == 6
    loss = create_loss("binary_cross_entropy", Task.BINARY, 255)
    totals = loss.totals(main, label) + sum(1.0 * loss.totals(z, label) for z in others)
    expected = sum(
        functional.binary_cross_entropy_with_logits(z[:, 0], label.float()) for z in (main, *others)
    )
    found = loss.value(totals, loss.normalizers(label))
    torch.testing.assert_close(found.detach().float(), torch.as_tensor(expected).detach())
