"""The call that is measured, and in words what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.manifest import Manifest
from segdeploy.core.preprocess import SizeRule
from segdeploy.core.session import Array, Session
from segdeploy.upsampling import LOW_LOGITS, Upsampler


def bind_call(session: Session, manifest: Manifest, batch: Array) -> Callable[[], object]:
    """Return the call that is measured: up to the outputs, of low-resolution logits up to labels.

    Else these would look faster for work that is only left to the caller.
    """
    if manifest.io.output is not OutputKind.LOW_LOGITS:
        return session.bind(batch)
    upsampler = Upsampler.of(manifest)
    upsampler.prepare()
    sides = batch.shape[1:3] if manifest.io.input is InputKind.IMAGE else batch.shape[2:4]
    size = (int(sides[0]), int(sides[1]))
    session.bind(batch)  # Compiles where `run` would do so at its first call, with other threads.
    return lambda: upsampler.labels(session.run(batch)[LOW_LOGITS], size)


def bind_end_to_end(session: Session, manifest: Manifest, images: Array) -> Callable[[], object]:
    """Return the call from a uint8 image (1, H, W, 3), at the size given, to its label map."""
    from segdeploy.backends.predictor import Predictor

    spec = dataclasses.replace(manifest.preprocess, size_rule=SizeRule.KEEP)
    predictor = Predictor(session, spec, manifest.task, manifest.io, manifest)
    return predictor.bind(images[0])


def describe_call(manifest: Manifest, *, end_to_end: bool) -> str:
    """Return what a measured call does: low-resolution logits are brought to labels in any case."""
    if end_to_end:
        return "image to label map"
    given = manifest.io.output
    is_low = given is OutputKind.LOW_LOGITS
    return f"{manifest.io.input} to {f'labels by way of {given}' if is_low else given}"
