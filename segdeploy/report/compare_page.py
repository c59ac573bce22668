"""The page of `compare`: the budget's answer, then each group with plots, figures and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from segdeploy.report.budget import Choice
from segdeploy.report.collect import Row
from segdeploy.report.compared import Comparison
from segdeploy.report.comparison import Group, contract_of
from segdeploy.report.page import listed, wrap_page
from segdeploy.report.table import number, share, signed
from segdeploy.report.worth_section import render_plots, render_sentences

FIGURES = ("p50 ms", "mIoU", "Δ points", "flips", "MiB", "peak MiB")
_HEADINGS = ("target", "takes and gives", *FIGURES)


def render_comparison(found: Comparison, made: str) -> str:
    """Return the whole page; `made` says by what and when."""
    measured = sum(group.conditions is not None for group in found.groups)
    parts = [
        _header(found),
        _budget(found.choice) if found.choice is not None else "",
        listed(found.notes) if found.notes else "",
        *(
            _group(found, group, f"Group {n}" if measured > 1 else "Measured alike")
            for n, group in enumerate(found.groups, start=1)
        ),
        f"<h2>Notes</h2>{listed(found.remarks)}" if found.remarks else "",
        f'<h2>Problems</h2><div class="card problems">{listed(found.problems)}</div>'
        if found.problems
        else "",
    ]
    return wrap_page(f"{found.name} · compare", "".join(parts), made)


def figures(row: Row) -> tuple[str, ...]:
    """Return one text per name of `FIGURES`."""
    return (
        number(row.cost.p50_ms, 2),
        number(row.quality.mean_iou, 4),
        signed(row.quality.delta_points),
        share(row.closeness.flip_rate),
        number(row.size_mib, 1),
        number(row.cost.peak_memory_mib, 0),
    )


def _header(found: Comparison) -> str:
    models = dict.fromkeys(row.manifest.model for row in found.rows)
    data = dict.fromkeys(row.quality.data for row in found.rows if row.quality.data)
    count = f"{len(found.worth)} artifact{'s' * (len(found.worth) != 1)}"
    chips = "".join(f"<li>{escape(fact)}</li>" for fact in (*models, *data, count))
    return f'<h1>{escape(found.name)}</h1><ul class="chips">{chips}</ul>'


def _budget(choice: Choice) -> str:
    badge = f'<span class="badge passed">{escape(choice.name)}</span> ' if choice.name else ""
    if not choice.name:
        badge = '<span class="badge failed">none</span> '
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{escape('; '.join(miss.reason for miss in misses))}</td></tr>"
        for name, misses in choice.misses.items()
    )
    table = (
        '<div class="scroll"><table class="says"><thead><tr><th scope="col">target</th>'
        f'<th scope="col">what it misses</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )
    said = f"<p>{badge}{escape(choice.reason)}</p>"
    return f"<h2>Budget</h2><p>{escape(choice.budget.words)}</p>{said}{table if lines else ''}"


def _group(found: Comparison, group: Group, title: str) -> str:
    if group.conditions is None:
        title, chips = "Not measured", ""
    else:
        facts = "".join(f"<li>{escape(word)}</li>" for word in group.conditions.words)
        chips = f'<ul class="chips">{facts}</ul>'
    worth = [found.worth[row.name] for row in group.rows if row.name in found.worth]
    plots = render_plots(group.rows, found.worth)
    sentences = render_sentences(worth) if worth else ""
    return f"<h2>{title}</h2>{chips}<p></p>{plots}{_table(group.rows)}<p></p>{sentences}"


def _table(rows: Sequence[Row]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _HEADINGS)
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{escape(contract_of(row.manifest))}</td>'
        f"{''.join(f'<td>{escape(value)}</td>' for value in figures(row))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )
