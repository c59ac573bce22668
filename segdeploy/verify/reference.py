"""What is right: the reference's session, its noise floor and its median margin.

The reference is eager fp32 PyTorch on the checkpoint, found by digest. A tolerance scales with what
the reference itself cannot decide: an absolute 1e-5 means nothing for logits of size 1e4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segdeploy.backends import open_session
from segdeploy.core.contract import OutputKind
from segdeploy.core.errors import ArtifactError, BackendUnavailableError, ConfigError
from segdeploy.core.folder import Artifact, Checkpoint, ModelFolder, find_linked
from segdeploy.core.foreign import is_foreign
from segdeploy.core.manifest import Manifest
from segdeploy.core.session import Array, Session
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.core.task import Task, decision_margin
from segdeploy.frameworks.torch import require_torch
from segdeploy.metrics import FlipCount
from segdeploy.metrics.flips import decision_names
from segdeploy.upsampling import LOW_LOGITS, Upsampler
from segdeploy.verify.cases import Batch, Case, feed

if TYPE_CHECKING:
    from torch import nn

_MAX_MARGINS = 65_536  # Margins kept of one batch; a median needs no more.


class Runner:
    """An opened folder that answers uint8 NHWC batches, whatever its input contract."""

    def __init__(
        self, folder: ModelFolder, device: str = "cpu", session: Session | None = None
    ) -> None:
        self.folder = folder
        self.session: Session = open_session(folder, device) if session is None else session

    @property
    def manifest(self) -> Manifest:
        """The folder's manifest."""
        return self.folder.manifest

    def run(self, batch: Batch) -> dict[str, Array]:
        """Return the outputs by name."""
        return self.session.run(feed(batch, self.manifest))

    def complete(self, found: dict[str, Array], batch: Batch) -> dict[str, Array]:
        """Return the outputs with logits of full resolution in place of low ones."""
        if LOW_LOGITS not in found:
            return found
        return Upsampler.of(self.manifest).complete(found, (batch.shape[1], batch.shape[2]))


def find_reference(folder: Artifact) -> ModelFolder:
    """Return the checkpoint that an artifact was made from.

    Raises:
        ArtifactError: If it is neither beside the artifact nor where the manifest says.
    """
    link = folder.manifest.reference
    found = find_linked(folder, link)
    if found is None:
        wanted = f"sha256 {link.digest[:12]}..., last seen at {link.hint}" if link else "unnamed"
        raise ArtifactError(
            f"The reference checkpoint of {folder.path} ({wanted}) is not there.",
            hint="Name it: segdeploy verify ARTIFACT --against CHECKPOINT.",
        )
    return found


def check_comparable(candidate: ModelFolder, reference: ModelFolder) -> None:
    """Check that two folders answer the same question.

    Raises:
        ConfigError: If task or classes differ, or the reference gives no logits.
    """
    own, other = candidate.manifest, reference.manifest
    if own.task is not other.task or own.classes != other.classes:
        raise ConfigError(
            f"{candidate.path} ({own.task}, {len(own.classes)} classes: {_few(own.classes)}) and "
            f"{reference.path} ({other.task}, {len(other.classes)} classes: "
            f"{_few(other.classes)}) are not the same problem.",
            hint="Give --against the checkpoint or artifact that it was made from.",
        )
    if other.io.output is not OutputKind.LOGITS:
        raise ConfigError(
            f"{reference.path} gives {other.io.output}, but a reference must give logits: "
            "margins are needed.",
            hint="Give --against the checkpoint.",
        )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def precision_of(folder: ModelFolder) -> Precision:
    """Return the precision of a folder; a checkpoint runs in fp32."""
    if folder.manifest.target is None:
        return Precision.FP32
    return ExportTarget.parse(folder.manifest.target).precision


def create_count(manifest: Manifest, tolerance: float = 0.0) -> FlipCount:
    """Return an empty count of the decisions that a model makes."""
    names = decision_names(manifest.task, manifest.classes)
    return FlipCount(manifest.task, len(names), tolerance)


def measure_noise_floor(reference: Runner, cases: Iterable[Case]) -> float:
    """Return the reference's noise floor, in logit units, > 0.

    The largest gauge-free deviation of what it answers from the same weights in eager fp64, on the
    first batch of every case: odd sizes count, since there the upsampling's coordinates round. At
    least one fp32 rounding of its largest logit. Where there are no weights to run (an artifact
    alone), NOISE_ROUNDINGS of these are taken instead.
    """
    exact = _ExactModule.of(reference)
    floor = 0.0
    for case in cases:
        batch = next(case.batches())
        try:
            logits = reference.run(batch)["logits"]
        except ArtifactError:
            continue  # The comparison decides whether this size matters.
        largest = float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))
        rounding = max(largest * 2.0**-24, float(np.finfo(np.float32).tiny))
        if exact is None:
            floor = max(floor, NOISE_ROUNDINGS * rounding)
            continue
        count = create_count(reference.manifest)
        count.update(exact.run(batch), logits)
        floor = max(floor, count.max_deviation, rounding)
    return floor


NOISE_ROUNDINGS = 32.0
"""Noise floor in roundings of the largest logit, for a reference without weights."""


@dataclass(frozen=True)
class _ExactModule:
    """The reference's weights in eager fp64, on the CPU."""

    module: nn.Module
    manifest: Manifest

    @classmethod
    def of(cls, reference: Runner) -> _ExactModule | None:
        """Return it, or None where weights or torch are missing."""
        weights: ModelFolder | None = reference.folder
        if isinstance(weights, Artifact):
            weights = find_linked(weights, weights.manifest.reference)
        if not isinstance(weights, Checkpoint) or is_foreign(weights):
            return None
        try:
            require_torch("torchvision", "safetensors")
        except BackendUnavailableError:
            return None
        from segdeploy.zoo import load_module

        return cls(load_module(weights).double(), weights.manifest)

    def run(self, batch: Batch) -> Array:
        """Return the logits, float64."""
        import torch

        from segdeploy.zoo import main_logits

        tensor = torch.from_numpy(feed(batch, self.manifest)).double()
        with torch.inference_mode():
            logits: Array = main_logits(self.module(tensor)).numpy()
        return logits


def measure_median_margin(reference: Runner, batches: Iterable[Batch]) -> float:
    """Return the median over decisions of the reference's margin, in logit units."""
    margins = []
    for batch in batches:
        logits = reference.run(batch)["logits"]
        if logits.shape[1] == 1 and reference.manifest.task is Task.MULTICLASS:
            return 0.0  # One class: no decision, no margin.
        margin = decision_margin(logits, reference.manifest.task).ravel()
        margins.append(margin[:: max(1, margin.size // _MAX_MARGINS)])
    known = np.concatenate(margins)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else 0.0
