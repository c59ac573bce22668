"""Rotation, elastic deformation and moved grid lines against SciPy and slow loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, rotate

from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.data import warp
from segdeploy.data.augment import AugmentSpec
from segdeploy.data.sample import Sample
from segdeploy.data.transforms import TrainTransform

SIZE = (37, 52)


def _smooth() -> NDArray[np.uint8]:
    """A picture (3, 37, 52) without jumps, whose borders are far from the fill."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    planes = [
        np.cos(rows / 7 + phase) * np.sin(columns / 9 - phase) * 90 + 128 for phase in (0, 1, 2)
    ]
    return np.stack(planes).round().astype(np.uint8)


def _coordinates(seed: int) -> torch.Tensor:
    """Coordinates that leave the image at every side."""
    generator = torch.Generator().manual_seed(seed)
    return warp.identity(SIZE) + 6 * torch.randn(*SIZE, 2, generator=generator)


def _taken(plane: NDArray[Any], where: torch.Tensor, fill: int, order: int) -> NDArray[Any]:
    x, y = where.double().numpy().transpose(2, 0, 1)
    taken: NDArray[Any] = map_coordinates(
        plane.astype(float), [y, x], order=order, mode="grid-constant", cval=fill
    )
    return taken


@pytest.mark.parametrize("seed", [0, 1])
def test_images_are_taken_as_scipy_takes_them(seed: int) -> None:
    image, where, fill = _smooth(), _coordinates(seed), (124, 10, 250)
    found = warp.sample(torch.from_numpy(image), where, torch.tensor(fill), "bilinear")
    assert found.dtype == torch.uint8
    for plane, result, outside in zip(image, found.numpy(), fill, strict=True):
        expected = _taken(plane, where, outside, order=1)
        assert np.abs(result - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("ignored", [255, 65535])
def test_labels_are_taken_as_scipy_takes_them(ignored: int) -> None:
    label = np.random.default_rng(0).integers(0, ignored, SIZE)
    where = _coordinates(3)
    found = warp.sample(
        torch.from_numpy(label)[None], where, torch.tensor([ignored]), "nearest"
    ).numpy()[0]
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, _taken(label, where, ignored, order=0).round())
    assert (found == ignored).any()


@pytest.mark.parametrize("degrees", [-30.0, 10.0, 90.0])
def test_rotation_turns_as_scipy_turns(degrees: float) -> None:
    image = _smooth()
    where = warp.rotated(warp.identity(SIZE), degrees)
    found = warp.sample(torch.from_numpy(image), where, torch.tensor([0, 0, 0]), "bilinear")
    for plane, result in zip(image, found.numpy(), strict=True):
        expected = rotate(
            plane.astype(float), degrees, reshape=False, order=1, mode="grid-constant", cval=0
        )
        assert np.abs(result - expected).max() <= 0.51


def _cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def test_elastic_displacements_are_bicubic_between_the_vectors() -> None:
    vectors = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    field = warp.elastic_field(vectors, (9, 13)).numpy()
    for row in range(9):
        for column in range(13):
            y, x = row * 2 / 8, column * 2 / 12
            expected = np.zeros(2)
            for j in range(int(y) - 1, int(y) + 3):
                for i in range(int(x) - 1, int(x) + 3):
                    vector = vectors[:, min(max(j, 0), 2), min(max(i, 0), 2)].numpy()
                    expected += _cubic(y - j) * _cubic(x - i) * vector
            np.testing.assert_allclose(field[row, column], expected, atol=1e-5)


def test_grid_lines_move_by_parts_of_a_cell_and_linearly_between() -> None:
    moves = torch.tensor([[0.0, 0.2, -0.4, 0.1, 0.3, 0.0], [0.1, 0.0, 0.5, -0.5, 0.2, -0.2]])
    height, width = 41, 61
    field = warp.grid_field(moves, (height, width)).numpy()
    x = np.interp(np.linspace(0, 5, width), range(6), moves[0]) * width / 5
    y = np.interp(np.linspace(0, 5, height), range(6), moves[1]) * height / 5
    np.testing.assert_allclose(field[..., 0], np.tile(x, (height, 1)), atol=1e-4)
    np.testing.assert_allclose(field[..., 1], np.tile(y[:, None], (1, width)), atol=1e-4)


def _ramp() -> Sample:
    rows, columns = np.mgrid[:60, :80].astype(np.uint8)
    image = np.stack([columns * 3, rows * 3, np.full_like(rows, 200)], axis=-1)
    return Sample("ramp", image, columns)


@pytest.mark.parametrize(
    "change", [{"rotate": 25.0}, {"elastic": 4.0}, {"grid": 0.4}], ids=["rotate", "elastic", "grid"]
)
def test_a_sample_is_deformed_with_its_label(change: dict[str, float]) -> None:
    augment = AugmentSpec(crop=(60, 80), scale=(1.0, 1.0), flip=0.0, jitter=0.0, **change)  # type: ignore[arg-type]  # Floats only.
    plain = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0)
    transform = TrainTransform(augment, plain, 200)
    moved = []
    for seed in range(6):
        image, label = transform(_ramp(), seed)
        core = (label != 255) & (image[2] == 200)  # Not blended with the black outside.
        assert int(core.sum()) > 500
        # Both say the column; the label's is the nearest one.
        assert (image[0] / 3 - label)[core].abs().max() <= 0.5 + 0.4
        moved.append((label - torch.arange(80)).abs()[core].float().mean())
        again = transform(_ramp(), seed)
        assert torch.equal(again[0], image)
        assert torch.equal(again[1], label)
    assert min(moved) > 0
    assert len(set(map(float, moved))) == 6


def test_rotation_is_to_both_sides_and_within_its_limit() -> None:
    spec = AugmentSpec(crop=(60, 80), rotate=20.0)
    angles = []
    for seed in range(40):
        torch.manual_seed(seed)
        where = warp.draw_coordinates(spec, (60, 80))
        assert where is not None
        along = where[30, 79] - where[30, 0]
        angles.append(float(torch.rad2deg(torch.atan2(along[1], along[0]))))
    assert min(angles) < -10
    assert max(angles) > 10
    assert max(map(abs, angles)) <= 20.01


def test_elastic_strength_is_the_standard_deviation_in_pixels() -> None:
    spec, corners = AugmentSpec(crop=(60, 80), elastic=7.0), list[torch.Tensor]()
    for seed in range(200):
        torch.manual_seed(seed)
        where = warp.draw_coordinates(spec, (60, 80))
        assert where is not None
        corners += (where - warp.identity((60, 80)))[[0, 0, 59, 59], [0, 79, 0, 79]].flatten()
    assert float(torch.stack(corners).std()) == pytest.approx(7.0, rel=0.1)


def test_without_deformation_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert warp.draw_coordinates(AugmentSpec(crop=(60, 80)), (60, 80)) is None
    assert torch.equal(before, torch.get_rng_state())
