"""Which groups of nodes are quantised and how: a small TOML file, one per runtime.

A group is structural (`node_groups`), so that a policy fits every model. What a file says was found
by measuring, and its evidence stands in it; export only reads it, so it stays deterministic. The
digest covers what decides the graph, not the words about it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec

from segdeploy.core.errors import ConfigError
from segdeploy.core.files import digest_of

DEFAULT = "default"
ALL = "all"
_POLICIES = f"Give {DEFAULT}, {ALL}, the name of a backend, or a file that 'segdeploy tune' wrote."

_CONVOLUTION = ("int8", "weights", "float")
_OTHER = ("int8", "float")
CHOICES: dict[str, tuple[str, ...]] = {
    "first_convolution": _CONVOLUTION,
    "stem_depthwise": _CONVOLUTION,
    "stem_residual": _CONVOLUTION,
    "stem": _CONVOLUTION,
    "convolution": _CONVOLUTION,
    "pointwise": _CONVOLUTION,
    "depthwise": _CONVOLUTION,
    "transposed": _CONVOLUTION,
    "pooled": _CONVOLUTION,
    "classifier": _CONVOLUTION,
    "residual": _OTHER,
    "residual_relu": _OTHER,
    "concat": _OTHER,
    "max_pool": _OTHER,
    "hard_swish": ("int8", "fused", "float"),
    "activation": ("int8", "fused", "float"),
    "gate": _OTHER,
    "resize": _OTHER,
}
"""Group -> what may be chosen for it; `fused` is part of the int8 convolution before it."""
_OWN_WORDS = {"pad": "resize"}
"""An operator (in lower case) that may have a reason apart from the others of its group."""


@dataclass(frozen=True)
class Override:
    """Another choice for the nodes whose name matches a pattern (as in a shell)."""

    nodes: str
    choice: str
    reason: str = "an override of the policy"


@dataclass(frozen=True)
class Policy:
    """A choice per group, overrides by name (the last match wins), words and evidence.

    `activations` is their grid: symmetric int8 (zero point 0) or asymmetric uint8. `runtime` is the
    backend that it was read for: it decides what is counted as a border, and nothing of the graph.
    """

    name: str
    groups: dict[str, str]
    activations: Literal["symmetric", "asymmetric"] = "symmetric"
    description: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    runtime: str = field(default="", compare=False)

    @cached_property
    def digest(self) -> str:
        """Identity of what decides the graph."""
        overrides = [[each.nodes, each.choice] for each in self.overrides]
        return digest_of(
            {"groups": self.groups, "overrides": overrides, "activations": self.activations}
        )

    @property
    def identity(self) -> dict[str, str]:
        """What a manifest says of it, and a build key depends on."""
        return {"policy": self.name, "digest": self.digest}

    def reasons_for(self, groups: Mapping[str, str]) -> dict[str, str]:
        """Return the reasons that hold for other choices as well: of those that are the same."""
        return {
            words: why
            for words, why in self.reasons.items()
            if groups[g := _OWN_WORDS.get(words, words)] == self.groups[g]
        }

    def choose(self, node: str, group: str, operator: str = "") -> tuple[str, str]:
        """Return (choice, reason in words) for a node of a group; no reason may be given ("").

        Raises:
            ConfigError: If an override asks for what this group does not offer.
        """
        for each in reversed(self.overrides):
            if fnmatchcase(node, each.nodes):
                _check_choice(each.choice, group, f"The policy '{self.name}' for {node}")
                return each.choice, each.reason
        own = operator.lower()
        words = own if _OWN_WORDS.get(own) == group and own in self.reasons else group
        return self.groups[group], self.reasons.get(words, "")


def load_policy(text: str, backend: str) -> Policy:
    """Return the policy that `--int8-policy` means.

    `default` is the backend's own; `all`, or another backend's name, is a shipped one; else a file.

    Raises:
        ConfigError: If there is no such file, or it is not a policy.
    """
    if text == DEFAULT:
        return shipped_policy(backend)
    if (files("segdeploy.graph") / "policies" / f"{text}.toml").is_file():
        return replace(shipped_policy(text), runtime=backend)
    path = Path(text)
    if not text:
        raise ConfigError("--int8-policy is empty.", hint=_POLICIES)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read the int8 policy '{text}': {getattr(error, 'strerror', None) or error}.",
            hint=_POLICIES,
        ) from error
    return replace(parse_policy(content, path.stem, str(path), base=backend), runtime=backend)


def shipped_policy(name: str) -> Policy:
    """Return the policy of a backend; one without a file of its own gets the default."""
    folder, runtime = files("segdeploy.graph") / "policies", name
    file = folder / f"{name}.toml"
    if not file.is_file():
        name, file = DEFAULT, folder / f"{DEFAULT}.toml"
    policy = parse_policy(file.read_text(encoding="utf-8"), name, f"the shipped policy {name}")
    return replace(policy, runtime=runtime)


def parse_policy(content: str, name: str, what: str, base: str = DEFAULT) -> Policy:
    """Return the policy of a TOML document; what it leaves out is as in the shipped one of `base`.

    The shipped reason of a group goes with its choice: it says nothing for another one.

    Raises:
        ConfigError: If it is not TOML, or has a wrong key, group or choice.
    """
    try:
        plain = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} is not TOML: {error}.") from error
    keys = {"activations", "description", "groups", "reasons", "overrides", "evidence"}
    if unknown := sorted(set(plain) - keys):
        raise ConfigError(
            f"{what} has unknown keys: {', '.join(unknown)}.",
            hint=f"Known: {', '.join(sorted(keys))}.",
        )
    try:
        policy = msgspec.convert({**plain, "name": name, "groups": plain.get("groups", {})}, Policy)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{what}: {error}.") from error
    _check_names(policy, what)
    for group, choice in policy.groups.items():
        _check_choice(choice, group, what)
    for each in policy.overrides:
        if not any(each.choice in offered for offered in CHOICES.values()):
            raise ConfigError(f"{what}: the override of '{each.nodes}' is '{each.choice}'.")
    if set(policy.groups) == set(CHOICES) and "activations" in plain:
        return policy
    usual = shipped_policy(base)
    groups = usual.groups | _older_names(policy.groups)
    reasons = usual.reasons_for(groups)
    for words in [own for own, group in _OWN_WORDS.items() if group in policy.reasons]:
        reasons.pop(words, None)  # A file speaks for all of a group, where it says no more.
    return replace(
        policy,
        groups=groups,
        activations=plain.get("activations", usual.activations),
        reasons=reasons | policy.reasons,
    )


def _older_names(groups: dict[str, str]) -> dict[str, str]:
    """Return the choices of a file that may be older than a group: then it was part of another."""
    parts = {"stem_residual": "stem"}
    return {part: groups[whole] for part, whole in parts.items() if whole in groups} | groups


def policy_text(policy: Policy) -> str:
    """Return a policy as the TOML document that `parse_policy` reads."""
    lines = [
        f"description = {_toml(policy.description)}",
        f"activations = {_toml(policy.activations)}",
    ]
    tables = {
        "groups": policy.groups,
        "reasons": policy.reasons,
        "evidence": {k: v for k, v in policy.evidence.items() if k != "trials"},
    }
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in table.items())]
    rows = {
        "overrides": [
            {"nodes": o.nodes, "choice": o.choice, "reason": o.reason} for o in policy.overrides
        ],
        "evidence.trials": policy.evidence.get("trials", []),
    }
    for name, entries in rows.items():
        for entry in entries:
            known = {key: v for key, v in entry.items() if v is not None}
            lines += ["", f"[[{name}]]", *(f"{key} = {_toml(v)}" for key, v in known.items())]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    """Return a value in TOML, whose strings, numbers and arrays are those of JSON."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_names(policy: Policy, what: str) -> None:
    for table, known in ((policy.groups, {*CHOICES}), (policy.reasons, {*CHOICES, *_OWN_WORDS})):
        if strange := sorted(set(table) - known):
            raise ConfigError(
                f"{what} has unknown groups: {', '.join(strange)}.",
                hint=f"Known: {', '.join(CHOICES)}.",
            )


def _check_choice(choice: str, group: str, what: str) -> None:
    if choice not in CHOICES[group]:
        raise ConfigError(
            f"{what}: '{choice}' is no choice for {group}.",
            hint=f"One of {', '.join(CHOICES[group])}.",
        )
