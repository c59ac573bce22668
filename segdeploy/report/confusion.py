"""Which class is taken for which: a heat picture of shares, and the worst pairs in words."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segdeploy.report.collect import Row
from segdeploy.report.fragments import folded
from segdeploy.report.quality import Confusion
from segdeploy.report.table import number

_MOST_CLASSES, _MOST_PAIRS = 24, 12  # A cell of more classes would hold no number.
_FEW, _WIDE_CELL, _CELL = 12, 38, 27
_LETTER, _LONGEST_NAME = 6.3, 18
_LEAST_SHOWN = 0.005


def render_confusions(rows: Sequence[Row]) -> str:
    """Return the section: the first target's confusions, those of the others folded away."""
    blocks = [
        (row.name, _block(found)) for row in rows if (found := row.quality.confusion) is not None
    ]
    if not blocks:
        return ""
    said = "Each row is a labelled class, each column what was predicted, in % of the row's pixels."
    return f'<h2>Confusion</h2><p class="soft">{said}</p>{folded(blocks)}'


def _block(confusion: Confusion) -> str:
    shown = chosen_classes(confusion)
    pixels = number(float(sum(confusion.totals)), 0)
    title = f"{pixels} labelled pixels"
    if len(shown) < len(confusion.names):
        title += f"; the {len(shown)} of {len(confusion.names)} classes with most wrong pixels"
    heat = f"<figcaption><b>{escape(title)}</b></figcaption>{heat_picture(confusion, shown)}"
    return (
        f'<div class="grid2 wide"><figure class="plot matrix">{heat}</figure>'
        f"{_pairs_table(confusion)}</div>"
    )


def chosen_classes(confusion: Confusion) -> list[int]:
    """Return the classes that the picture shows: all, or those that most wrong pixels touch."""
    size = len(confusion.names)
    wrong = [
        confusion.totals[k] + sum(row[k] for row in confusion.counts) - 2 * confusion.counts[k][k]
        for k in range(size)
    ]
    return sorted(sorted(range(size), key=lambda k: (-wrong[k], k))[:_MOST_CLASSES])


def heat_picture(confusion: Confusion, shown: Sequence[int]) -> str:
    """Return an SVG of the shares; the counts are the cells' titles."""
    cell = _WIDE_CELL if len(shown) <= _FEW else _CELL
    names = [_short(confusion.names[k]) for k in shown]
    left = 12 + _LETTER * max(map(len, names))
    side, below = cell * len(shown), 14 + 0.75 * (left - 12)
    parts = [
        f'<text x="{left - 6:.1f}" y="{(i + 0.5) * cell + 3.5:.1f}" text-anchor="end">'
        f"{escape(name)}</text>"
        f'<text transform="translate({left + (i + 0.5) * cell:.1f} {side + 12}) rotate(-45)" '
        f'text-anchor="end">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    parts += [
        _cell(confusion, (truth, guess), (left + x * cell, y * cell), cell)
        for y, truth in enumerate(shown)
        for x, guess in enumerate(shown)
    ]
    width, height = left + side + 4, side + below
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{1.25 * width:.0f}px" '
        f'role="img" aria-label="confusion matrix">{"".join(parts)}</svg>'
    )


def _cell(
    confusion: Confusion, pair: tuple[int, int], place: tuple[float, float], side: int
) -> str:
    truth, guess = pair
    share = confusion.share(truth, guess)
    kind = "hit" if truth == guess else "miss"
    name, pixels = confusion.names[truth], number(float(confusion.counts[truth][guess]), 0)
    title = f"{name} → {confusion.names[guess]}: {pixels} pixels, {_percent(share)} of {name}"
    x, y = place
    text = ""
    if share >= _LEAST_SHOWN:
        strong = ' class="on"' if share > 0.6 else ""
        text = (
            f'<text{strong} x="{x + side / 2:.1f}" y="{y + side / 2 + 3.5:.1f}" '
            f'text-anchor="middle">{100 * share:.0f}</text>'
        )
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{side - 1}" height="{side - 1}"/>'
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{side - 1}" height="{side - 1}" '
        f'fill-opacity="{share:.3f}"/>{text}</g>'
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def worst_pairs(confusion: Confusion) -> list[tuple[int, int]]:
    """Return (truth, predicted) of the largest shares of a class that went wrong."""
    size = range(len(confusion.names))
    pairs = [(t, p) for t in size for p in size if t != p and confusion.counts[t][p]]
    return sorted(pairs, key=lambda pair: (-confusion.share(*pair), pair))[:_MOST_PAIRS]


def _pairs_table(confusion: Confusion) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(confusion.names[t])} → {escape(confusion.names[p])}</th>'
        f"<td>{_percent(confusion.share(t, p))} of {escape(confusion.names[t])}</td>"
        f"<td>{number(float(confusion.counts[t][p]), 0)}</td></tr>"
        for t, p in worst_pairs(confusion)
    )
    if not lines:
        return '<div class="card"><p>No pixel is wrong.</p></div>'
    titles = ("most often confused", "share", "pixels")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        f'<div class="scroll pairs"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )
