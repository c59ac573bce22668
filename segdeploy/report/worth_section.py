"""The section "Worth it?" of a page: latency against quality as a plot, and one sentence each.

A plot shows one group of `report.comparison`: dots whose latencies may not be compared never stand
on one axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from segdeploy.report.advice import Worth
from segdeploy.report.collect import Row
from segdeploy.report.comparison import find_worth, group_rows, measured_of
from segdeploy.report.scatter import Dot, scatter_plot
from segdeploy.report.worth import Measured, Standing, known, latency_of

_BADGES = {
    Standing.FRONT: "passed",
    Standing.DOMINATED: "waiting",
    Standing.FAILED: "failed",
    Standing.UNVERIFIED: "waiting",
    Standing.UNMEASURED: "",
}
_FRONT, _REFERENCE = 0, 5  # Colours.


def render_worth(rows: Sequence[Row]) -> str:
    """Return the section of a run: the plot is of its largest group."""
    worth = find_worth(rows)
    if not worth:
        return ""
    groups = [group for group in group_rows(rows) if group.conditions is not None]
    largest = max(groups, key=lambda group: len(group.rows))
    plots = render_plots(largest.rows, {one.name: one for one in worth})
    return f"<h2>Worth it?</h2>{plots}{render_sentences(worth)}"


def render_plots(rows: Sequence[Row], worth: Mapping[str, Worth]) -> str:
    """Return the plots of one group side by side, or nothing."""
    plots = [plot(rows, worth) for plot in (plot_quality, plot_size)]
    return f'<div class="grid2 wide">{"".join(plots)}</div><p></p>' if any(plots) else ""


def render_sentences(worth: Sequence[Worth]) -> str:
    """Return the table of standings and sentences."""
    lines = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th><td><span class="badge '
        f'{_BADGES[one.standing]}">{one.standing}</span></td><td>{escape(one.advice)}</td></tr>'
        for one in worth
    )
    return (
        '<div class="scroll"><table class="says"><thead><tr>'
        '<th scope="col">target</th><th scope="col">standing</th><th scope="col">when to use it'
        f"</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def plot_quality(rows: Sequence[Row], worth: Mapping[str, Worth]) -> str:
    """Return latency against mIoU, else flips, of one group; empty for less than two dots."""
    found = [(row, measured_of(row)) for row in rows]
    found = [(r, m) for r, m in found if known(m.latency_ms) is not None and not m.failures]
    has_iou = bool(found) and all(
        m.mean_iou is not None and m.scored_on == found[0][1].scored_on for _, m in found
    )
    dots = []
    for row, one in found:
        quality = one.mean_iou if has_iou else 0.0 if row.is_reference else one.flip_rate
        if quality is not None:
            shown = quality if has_iou else 100 * quality
            dots.append(_dot(row, one, shown, worth.get(one.name)))
    if len(dots) < 2:
        return ""
    dots = _shortened(dots)
    axis = "mIoU" if has_iou else "flips in %"
    said = f"ms to the right, {axis} up, area is MiB"
    return scatter_plot(f"Latency and {axis}", said, dots, is_high_better=has_iou)


def plot_size(rows: Sequence[Row], worth: Mapping[str, Worth]) -> str:
    """Return latency against size of one group; its area is memory."""
    found = [(row, measured_of(row)) for row in rows]
    dots = [
        _dot(row, one, one.size_mib, worth.get(one.name), weight=one.memory_mib or 0.0)
        for row, one in found
        if known(one.latency_ms) is not None and not one.failures
    ]
    if len(dots) < 2:
        return ""
    dots = _shortened(dots)
    said = "ms to the right, MiB up, area is peak memory"
    return scatter_plot("Latency and size", said, dots, is_high_better=False)


def _dot(
    row: Row, one: Measured, quality: float, worth: Worth | None, weight: float | None = None
) -> Dot:
    return Dot(
        name=one.name,
        x=latency_of(one),
        y=quality,
        weight=one.size_mib if weight is None else weight,
        color=_REFERENCE if row.is_reference else _FRONT,
        is_faint=worth is not None and worth.standing is not Standing.FRONT,
        hint=_hint(one, worth),
        is_contender=worth is not None and worth.standing is Standing.FRONT,
    )


def _shortened(dots: Sequence[Dot]) -> list[Dot]:
    """Leave out of the names what all artifacts have in common: the run, `+360x480`."""
    names = [dot.name for dot in dots if dot.color != _REFERENCE and not dot.is_faint]
    runs = {dot.name.rpartition("/")[0] for dot in dots}
    options = {name.partition("+")[2] for name in names}
    start = len(runs.pop()) + 1 if len(runs) == 1 and all("/" in name for name in names) else 0
    end = f"+{options.pop()}" if len(options) == 1 else ""
    return [replace(dot, name=dot.name[start:].removesuffix(end)) for dot in dots]


def _hint(one: Measured, worth: Worth | None) -> str:
    """Return all that is known of a dot, for whoever hovers over it."""
    lines = [one.name, f"{latency_of(one):.3g} ms"]
    if one.latency_interval is not None:
        lines[-1] += f" ({one.latency_interval[0]:.3g}-{one.latency_interval[1]:.3g})"
    lines += [f"mIoU {one.mean_iou:.4f}"] if one.mean_iou is not None else []
    lines += [f"{100 * one.flip_rate:.2f} % flips"] if one.flip_rate is not None else []
    lines += [f"{one.size_mib:.1f} MiB"]
    lines += [f"{one.memory_mib:.0f} MiB of memory"] if one.memory_mib is not None else []
    lines += [str(worth.standing)] if worth is not None else []
    return "\n".join(lines)
