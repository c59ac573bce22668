"""What training does to a sample, as one frozen record; it needs no framework."""

from __future__ import annotations

from dataclasses import dataclass

from segdeploy.core.errors import ConfigError


@dataclass(frozen=True)
class AugmentSpec:
    """The random changes of a sample, in this order; every strength of 0 leaves a step out.

    An image first gets a base size: its own, a length in pixels of its shorter or its longer side,
    or, stretched, a size (H, W). That is multiplied by a factor drawn from `scale`. Then come a
    rotation by up to `rotate` degrees to either side; an elastic deformation by `elastic` pixels
    (standard deviation); moved grid lines, by up to the part `grid` of a cell; a crop (H, W); flips
    with the probabilities `flip` (left to right) and `vertical_flip`; colour changes of strength
    `jitter` (brightness, contrast, saturation) and `hue`; a Gaussian blur with the probability
    `blur`; and `photometric` operations drawn from a list, as in RandAugment (Cubuk et al., 2020),
    without its geometric ones.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.3
    hue: float = 0.0
    shorter_side: int | None = None
    longer_side: int | None = None
    stretch: tuple[int, int] | None = None
    rotate: float = 0.0
    elastic: float = 0.0
    grid: float = 0.0
    vertical_flip: float = 0.0
    blur: float = 0.0
    photometric: int = 0

    def __post_init__(self) -> None:
        given = {
            name: getattr(self, name)
            for name in ("shorter_side", "longer_side", "stretch")
            if getattr(self, name) is not None
        }
        if len(given) > 1:
            raise ConfigError(
                f"Augmentation: {' and '.join(given)} are both given, and each sets the base size.",
                hint="Give one of them.",
            )

    def base_size(self, original: tuple[int, int]) -> tuple[float, float]:
        """Return the (H, W), not rounded, that an image (h, w) has at the factor 1."""
        if self.stretch is not None:
            return self.stretch
        ratio = 1.0
        if self.shorter_side is not None:
            ratio = self.shorter_side / min(original)
        if self.longer_side is not None:
            ratio = self.longer_side / max(original)
        return original[0] * ratio, original[1] * ratio
