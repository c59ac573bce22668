"""Which payloads can be run by views and windows, and what their preprocessing then is."""

from __future__ import annotations

import dataclasses

from segdeploy.backends.sliding import SlidingWindow
from segdeploy.backends.tta import TtaSpec
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.errors import ConfigError
from segdeploy.core.preprocess import PreprocessSpec, SizeRule
from segdeploy.core.session import Session


def plan_preprocess(
    preprocess: PreprocessSpec,
    session: Session,
    io: IoContract,
    tta: TtaSpec | None,
    window: SlidingWindow | None,
) -> PreprocessSpec:
    """Return how an image is prepared: as ever, but for windows of a payload of a fixed size.

    Its own preprocessing makes one window of every image; windows are cut from the image itself.

    Raises:
        ConfigError: If the payload gives no logits, or does not take the sizes that are asked.
    """
    if tta is None and window is None:
        return preprocess
    if not io.output.has_logits:
        raise ConfigError(
            f"Views and windows are averaged, but this artifact gives {io.output} only.",
            hint="Use the checkpoint, or export it with logits as output.",
        )
    static = _static_size(session, io)
    if static is not None and window is not None and window.size == static:
        return dataclasses.replace(preprocess, size_rule=SizeRule.KEEP)
    if static is not None and (window is not None or (tta is not None and tta.scales != (1.0,))):
        side = f"{static[0]}x{static[1]}"
        raise ConfigError(
            f"This artifact takes images of {side} only.",
            hint=f"Use --sliding-window {side}, the checkpoint, or an export of dynamic size.",
        )
    return preprocess


def _static_size(session: Session, io: IoContract) -> tuple[int, int] | None:
    """Return the (H, W) that the payload is fixed to, or None."""
    shape = session.inputs[0].shape
    height, width = shape[1:3] if io.input is InputKind.IMAGE else shape[2:4]
    return None if height is None or width is None else (height, width)
