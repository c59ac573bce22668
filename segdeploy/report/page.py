"""The page: plain HTML with its style, plots and pictures inside. Every text is escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from segdeploy.report.classes import render_classes
from segdeploy.report.collect import Row, RunSummary
from segdeploy.report.confusion import render_confusions
from segdeploy.report.fragments import folded, shots
from segdeploy.report.pictures import Picture
from segdeploy.report.quality import SCORES
from segdeploy.report.style import STYLE
from segdeploy.report.table import HEADINGS, MISSING, cells, conditions, data_sets, notes, number
from segdeploy.report.training import render_training
from segdeploy.report.worth_section import render_worth

_NUM_COLORS = 6
_BADGES = {"passed": "passed", "failed": "failed", "not verified": "waiting"}


def render_page(summary: RunSummary, made: str) -> str:
    """Return the whole page; `made` says by what and when."""
    parts = [
        _header(summary), _tiles(summary.rows), _problems(summary), _targets(summary),
        render_worth(summary.rows), _charts(summary.rows), _scores(summary.rows),
        render_classes(summary.rows),
        render_confusions(summary.rows), _pictures(summary.rows),
        render_training(summary.training), _environment(summary.rows),
    ]  # fmt: skip
    return wrap_page(summary.name, "".join(parts), made)


def wrap_page(title: str, body: str, made: str) -> str:
    """Return a page that loads nothing, with its style inside."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)} · segdeploy</title><style>{STYLE}</style></head><body><main>\n"
        f"{body}<footer>{escape(made)}</footer>\n</main></body></html>\n"
    )


def _header(summary: RunSummary) -> str:
    manifest = summary.rows[0].manifest
    facts = [manifest.model, str(manifest.task), _count(len(manifest.classes), "class")]
    facts += data_sets(summary) + conditions(summary)
    chips = "".join(f"<li>{escape(fact)}</li>" for fact in dict.fromkeys(facts))
    return f'<h1>{escape(summary.name)}</h1><ul class="chips">{chips}</ul>'


def _count(count: int, word: str) -> str:
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{count} {word if count == 1 else plural}"


def _tiles(rows: Sequence[Row]) -> str:
    """Return the few numbers that answer "is it good, small, fast?"."""
    artifacts = [row for row in rows if not row.is_reference]
    tiles: list[tuple[str, str]] = []
    verified = [row for row in artifacts if row.closeness.verdict != "not verified"]
    if verified:
        passed = sum(row.closeness.verdict == "passed" for row in verified)
        tiles.append((f"{passed} / {len(verified)}", "artifacts passed verify"))
    good = [row for row in artifacts if row.closeness.verdict != "failed"] or artifacts
    if fastest := _least(good, lambda row: row.cost.p50_ms):
        ratio = fastest.cost.ratio
        shown = f"{number(ratio, 2)}x eager" if ratio is not None else "p50"
        tiles.append((f"{number(fastest.cost.p50_ms, 1)} ms", f"fastest: {fastest.name}, {shown}"))
    if smallest := _least(good, lambda row: row.size_mib):
        tiles.append((f"{number(smallest.size_mib, 1)} MiB", f"smallest: {smallest.name}"))
    if best := _least(rows, lambda row: _negative(row.quality.mean_iou)):
        tiles.append((number(best.quality.mean_iou, 3), f"best mIoU: {best.name}"))
    if sharp := _least(rows, lambda row: _negative(row.quality.scores.get("foreground_dice"))):
        dice = sharp.quality.scores["foreground_dice"]
        tiles.append((number(dice, 3), f"best foreground Dice: {sharp.name}"))
    return f'<div class="tiles">{"".join(_tile(*tile) for tile in tiles)}</div>' if tiles else ""


def _tile(value: str, text: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>'


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _least(rows: Sequence[Row], key: Callable[[Row], float | None]) -> Row | None:
    known = [(value, index) for index, row in enumerate(rows) if (value := key(row)) is not None]
    return rows[min(known)[1]] if known else None


def _problems(summary: RunSummary) -> str:
    if not summary.problems:
        return ""
    return f'<h2>Problems</h2><div class="card problems">{listed(summary.problems)}</div>'


def listed(texts: Sequence[str]) -> str:
    """Return texts as a list of points."""
    return f'<ul class="list">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def _targets(summary: RunSummary) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in HEADINGS)
    body = "".join(_table_row(row) for row in summary.rows)
    broken = [
        f"{row.name} broke {failure}" for row in summary.rows for failure in row.closeness.failures
    ]
    said = [*broken, *notes(summary)]
    return (
        "<h2>Targets</h2>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{listed(said) if said else ''}"
    )


def _table_row(row: Row) -> str:
    name, verdict, *rest = (escape(cell) for cell in cells(row))
    badge = f'<span class="badge {_BADGES.get(row.closeness.verdict, "")}">{verdict}</span>'
    values = "".join(f"<td>{value}</td>" for value in rest)
    return f'<tr><th scope="row">{name}</th><td>{badge}</td>{values}</tr>'


def _charts(rows: Sequence[Row]) -> str:
    if len(rows) < 2:
        return ""
    charts = [
        _bars("Latency, p50 ms", rows, [row.cost.p50_ms for row in rows], 1),
        _bars("Size, MiB", rows, [row.size_mib for row in rows], 1),
        _bars("Peak memory, MiB", rows, [row.cost.peak_memory_mib for row in rows], 0),
        _bars("Mean IoU", rows, [row.quality.mean_iou for row in rows], 3, full=1.0),
    ]
    return f'<h2>Side by side</h2><div class="grid2 wide">{"".join(charts)}</div>'


def _bars(
    title: str,
    rows: Sequence[Row],
    values: Sequence[float | None],
    digits: int,
    full: float | None = None,
) -> str:
    """Return horizontal bars; `full` is the value of the whole width, else the largest one is."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    whole = full or max(known) or 1.0
    lines = []
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        width = 0.0 if value is None else min(100.0, max(0.0, 100 * value / whole))
        lines.append(
            f"<span>{escape(row.name)}</span>"
            f'<div><i class="b{index % _NUM_COLORS}" style="width:{width:.1f}%"></i></div>'
            f"<b>{number(value, digits)}</b>"
        )
    return (
        f'<div class="card"><h3>{escape(title)}</h3><div class="bars">{"".join(lines)}</div></div>'
    )


def _pictures(rows: Sequence[Row]) -> str:
    """Return the first target's pictures, and those of the others folded away."""
    shown = [row for row in rows if row.pictures]
    if not shown:
        return ""
    return f"<h2>Samples</h2>{folded([(row.name, _kinds(row.pictures)) for row in shown])}"


def _kinds(pictures: Sequence[Picture]) -> str:
    """Return the worst images, the best ones, then what says nothing of its score."""
    titles = {"worst": "Worst images", "best": "Best images", "": "Others"}
    parts = {kind: [p for p in pictures if p.kind == kind] for kind in titles}
    is_titled = bool(parts["worst"] or parts["best"])
    return "".join(
        f"{f'<h3>{titles[kind]}</h3>' * is_titled}{shots(part)}"
        for kind, part in parts.items()
        if part
    )


def _scores(rows: Sequence[Row]) -> str:
    """Return the scores of each target, of those kinds that any target has."""
    scored = [row for row in rows if row.quality.scores]
    kinds = [name for name in SCORES if any(name in row.quality.scores for row in scored)]
    if not scored:
        return ""
    head = "".join(f'<th scope="col">{escape(SCORES[name])}</th>' for name in kinds)
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{_with_interval(row)}</td>'
        f"{''.join(f'<td>{number(row.quality.scores.get(name), 4)}</td>' for name in kinds)}</tr>"
        for row in scored
    )
    return (
        '<h2>Scores</h2><div class="scroll"><table class="heat wrap"><thead><tr>'
        f'<th scope="col">target</th><th scope="col">mIoU (95 % interval)</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _with_interval(row: Row) -> str:
    found, ends = row.quality, row.quality.interval
    shown = f" <small>{number(ends[0], 4)}-{number(ends[1], 4)}</small>" if ends else ""
    return f"{number(found.mean_iou, 4)}{shown}"


def _environment(rows: Sequence[Row]) -> str:
    """Return each distinct environment once; what differs by target is left to bench.json."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.cost.environment:
            found.setdefault(_environment_table(row.cost.environment), []).append(row.name)
    if not found:
        return ""
    blocks = "".join(
        f"<details><summary>{escape(', '.join(names))}</summary>{table}</details>"
        for table, names in found.items()
    )
    return f'<h2>Measured on</h2><div class="card">{blocks}</div>'


_PER_TARGET = {
    "artifact", "block_sizes", "variation", "num_preemptions", "runtime", "warnings", "beside",
}  # fmt: skip


def _environment_table(environment: dict[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(_plain(value))}</td></tr>"
        for name, value in environment.items()
        if name not in _PER_TARGET
    )
    return f"<table><tbody>{lines}</tbody></table>"


def _plain(value: Any) -> str:
    """Return a value in words that need no quotes or brackets."""
    if value is None or value in ([], {}):
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
