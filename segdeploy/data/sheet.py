"""A picture of a checked split: some samples under their labels, then the worst findings."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdeploy.core.errors import DataError
from segdeploy.core.files import write_bytes, write_errors
from segdeploy.core.preprocess import resize_labels
from segdeploy.core.task import IGNORE, Task, ignore_value
from segdeploy.data import Dataset, open_dataset
from segdeploy.data.findings import DataCheck, Finding, SplitFacts
from segdeploy.data.pictures import Picture, hatch, overlay, with_legend
from segdeploy.data.sample import Sample

_COLUMNS, _SAMPLES, _FINDINGS = 3, 6, 6
_WIDTH, _HEIGHT, _TITLE, _GAP, _FONT_SIZE = 320, 240, 24, 8, 14
_LETTERS = 40  # In a line of a cell and of its title, at this font size.
_PAPER, _INK, _RED, _AMBER = (255, 255, 255), (34, 40, 49), (200, 20, 50), (170, 100, 0)


@dataclass(frozen=True)
class _Cell:
    title: str
    picture: Image.Image
    ink: tuple[int, int, int] = _INK


def write_sheets(check: DataCheck, out: Path) -> list[Path]:
    """Write SPLIT.png for each checked split into a folder, and return the files.

    Raises:
        ArtifactError: If they cannot be written.
    """
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    files = []
    for facts in check.splits:
        findings = [f for f in (*check.problems, *check.warnings) if f.split == facts.split]
        picture = draw_sheet(open_dataset(check.data, facts.split), facts, findings)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="PNG")
        files.append(out / f"{facts.split}.png")
        write_bytes(files[-1], buffer.getvalue())
    return files


def draw_sheet(dataset: Dataset, facts: SplitFacts, findings: Sequence[Finding]) -> Picture:
    """Return samples spread over the split and the first findings about samples, with a legend."""
    worst = [f for f in findings if f.index is not None][:_FINDINGS]
    broken = {f.index for f in findings}
    sound = [i for i in range(len(dataset)) if i not in broken]
    picked = sorted({int(i) for i in np.linspace(0, len(sound) - 1, _SAMPLES)}) if sound else []
    num_classes = len(facts.classes)
    cells = []
    for index in (sound[i] for i in picked):
        sample = dataset[index]
        cells.append(_Cell(sample.name, _shrunken(sample, num_classes)))
    cells += [_show_finding(dataset, finding, num_classes) for finding in worst]
    names = {k: n for k, n in enumerate(facts.classes) if facts.class_pixels[k]}
    colors = IGNORE if dataset.task is Task.MULTILABEL else num_classes  # As `overlay` has them.
    return with_legend(_arrange(cells), names, colors)


def _shrunken(sample: Sample, num_classes: int) -> Image.Image:
    height, width = sample.image.shape[:2]
    factor = min(_WIDTH / width, _HEIGHT / height)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    image = np.asarray(Image.fromarray(sample.image).resize((size[1], size[0])))
    label = resize_labels(sample.label, size)
    drawn = overlay(image, label, num_classes)
    ignored = label == ignore_value(num_classes)
    return Image.fromarray(hatch(drawn, ignored if label.ndim == 2 else ignored.all(axis=0)))


def _show_finding(dataset: Dataset, finding: Finding, num_classes: int) -> _Cell:
    """Show the sample with what was said as its title; where it cannot be read, only the words."""
    ink = _RED if finding.is_problem else _AMBER
    try:
        sample = dataset[finding.index or 0]
    except DataError:
        panel = Image.new("RGB", (_WIDTH, _HEIGHT), (245, 240, 240))
        text = "\n".join(textwrap.wrap(finding.message, _LETTERS)[:11])
        font = ImageFont.load_default(_FONT_SIZE)
        ImageDraw.Draw(panel).text((_GAP, _GAP), text, fill=ink, font=font)
        return _Cell(f"{finding.kind}: sample {finding.index}", panel, ink)
    words = finding.message.removesuffix(".").replace("has the same pixels as", "=")
    return _Cell(f"{finding.kind}: {words}", _shrunken(sample, num_classes), ink)


def _arrange(cells: Sequence[_Cell]) -> Image.Image:
    width, height = _WIDTH + _GAP, _HEIGHT + _TITLE
    rows = max(1, -(-len(cells) // _COLUMNS))
    sheet = Image.new("RGB", (_COLUMNS * width + _GAP, rows * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for index, cell in enumerate(cells):
        x, y = _GAP + index % _COLUMNS * width, index // _COLUMNS * height
        title = cell.title if len(cell.title) <= _LETTERS else f"{cell.title[: _LETTERS - 1]}…"
        draw.text((x, y + _TITLE / 2), title, fill=cell.ink, font=font, anchor="lm")
        sheet.paste(cell.picture, (x, y + _TITLE))
    return sheet
