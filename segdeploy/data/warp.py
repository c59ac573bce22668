"""Rotation, elastic deformation and moved grid lines as one map of coordinates, sampled once.

torchvision has the first two, but each samples the image anew, and both darken the pixels along
the border of what they fill. Here all three move the same coordinates, and outside the image stands
the fill value itself. Coordinates are (H, W, 2): x and y in pixels, where a pixel is taken from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from segdeploy.data.augment import AugmentSpec

_KNOTS, _CELLS = 3, 5


def draw_coordinates(spec: AugmentSpec, size: tuple[int, int]) -> Tensor | None:
    """Return where to take each pixel of an image (H, W) from; None where nothing is asked for."""
    if not (spec.rotate or spec.elastic or spec.grid):
        return None
    found = identity(size)
    if spec.rotate:
        angle = float(torch.empty(()).uniform_(-spec.rotate, spec.rotate))
        found = rotated(found, angle)
    if spec.elastic:
        found = found + elastic_field(spec.elastic * torch.randn(2, _KNOTS, _KNOTS), size)
    if spec.grid:
        moves = torch.empty(2, _CELLS + 1).uniform_(-spec.grid, spec.grid)
        found = found + grid_field(moves, size)
    return found


def identity(size: tuple[int, int]) -> Tensor:
    """Return the coordinates that change nothing."""
    rows, columns = torch.meshgrid(
        *(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1)


def rotated(coordinates: Tensor, degrees: float) -> Tensor:
    """Return the coordinates of the picture turned counter-clockwise about its centre."""
    height, width = coordinates.shape[:2]
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (coordinates - centre) @ torch.tensor([[cos, sin], [-sin, cos]]) + centre


def elastic_field(vectors: Tensor, size: tuple[int, int]) -> Tensor:
    """Return displacements (H, W, 2) in pixels: vectors (2, n, n), bicubic in between.

    The outermost vectors lie on the corners. Source: Ronneberger et al., "U-Net", 2015, with n = 3.
    """
    smooth = functional.interpolate(vectors[None], size, mode="bicubic", align_corners=True)
    return smooth[0].permute(1, 2, 0)


def grid_field(moves: Tensor, size: tuple[int, int]) -> Tensor:
    """Return displacements (H, W, 2) in pixels, linear between the moved lines of a regular grid.

    `moves` (2, n + 1), in cells, are those of the vertical and of the horizontal lines; the first
    and the last of each are the borders of the image.
    """
    height, width = size
    cells = moves.shape[1] - 1
    x, y = (
        functional.interpolate(line[None, None], side, mode="linear", align_corners=True)[0, 0]
        * (side / cells)
        for line, side in zip(moves, (width, height), strict=True)
    )
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


def sample(planes: Tensor, coordinates: Tensor, fill: Tensor, mode: str) -> Tensor:
    """Return planes (C, H, W) of any type taken at coordinates, in the same type.

    Args:
        planes: Image or label.
        coordinates: (H, W, 2).
        fill: (C,): what is outside.
        mode: `bilinear` or `nearest`.
    """
    height, width = planes.shape[-2:]
    grid = (2 * coordinates + 1) / torch.tensor([width, height]) - 1
    # Around the fill as zero, so that what is outside blends in as this value and no other.
    centred = (planes.float() - fill[:, None, None])[None]
    found = functional.grid_sample(centred, grid[None], mode=mode, align_corners=False)[0]
    return (found + fill[:, None, None]).round().to(planes.dtype)
