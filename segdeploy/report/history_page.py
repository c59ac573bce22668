"""One figure per series of a history: the medians, their levels, and the steps in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from segdeploy.report.plots import Series, line_plot
from segdeploy.report.style import STYLE


@dataclass(frozen=True)
class HistoryFigure:
    """A series: `medians` and `levels` in ms, oldest first; `steps` is one sentence each."""

    name: str
    medians: Sequence[float]
    levels: Sequence[float]
    steps: Sequence[str]


def render_history(title: str, figures: Sequence[HistoryFigure]) -> str:
    """Return a page that loads nothing."""
    cards = "".join(_figure(figure) for figure in figures)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><div class="grid2 wide">{cards}</div></main></body></html>\n'
    )


def _figure(figure: HistoryFigure) -> str:
    plot = line_plot(
        f"{figure.name}: p50 in ms by entry",
        [
            Series("p50", list(enumerate(figure.medians)), is_faint=True),
            Series("level", list(enumerate(figure.levels))),
        ],
    )
    said = "".join(f"<li>{escape(step)}</li>" for step in figure.steps)
    return f"<div>{plot}<ul>{said or '<li>no step</li>'}</ul></div>"
