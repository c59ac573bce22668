"""Models of one's own: `package.module:callable`, with nothing else to write.

`callable(num_classes)` returns any `nn.Module` that takes (N, 3, H, W); a module class whose
constructor needs no more than the class count will do. The current folder is importable, as with
`python -m`. The module may return logits (N, K, h, w), a dict with `out` (and `aux...`, `se`), an
object with `logits`, or a sequence that begins with the logits, auxiliary ones behind. Logits
smaller than the input are resized to it (bilinear, align_corners=False): many nets leave that to
the caller.

A forward hook does this, not a wrapper, so that the keys of the state dict stay the module's own.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.core.errors import ConfigError, SegDeployError
from segdeploy.zoo.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def callable_spec(name: str) -> ModelSpec:
    """Return the spec of `package.module:callable`; imports nothing before a model is built."""
    return _spec(name, partial(_import_and_build, name))


def plugin_spec(name: str, found: ModelSpec | Callable[..., Any]) -> ModelSpec:
    """Return what a plug-in gives under `name` as a spec: it may be a plain callable."""
    return found if isinstance(found, ModelSpec) else _spec(name, partial(_build, name, found))


def _spec(name: str, build: Callable[..., nn.Module]) -> ModelSpec:
    return ModelSpec(name, build, output_stride=None, source="", input_size=(512, 512))


def _import_and_build(name: str, *arguments: int) -> nn.Module:
    return _build(name, _import(name), *arguments)


def _import(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ours is for results only.
            found = attrgetter(attribute)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # A script may end itself, over its own arguments.
        raise ConfigError(
            f"The model {name} cannot be imported: {_where(error)}",
            hint="Write package.module:callable; the current folder is importable.",
        ) from error
    if not callable(found):
        raise ConfigError(f"The model {name} is a {type(found).__name__}, not a callable.")
    return found  # type: ignore[no-any-return]


def _build(name: str, make: Callable[..., Any], *arguments: int) -> nn.Module:
    """Call `make(num_classes[, in_channels])` and check what it gives."""
    from torch import nn

    try:
        inspect.signature(make).bind(*arguments)
    except TypeError as error:
        raise ConfigError(
            f"The model {name} cannot be called with ({_spoken(arguments)}): {error}.",
            hint="Give a function of num_classes that builds it with its other arguments.",
        ) from error
    except ValueError:
        pass  # A callable of C that tells no signature.
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = make(*arguments)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"The model {name} cannot be built: {_where(error)}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name} returned a {type(module).__name__}, not a torch.nn.Module.")
    _check_state(name, module)
    module.register_forward_hook(partial(_full_size, arguments[0]))
    return module


def _check_state(name: str, module: nn.Module) -> None:
    """Refuse, before any work, a state that no safetensors file can keep."""
    import torch

    others = [k for k, v in module.state_dict().items() if not isinstance(v, torch.Tensor)]
    if others:
        raise ConfigError(
            f"The state dict of {name} holds more than tensors: {', '.join(others)}.",
            hint="Checkpoints keep tensors only: let get_extra_state return one, or leave it out.",
        )


def check_runs(module: nn.Module, name: str, size: tuple[int, int]) -> None:
    """Run a model of one's own once in each mode, on zeros (2, 3, H, W); its state is kept.

    Raises:
        ConfigError: If its code fails, gives no logits of the asked class count, or none that can
            be trained.
    """
    import torch

    modes = {part: part.training for part in module.modules()}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    images = torch.zeros(2, 3, *size, device=device)
    try:
        with torch.no_grad():
            module.eval()(images)
        kept = {key: value.clone() for key, value in module.state_dict().items()}
        with torch.random.fork_rng(devices=[]):
            logits = module.train()(images)["out"]
        module.load_state_dict(kept)
    except SegDeployError:
        raise
    except Exception as error:
        raise ConfigError(
            f"The model {name} cannot run a batch of shape (2, 3, {size[0]}, {size[1]}): "
            f"{_where(error)}"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if not logits.requires_grad:
        raise ConfigError(f"The logits of {name} depend on no parameter that can be trained.")


def _spoken(arguments: tuple[int, ...]) -> str:
    names = ("num_classes", "in_channels")
    return ", ".join(f"{n}={v}" for n, v in zip(names, arguments, strict=False))


def _where(error: BaseException) -> str:
    """The error of foreign code and the line it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def _full_size(
    num_classes: int, _module: nn.Module, inputs: tuple[Any, ...], output: Any
) -> dict[str, Tensor]:
    """The hook: {"out": ..., "aux1": ...}, all of the input's size, and "se" as it is."""
    from segdeploy.zoo.outputs import PRESENCE, presence_logits, split_outputs

    size = inputs[0].shape[-2:]
    main, others = split_outputs(output)
    for logits in (main, *others):
        _check_logits(logits, num_classes)
    maps = {"out": _resized(main, size)}
    maps |= {f"aux{i}": _resized(logits, size) for i, logits in enumerate(others, 1)}
    presence = presence_logits(output)
    if presence is None:
        return maps
    if tuple(presence.shape[1:]) != (num_classes,):
        raise ConfigError(
            f"Presence logits ({PRESENCE}) are (N, {num_classes}), not {tuple(presence.shape)}."
        )
    return maps | {PRESENCE: presence}


def _check_logits(found: Any, num_classes: int) -> None:
    import torch

    is_tensor = isinstance(found, torch.Tensor)
    if not is_tensor or found.dim() != 4 or found.shape[1] != num_classes:
        what = f"a tensor {tuple(found.shape)}" if is_tensor else f"a {type(found).__name__}"
        raise ConfigError(
            f"A model for {num_classes} classes gives logits (N, {num_classes}, H, W); this one "
            f"gives {what}.",
            hint="Return them as a tensor, as out of a dict, or as the first of a sequence. Of "
            "auxiliary heads they are called aux..., or follow in the sequence.",
        )


def _resized(logits: Tensor, size: torch.Size) -> Tensor:
    from torch.nn import functional as F  # noqa: N812  torch's own convention

    if _is_surely(logits.shape[-2:], size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _is_surely(found: torch.Size, size: torch.Size) -> bool:
    """Whether both are equal for every input, not only for the one that a graph is made with."""
    import torch

    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return all(statically_known_true(a == b) for a, b in zip(found, size, strict=True))
    return found == size
