"""The recipe of a training run: one frozen record, read from TOML, overridden by flags.

The resolved record is written into the checkpoint as `train.toml`, so that a run can be repeated
from its own folder. Order of settings: default < TOML file < flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import check_companion, load_checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Sizes are (H, W) in pixels.

    `batch_size` is over all processes. `lr` is the peak of a poly schedule with linear warm-up,
    both counted in iterations. `val_every` is in epochs; the last epoch is always validated.
    `class_weights` "sqrt_median" weights class c by sqrt(median frequency / frequency of c).
    `norm_momentum` replaces the models' batch-norm momentum: MobileNetV3's 0.01 needs about 500
    iterations to settle, too many for a short run. `ema_decay` 0 keeps no averaged weights.
    `deterministic` None means: on CPU yes, on GPU no. `freeze` "encoder" keeps the weights and the
    norm statistics of the model's encoder as they are. `se_weight` weights the loss of a presence
    head ("se"), where the model has one.
    """

    model: str
    data: str
    out: str
    epochs: int = 50
    batch_size: int = 8
    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    jitter: float = 0.3
    hue: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    poly_power: float = 0.9
    loss: str | None = None
    class_weights: Literal["none", "sqrt_median"] = "none"
    aux_weight: float = 0.5
    se_weight: float = 0.2
    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    freeze: Literal["none", "encoder"] = "none"
    freeze_batch_norm: bool = False
    dropout: bool = True
    norm_momentum: float | None = None
    ema_decay: float = 0.0
    seed: int = 0
    val_every: int = 1
    val_limit: int | None = None
    init: str | None = None
    device: str = "auto"
    nproc: int = 1
    workers: int = 2
    timeout_s: float = 120.0
    deterministic: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name, value in self._numbers():
            _require(math.isfinite(value), f"{name} must be finite", value)
        for name in ("epochs", "batch_size", "nproc", "val_every"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        for name in ("lr", "timeout_s", "poly_power"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        for name in ("weight_decay", "warmup_steps", "workers", "aux_weight", "se_weight", "seed"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        low, high = self.scale
        _require(0 < low <= high, "scale must be (low, high) with 0 < low <= high", self.scale)
        sides = self.crop or (_LEAST_SIDE, _LEAST_SIDE)
        is_met = min(sides) >= _LEAST_SIDE and max(sides) <= _MOST_SIDE
        _require(is_met, f"crop sides must be in {_LEAST_SIDE}..{_MOST_SIDE}", self.crop)
        for name, most in (("flip", 1.0), ("jitter", 1.0), ("hue", 0.5), ("momentum", 1.0)):
            value = getattr(self, name)
            _require(0 <= value <= most, f"{name} must be in 0..{most:g}", value)
        _require(high <= _MOST_SCALE, f"scale must end at {_MOST_SCALE:g}", self.scale)
        _require(self.seed < 2**63, "seed must be below 2**63", self.seed)
        _require(self.timeout_s <= _LONGEST_S, f"timeout_s ends at {_LONGEST_S:g}", self.timeout_s)
        limit = self.val_limit
        _require(limit is None or limit >= 1, "val_limit must be at least 1", limit)
        momentum = self.norm_momentum
        _require(momentum is None or 0 < momentum <= 1, "norm_momentum must be in (0, 1]", momentum)
        _require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)", self.ema_decay)
        _require(
            self.batch_size % self.nproc == 0,
            "batch_size is over all processes and must be divisible by nproc",
            (self.batch_size, self.nproc),
        )

    def _numbers(self) -> list[tuple[str, float]]:
        """Every number of the recipe with its name, those in pairs one by one."""
        found: list[tuple[str, float]] = []
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            values = value if isinstance(value, tuple) else (value,)
            found += [(each.name, v) for v in values if isinstance(v, int | float)]
        return found


_LEAST_SIDE, _MOST_SIDE = 32, 16_384  # As of an export.
_MOST_SCALE, _LONGEST_S = 16.0, 86_400.0


def _require(is_met: bool, rule: str, found: Any) -> None:
    if not is_met:
        raise ConfigError(f"Training setting: {rule}, found {found}.")


RECIPE = "train.toml"
_FIELDS = {f.name for f in dataclasses.fields(TrainConfig)}


def load_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Return the recipe of a TOML file (optional) with flags on top; None flags do not count.

    Raises:
        ConfigError: If the file is missing or no TOML, or a key or value is wrong.
    """
    settings = _given_settings(path, overrides)
    lost = [name for name in ("model", "data", "out") if name not in settings]
    if lost:
        raise ConfigError(
            f"Training needs {', '.join(lost)}.",
            hint=f"Give {' '.join('--' + n for n in lost)}, or set it in the TOML file.",
        )
    try:
        return msgspec.convert(settings, TrainConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"Training settings are not valid: {error}.") from error


def resumed_config(path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
    """Return the recipe of the run that shall go on; only how it is executed may be changed.

    Args:
        path: A recipe that names the run folder, or None.
        overrides: Flags; None does not count.

    Raises:
        ConfigError: If there is no run, or a setting contradicts its recipe.
    """
    given = _given_settings(path, overrides)
    if "out" not in given:
        raise ConfigError("--resume needs the run folder.", hint="Give --out RUN.")
    out = given["out"]
    recipe = Path(out) / "last" / RECIPE
    if not recipe.is_file():
        raise ConfigError(f"There is nothing to resume in {out}.", hint="Start without --resume.")
    check_companion(load_checkpoint(recipe.parent), RECIPE)
    changed = load_config(recipe, given)
    check_same_recipe(changed)
    return changed


def check_same_recipe(config: TrainConfig) -> None:
    """Check that `config` is the recipe of the run in its folder, but for how it is executed.

    Raises:
        ConfigError: If a setting differs: going on would make a run that no recipe describes.
    """
    saved = load_config(Path(config.out) / "last" / RECIPE, {"out": config.out})
    for name in sorted(_FIELDS - _EXECUTION):
        before, after = getattr(saved, name), getattr(config, name)
        if before != after:
            raise ConfigError(
                f"The run in {config.out} was started with {name} = {before}, not {after}.",
                hint="A resumed run keeps its recipe; start another run, in another folder.",
            )


# What may differ when a run goes on: how it is executed, not what it computes.
_EXECUTION = {"device", "nproc", "workers", "timeout_s", "out"}


def _given_settings(path: Path | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """The settings of a TOML file with flags on top."""
    settings = _read_toml(path) if path else {}
    for key in settings:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(_FIELDS))}."
            raise ConfigError(f"{path} has an unknown setting '{key}'.", hint=hint)
    return settings | {k: v for k, v in overrides.items() if v is not None}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read {path}: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def config_toml(config: TrainConfig) -> bytes:
    """Return the resolved recipe as TOML; settings that are None are left out."""
    plain = msgspec.to_builtins(config)
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items() if value is not None]
    return ("\n".join(lines) + "\n").encode()
