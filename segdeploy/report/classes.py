"""Scores per class: bars with their intervals, best class first, and targets side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segdeploy.report.collect import Row
from segdeploy.report.fragments import folded
from segdeploy.report.quality import ClassScore
from segdeploy.report.table import MISSING, number, signed

_ONE_COLUMN = 26  # Classes, from which on bars stand in two columns.


def render_classes(rows: Sequence[Row]) -> str:
    """Return bars of the first target (the others folded away), and a table of all targets."""
    scored = [row for row in rows if row.quality.classes]
    if not scored:
        return ""
    bars = folded([(row.name, class_bars(row.quality.classes)) for row in scored])
    if any(score.interval for row in scored for score in row.quality.classes):
        bars += '<p class="soft">Lines: 95 % intervals, bootstrap over images.</p>'
    table = f"<h3>Targets side by side</h3>{_comparison(scored)}" if len(scored) > 1 else ""
    return f"<h2>IoU per class</h2>{bars}{table}"


def class_bars(classes: Sequence[ClassScore]) -> str:
    """Return one line a class: a bar of its IoU with the interval, numbers, share of pixels."""
    ordered = sorted(classes, key=lambda score: (-score.iou, score.name))
    half = len(ordered) if len(ordered) <= _ONE_COLUMN else (len(ordered) + 1) // 2
    columns = (ordered[:half], ordered[half:])
    return f'<div class="grid2 wide">{"".join(_card(part) for part in columns if part)}</div>'


def _card(classes: Sequence[ClassScore]) -> str:
    head = "".join(f"<small>{said}</small>" for said in ("IoU", "95 %", "Dice", "pixels"))
    lines = "".join(_line(score) for score in classes)
    return (
        '<div class="card scroll"><div class="ious"><small></small><small></small>'
        f"{head}{lines}</div></div>"
    )


def _line(score: ClassScore) -> str:
    whisker, ends = "", MISSING
    if score.interval is not None:
        low, high = score.interval
        whisker = f'<u style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></u>'
        ends = f"{low:.3f}-{high:.3f}"
    share = MISSING if score.share is None else f"{number(100 * score.share, 1)} %"
    return (
        f'<span>{escape(score.name)}</span><div><i style="width:{_width(score.iou)}%"></i>{whisker}'
        f"</div><b>{score.iou:.3f}</b><em>{ends}</em>"
        f"<em>{number(score.dice, 3)}</em><em>{share}</em>"
    )


def _width(value: float) -> str:
    return f"{min(100.0, max(0.0, 100 * value)):.1f}"


def _comparison(scored: Sequence[Row]) -> str:
    """Return IoU per class and target, with the difference to the first target."""
    names = list(dict.fromkeys(name for row in scored for name in row.quality.class_iou))
    head = "".join(f'<th scope="col">{escape(row.name)}</th>' for row in scored)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(_cell(name, row, scored[0]) for row in scored)}</tr>"
        for name in names
    )
    return (
        '<div class="scroll"><table class="heat"><thead><tr><th scope="col">'
        f"class</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(name: str, row: Row, first: Row) -> str:
    value, base = row.quality.class_iou.get(name), first.quality.class_iou.get(name)
    if value is None:
        return f"<td>{MISSING}</td>"
    is_comparable = row is not first and base is not None and row.quality.data == first.quality.data
    delta = f" <small>{signed(100 * (value - (base or 0.0)))}</small>" if is_comparable else ""
    return f'<td>{value:.3f}{delta}<i style="width:{_width(value)}%"></i></td>'
