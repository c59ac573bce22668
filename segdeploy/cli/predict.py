"""`segdeploy predict`: masks and overlays of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.parsing import (
    OVERLAP_HELP,
    THRESHOLD_HELP,
    TTA_HELP,
    WINDOW_HELP,
    parse_views,
    parse_window,
)


@app.command()
def predict(
    artifact: Annotated[Path, typer.Argument(help="Checkpoint or artifact folder.")],
    images: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks and overlays.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    tta: Annotated[str | None, typer.Option(help=TTA_HELP)] = None,
    sliding_window: Annotated[str | None, typer.Option(help=WINDOW_HELP)] = None,
    overlap: Annotated[float | None, typer.Option(help=OVERLAP_HELP)] = None,
    threshold: Annotated[float | None, typer.Option(help=THRESHOLD_HELP)] = None,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Write NAME.png (class indices) and NAME_overlay.png for each image.

    A multilabel model writes NAME/00_CLASS.png and so on (0 and 255) instead of NAME.png.
    """
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.predict import predict_files

    with progress_bars() as advance:
        outcome = predict_files(
            artifact, images, out, device=device, tta=parse_views(tta),
            sliding_window=parse_window(sliding_window, overlap), threshold=threshold,
            progress=lambda done, total: advance("predict", done, total),
        )  # fmt: skip

    def render() -> None:
        for file in outcome.files:
            largest = sorted(file.classes.items(), key=lambda item: -item[1])[:3]
            shares = ", ".join(f"{name} {100 * share:.3g} %" for name, share in largest)
            print(f"{file.mask}  {file.height}x{file.width}  {shares}")  # noqa: T201

    emit([file.to_dict() for file in outcome.files], as_json, render)
    for error in outcome.failures[:-1]:
        say(f"error: {error}")
    if outcome.failures:
        raise outcome.failures[-1]
