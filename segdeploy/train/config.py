"""The recipe of a training run: one frozen record, read from TOML, overridden by flags.

The resolved record is written into the checkpoint as `train.toml`, so that a run can be repeated
from its own folder. Order of settings: default < TOML file < flag.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import check_companion, load_checkpoint
from segdeploy.data.augment import AugmentSpec
from segdeploy.train.losses.terms import parse_terms


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Sizes are (H, W) in pixels.

    `batch_size` is over all processes; each works its share through in `accumulate` parts, for less
    memory. `loss` is one or a sum: "0.5*focal(gamma=3)+dice". `lr` is the peak of `schedule`, and
    `warmup_steps` the iterations up to it; "step" multiplies it by `step_factor` at the start of
    each of `step_epochs` (from 0). `head_lr_factor` multiplies it for all but the encoder.
    `decay_norms` false spares vectors (norms and biases) the weight decay. `clip_norm` is the
    largest 2-norm of all gradients, 0 for any. `patience` ends a run after so many validations
    without a better mIoU, 0 never. `val_every` is in epochs; the last epoch is always validated.
    `class_weights` "sqrt_median" weights class c by sqrt(median frequency / frequency of c).
    `norm_momentum` replaces the models' batch-norm momentum: MobileNetV3's 0.01 needs about 500
    iterations to settle, too many for a short run. `ema_decay` 0 keeps no averaged weights.
    `deterministic` None means: on CPU yes, on GPU no. `freeze` "encoder" keeps the weights and the
    norm statistics of the model's encoder as they are. `se_weight` weights the loss of a presence
    head ("se"), where the model has one. `drop_block` is the share of an encoder's deepest features
    that DropBlock drops at the end of the training, rising from none. `cache_mib` is the memory
    for decoded training images in MiB, over all processes; what does not fit is read each time.
    `group_by_aspect` k makes batches of images of similar shape, in 2k + 2 groups of width / height
    (k = 0: portrait and landscape). `save_minutes` is how old RUN/last may become before it is
    written in the middle of an epoch, 0 for any age. `on_nan` says what a loss or gradient that is
    not finite does: "stop" the run, or "skip" the iteration (`train.guard`). `sync_batch_norm`
    takes norm statistics over all processes, `compile` runs the model through torch.compile.
    `log_every` is in iterations, `val_pictures` the number of
    validation samples drawn after each validation; `train.record` says what is written where.

    `augment` "recipe" takes the augmentation from the settings here (`data.augment.AugmentSpec`
    says what they mean), "preset" from the table of data sets (`data.presets`; only `crop` may
    differ), "none" does no more than crop.
    """

    model: str
    data: str
    out: str
    epochs: int = 50
    batch_size: int = 8
    augment: Literal["recipe", "preset", "none"] = "recipe"
    crop: tuple[int, int] | None = None
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
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 2e-3
    head_lr_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-2
    decay_norms: bool = True
    clip_norm: float = 0.0
    accumulate: int = 1
    schedule: Literal["poly", "cosine", "step", "one_cycle"] = "poly"
    warmup_steps: int = 200
    poly_power: float = 0.9
    step_epochs: tuple[int, ...] = ()
    step_factor: float = 0.1
    loss: str | None = None
    class_weights: Literal["none", "sqrt_median"] = "none"
    aux_weight: float = 0.5
    se_weight: float = 0.2
    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    freeze: Literal["none", "encoder"] = "none"
    freeze_batch_norm: bool = False
    sync_batch_norm: bool = False
    dropout: bool = True
    drop_block: float = 0.0
    group_by_aspect: int | None = None
    norm_momentum: float | None = None
    ema_decay: float = 0.0
    seed: int = 0
    val_every: int = 1
    val_limit: int | None = None
    patience: int = 0
    init: str | None = None
    device: str = "auto"
    nproc: int = 1
    workers: int = 2
    cache_mib: int = 0
    log_every: int = 20
    val_pictures: int = 4
    tensorboard: bool = False
    compile: bool = False
    on_nan: Literal["stop", "skip"] = "stop"
    save_minutes: float = 10.0
    timeout_s: float = 120.0
    deterministic: bool | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name, value in self._numbers():
            limit = _MOST_INT if isinstance(value, int) else _MOST_FLOAT
            _require(abs(value) <= limit, f"{name} must be finite, up to {limit:g}", value)
        for each in dataclasses.fields(self):
            text = getattr(self, each.name)
            is_met = not isinstance(text, str) or text.encode(errors="ignore").decode() == text
            _require(is_met, f"{each.name} must be UTF-8 text", ascii(text))
        for name in ("epochs", "batch_size", "accumulate", "nproc", "val_every", "log_every"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        for name in ("lr", "head_lr_factor", "timeout_s", "poly_power", "step_factor"):
            _require(getattr(self, name) > 0, f"{name} must be positive", getattr(self, name))
        for name in _NOT_NEGATIVE:
            _require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        low, high = self.scale
        _require(0 < low <= high, "scale must be (low, high) with 0 < low <= high", self.scale)
        sides = self.crop or (_LEAST_SIDE, _LEAST_SIDE)
        is_met = min(sides) >= _LEAST_SIDE and max(sides) <= _MOST_SIDE
        _require(is_met, f"crop sides must be in {_LEAST_SIDE}..{_MOST_SIDE}", self.crop)
        for name, most in _MOST.items():
            chosen = getattr(self, name)
            _require(0 <= chosen <= most, f"{name} must be in 0..{most:g}", chosen)
        self._check_augmentation()
        _require(high <= _MOST_SCALE, f"scale must end at {_MOST_SCALE:g}", self.scale)
        k = self.group_by_aspect or 0
        _require(0 <= k <= _MOST_STEPS, f"group_by_aspect must be in 0..{_MOST_STEPS}", k)
        _require(self.timeout_s <= _LONGEST_S, f"timeout_s ends at {_LONGEST_S:g}", self.timeout_s)
        num_val = self.val_limit
        _require(num_val is None or num_val >= 1, "val_limit must be at least 1", num_val)
        momentum = self.norm_momentum
        _require(momentum is None or 0 < momentum <= 1, "norm_momentum must be in (0, 1]", momentum)
        _require(0 <= self.ema_decay < 1, "ema_decay must be in [0, 1)", self.ema_decay)
        _require(
            self.batch_size % self.nproc == 0,
            "batch_size is over all processes and must be divisible by nproc",
            (self.batch_size, self.nproc),
        )
        share = self.batch_size // self.nproc
        is_met = share % self.accumulate == 0
        _require(is_met, f"accumulate must divide a process's {share} images", self.accumulate)
        is_met = self.schedule != "step" or min(self.step_epochs, default=0) > 0
        _require(is_met, "schedule 'step' needs step_epochs, each above 0", self.step_epochs)
        if self.loss is not None:
            parse_terms(self.loss)

    def _check_augmentation(self) -> None:
        for name in ("shorter_side", "longer_side", "stretch"):
            value = getattr(self, name)
            sides = value if isinstance(value, tuple) else (value,)
            is_met = value is None or all(_LEAST_SIDE <= s <= _MOST_SIDE for s in sides)
            _require(is_met, f"{name} must be in {_LEAST_SIDE}..{_MOST_SIDE}", value)
        chosen = {name: getattr(self, name) for name in AUGMENT_SETTINGS}
        AugmentSpec((_LEAST_SIDE, _LEAST_SIDE), **chosen)  # At most one base size.
        plain = {f.name: f.default for f in dataclasses.fields(self)}
        changed = [name for name, value in chosen.items() if value != plain[name]]
        if self.augment != "recipe" and changed:
            raise ConfigError(
                f"Training setting: augment = {self.augment} decides {', '.join(changed)} itself.",
                hint="Leave these out, or set augment = recipe.",
            )

    def _numbers(self) -> list[tuple[str, float]]:
        """Every number of the recipe with its name, those in pairs one by one."""
        found: list[tuple[str, float]] = []
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            values = value if isinstance(value, tuple) else (value,)
            found += [(each.name, v) for v in values if isinstance(v, int | float)]
        return found


AUGMENT_SETTINGS = tuple(f.name for f in dataclasses.fields(AugmentSpec) if f.name != "crop")
_NOT_NEGATIVE = (
    "weight_decay", "clip_norm", "warmup_steps", "workers", "aux_weight", "se_weight", "seed",
    "patience", "cache_mib", "val_pictures", "save_minutes",
)  # fmt: skip
_LEAST_SIDE, _MOST_SIDE = 32, 16_384  # As of an export.
# Grid lines that move by more than half a cell could cross.
_MOST = {
    "drop_block": 0.9, "head_lr_factor": 1e6, "step_factor": 1.0,
    "flip": 1.0, "jitter": 1.0, "hue": 0.5, "momentum": 1.0, "rotate": 180.0, "elastic": 1000.0,
    "grid": 0.5, "vertical_flip": 1.0, "blur": 1.0, "photometric": 10,
}  # fmt: skip
_MOST_SCALE, _LONGEST_S = 16.0, 86_400.0
_MOST_INT, _MOST_FLOAT = 2**63 - 1, 1e30  # Such a rate times head_lr_factor is still an fp32.
_MOST_STEPS = 16  # More groups than that have no batch each.


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
_EXECUTION = {
    "device", "nproc", "workers", "cache_mib", "timeout_s", "out", "log_every", "val_pictures",
    "tensorboard", "save_minutes", "on_nan",
}  # fmt: skip


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
