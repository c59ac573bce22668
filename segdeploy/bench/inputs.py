"""What is fed to an artifact under the clock: seeded scenes, at a size that suits all of them.

Never zeros and never noise alone: some kernels are faster on zeros (and denormals slower), and
label maps of noise cost more in everything that follows.
"""

from __future__ import annotations

import numpy as np

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import ModelFolder
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import SizeRule, normalize_image
from segdeploy.core.session import Array
from segdeploy.data.synthetic import draw_scene

DEFAULT_SIZE = (512, 512)
_SMALLEST_SCENE = 32
_MOST_PIXELS = 2**28  # 3 GiB of float32 RGB; 128 full-HD images.


def make_batch(
    manifest: Manifest,
    size: tuple[int, int],
    batch_size: int,
    seed: int = 0,
    *,
    as_images: bool = False,
) -> Array:
    """Return a batch of the manifest's contract: float32 NCHW, or uint8 NHWC; `size` is (H, W).

    `as_images`: uint8 whatever the contract.
    """
    height, width = size
    shape = (max(height, _SMALLEST_SCENE), max(width, _SMALLEST_SCENE))
    items: list[Array] = []
    for index in range(batch_size):
        image, _ = draw_scene(np.random.default_rng((seed, index)), shape)
        cut = np.ascontiguousarray(image[:height, :width])
        is_image = as_images or manifest.io.input is InputKind.IMAGE
        items.append(cut if is_image else normalize_image(cut, manifest.preprocess))
    return np.ascontiguousarray(np.stack(items))


def choose_sizes(
    folders: list[ModelFolder], asked: tuple[int, int] | None, batch_size: int
) -> list[tuple[int, int]]:
    """Return the input size (H, W) of each folder; the same for all unless two are static.

    Order: what was asked, an artifact's static size, the size the model was designed for, 512x512.

    Raises:
        ConfigError: If an artifact is static and takes neither the asked size nor the batch, or the
            batch is too large to be made.
    """
    static = [_static_size(folder, batch_size) for folder in folders]
    for folder, size in zip(folders, static, strict=True):
        if asked and size and size != asked:
            raise ConfigError(
                f"{folder.path} takes {size[0]}x{size[1]} only, asked was {asked[0]}x{asked[1]}.",
                hint="Leave out --size, or export it with --size dynamic.",
            )
    known = {size for size in static if size}
    common = asked or (known.pop() if len(known) == 1 else None)
    sizes = [
        common or size or _design_size(folder.manifest)
        for folder, size in zip(folders, static, strict=True)
    ]
    height, width = max(sizes, key=lambda size: size[0] * size[1])
    if height * width * batch_size > _MOST_PIXELS:
        raise ConfigError(
            f"A batch of {batch_size} x {height}x{width} is more than {_MOST_PIXELS} pixels.",
            hint="Give a smaller --size or --batch-size.",
        )
    return sizes


def _static_size(folder: ModelFolder, batch_size: int) -> tuple[int, int] | None:
    """Return the fixed (H, W) of the input tensor, or None where it is dynamic."""
    if not folder.manifest.inputs or len(folder.manifest.inputs[0].shape) != 4:
        return None
    shape = folder.manifest.inputs[0].shape
    if shape[0] not in {None, batch_size}:
        raise ConfigError(
            f"{folder.path} takes batches of {shape[0]} only, asked was {batch_size}.",
            hint=f"Give --batch-size {shape[0]}.",
        )
    sides = shape[1:3] if folder.manifest.io.input is InputKind.IMAGE else shape[2:4]
    height, width = sides
    return (height, width) if height and width else None


def _design_size(manifest: Manifest) -> tuple[int, int]:
    if manifest.design_size:
        return manifest.design_size
    fixed = manifest.preprocess.size_rule in {SizeRule.FIXED, SizeRule.LETTERBOX}
    return (manifest.preprocess.size if fixed else None) or DEFAULT_SIZE
