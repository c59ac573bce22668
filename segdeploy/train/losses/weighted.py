"""What a run minimises: a weighted sum of losses, each with its own normaliser."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from segdeploy.core.errors import ConfigError
from segdeploy.core.task import Task
from segdeploy.train import LOSSES
from segdeploy.train.losses.base import Loss
from segdeploy.train.losses.per_class import PerClass
from segdeploy.train.losses.terms import Term, parse_terms

_LEAST = 1e-12


class WeightedSum:
    """A sum of losses; vectors have one entry per term."""

    def __init__(self, terms: Sequence[tuple[float, Loss]]) -> None:
        self.weights = [weight for weight, _ in terms]
        self.losses = [loss for _, loss in terms]

    def totals(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sums (T,); logits (N, K, H, W), label int (N, H, W)."""
        return torch.stack([loss.total(logits, label) for loss in self.losses])

    def normalizers(self, label: Tensor) -> Tensor:
        """Return what the sums are divided by, float64 (T,)."""
        return torch.stack([loss.normalizer(label) for loss in self.losses])

    def value(self, totals: Tensor, normalizers: Tensor) -> Tensor:
        """Return the loss of a batch; the parts of a batch add up under its normalisers.

        A normaliser of 0 says that nothing counts: no pixel is valid, or all have the weight 0.
        """
        weights = torch.tensor(self.weights, dtype=torch.float64, device=totals.device)
        counted = torch.where(normalizers > 0, totals, 0)
        return (weights * counted / normalizers.clamp(min=_LEAST)).sum()


def create_loss(
    text: str | None, task: Task, ignore: int, weights: Tensor | None = None
) -> WeightedSum:
    """Return the loss that a recipe writes as `text` (see `terms`), by default cross-entropy.

    Raises:
        ConfigError: If it cannot be read, has an unknown name or option, or is for another task.
    """
    default = "cross_entropy" if task is Task.MULTICLASS else "binary_cross_entropy"
    found: list[tuple[float, Loss]] = []
    for term in parse_terms(text or default):
        loss = LOSSES.get(term.name)
        tasks = {*loss.tasks, *([Task.MULTILABEL] if Task.BINARY in loss.tasks else [])}
        if task not in tasks:
            raise ConfigError(
                f"The loss {term.name} is for {', '.join(sorted(tasks))} tasks, but the data "
                f"are {task}.",
                hint=f"Leave it out, or set loss = '{default}'.",
            )
        _check_options(term, loss)
        if task is Task.MULTILABEL:
            each = PerClass(loss(Task.BINARY, ignore, weights, **term.options))
            found.append((term.weight, each))
        else:
            found.append((term.weight, loss(task, ignore, weights, **term.options)))
    return WeightedSum(found)


def _check_options(term: Term, loss: type[Loss]) -> None:
    parameters = inspect.signature(loss).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in term.options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(known) or 'none'}."
            raise ConfigError(f"The loss {term.name} has no option '{name}'.", hint=hint)
