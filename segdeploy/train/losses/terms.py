"""The notation of a recipe's loss: names with optional weights and options, joined by `+`.

cross_entropy+dice
0.5*focal(gamma=3)+lovasz
tversky(alpha=0.3, beta=0.7)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from segdeploy.core.errors import ConfigError

_TERM = re.compile(r"(?:(?P<weight>[^*()]+)\*)?(?P<name>[a-z]\w*)(?:\((?P<options>[^()]*)\))?")


@dataclass(frozen=True)
class Term:
    """One loss of a sum."""

    name: str
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)


def parse_terms(text: str) -> list[Term]:
    """Return the losses of a sum, in order; names and options are not looked up.

    Raises:
        ConfigError: If it cannot be read; it says at which part.
    """
    return [_parse_term(part, text) for part in "".join(text.split()).split("+")]


def _parse_term(part: str, text: str) -> Term:
    found = _TERM.fullmatch(part)
    if found is None:
        raise _unreadable(part, text)
    options: dict[str, float] = {}
    for item in (found["options"] or "").split(",") if found["options"] else []:
        name, _, value = item.partition("=")
        if name in options:
            raise _unreadable(item, text)
        options[name] = _parse_number(value, item, text)
    weight = _parse_number(found["weight"], part, text) if found["weight"] else 1.0
    if weight <= 0:
        raise ConfigError(f"The loss '{text}' has a weight that is not positive: {weight:g}.")
    return Term(found["name"], weight, options)


def _parse_number(value: str, part: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _unreadable(part, text)
    return number


def _unreadable(part: str, text: str) -> ConfigError:
    return ConfigError(
        f"The loss '{text}' cannot be read at '{part}'.",
        hint="Write names with optional weights and options: 0.5*focal(gamma=3)+dice.",
    )
