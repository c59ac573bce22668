"""A page about a calibration: ranges, what is clipped, and how many images are enough.

The images are counted once more, so that the page can be had of any int8 artifact made from ONNX.
Ranges are those of the grid that the artifact has; what they clip and keep is of all its images.

How many images are enough is asked of the exports themselves: for 1, 2, 4, ... images those are
chosen that `--calibration-images` would take, and the scales by the code that `export` runs.
Enough is the least of these numbers from which on nearly all scales are close to the artifact's.
It takes about as many runs of the graph as there are images, once more; memory stays flat, since
only scales are kept. The page holds its pictures (SVG), so that it is one file; JSON beside has
numbers.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import Artifact, find_linked
from segdeploy.core.lock import run_lock
from segdeploy.core.results import read_result
from segdeploy.export.calibration import CALIBRATION, CalibrationSet, Progress
from segdeploy.graph.clipping import LEVELS, MOST_DB, Histogram, clipped_share, signal_to_noise

REPORT, NUMBERS = "calibration.html", "calibration_report.json"
CLOSE, NEARLY_ALL = 0.05, 0.95  # A scale within 5 % of the final one; 95 % of the tensors.
SYMMETRIC = "symmetric"


@dataclass(frozen=True)
class TensorRow:
    """One tensor: what was seen, the grid that the artifact has, and what that does to it.

    `lowest` and `highest` are of the values and 0. The grid goes from `low` to `high` in steps of
    `scale`; clipped is what lies more than half a step outside. `snr_db` is what the grid keeps of
    all values, `snr_read_db` of them as readers tell them apart, where those below `floor` are all
    the same. `answer_share` is the share of the clip by squared error, where the network's answer
    chose it.
    """

    tensor: str
    abs_max: float
    lowest: float
    highest: float
    low: float
    high: float
    scale: float
    zero_point: int
    clipped_share: float
    snr_db: float
    floor: float | None = None
    snr_read_db: float | None = None
    answer_share: float | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """`close` is by number of images the share of tensors whose scale is close to the artifact's.

    `enough` is None where no smaller number was; `num_left` is how many images the data set has
    beyond these.
    """

    rows: list[TensorRow]
    close: dict[int, float]
    enough: int | None
    num_left: int = 0
    grid: str = SYMMETRIC
    method: str = "mse"
    chosen_by: str = ""

    @property
    def sentence(self) -> str:
        """Say how many images are enough, as far as smaller numbers tell."""
        used = max(self.close)
        if self.enough is not None:
            verb, pronoun = ("is", "it gives") if self.enough == 1 else ("are", "they give")
            told = f"{_images(self.enough)} {verb} enough: "
            if self.enough == sorted(self.close)[-2]:
                told += f"{pronoun} {_percent(self.close[self.enough])}"
            else:
                told += f"so many, and more, give at least {_percent(NEARLY_ALL)}"
            return f"{told} of the scales of {_images(used)} within {_percent(CLOSE)}."
        more = used + min(used, self.num_left)
        cure = f"To see: --calibration-images {more}." if more > used else "There are no more."
        if len(self.close) == 1:
            return f"Of {_images(used)} nothing can be said: there is no smaller number. {cure}"
        half = sorted(self.close)[-2]
        return (
            f"{_images(half)} give{'s' * (half == 1)} {_percent(self.close[half])} of the scales "
            f"of {_images(used)} within {_percent(CLOSE)}: images beyond {used} may still matter. "
            f"{cure}"
        )


def has_ranges(artifact: Artifact) -> bool:
    """Return whether its int8 ranges are ours; some converters choose their own."""
    return bool((read_result(artifact.path / CALIBRATION) or {}).get("ranges"))


def report_calibration(
    artifact: Artifact, calibration: CalibrationSet, progress: Progress | None = None
) -> CalibrationReport:
    """Write `calibration.html` and its numbers into an int8 artifact's folder.

    `calibration` is what the artifact was made with.

    Raises:
        ConfigError: If the artifact has no ranges of ours.
        ArtifactError: If its parent is not there any more.
    """
    from segdeploy.export.graphs import calibration_batches, choose_ranges, prepare_int8
    from segdeploy.graph.calibrate import count_values
    from segdeploy.graph.fold_normalization import fold_normalization
    from segdeploy.graph.proto import load_graph

    ranges = (read_result(artifact.path / CALIBRATION) or {}).get("ranges")
    if not ranges:
        raise ConfigError(
            f"{artifact.path.name} has no ranges to report: its converter calibrates by itself."
        )
    parent = find_linked(artifact, artifact.manifest.parent)
    if parent is None:
        raise ArtifactError(f"The fp32 graph that {artifact.path} was made from is not found.")
    plain, spec = load_graph(parent.payload), artifact.manifest.preprocess
    if artifact.manifest.io.input is InputKind.IMAGE:
        plain, spec = fold_normalization(plain, spec)
    is_symmetric = grid_of(artifact) == SYMMETRIC
    final = {
        n: (told if is_symmetric else told["asymmetric"])["scale"] for n, told in ranges.items()
    }

    prepared = prepare_int8(plain, calibration, spec, progress)
    batches = calibration_batches(calibration, spec, progress, "report")
    counted = count_values(prepared, list(ranges), batches)
    rows = [describe_tensor(n, counted[n], told, is_symmetric) for n, told in ranges.items()]
    del counted
    *smaller, used = halvings(len(calibration.indices))
    close = {}
    for number in smaller:
        images = calibration.smaller(number)
        prepared = prepare_int8(plain, images, spec, progress)
        what = f"report, {number} images"
        found = choose_ranges(prepared, list(ranges), images, spec, progress, what)
        scales = {n: r.scale if is_symmetric else r.bytes.scale for n, r in found.items()}
        close[number] = share_close(scales, final)
    close[used] = 1.0
    report = CalibrationReport(
        rows,
        close,
        find_enough(close),
        len(calibration.dataset) - used,
        SYMMETRIC if is_symmetric else "asymmetric",
        str(calibration.options.method),
        calibration.chosen_by,
    )
    with run_lock(artifact.path.parent):
        write_json(artifact.path / NUMBERS, {**asdict(report), "sentence": report.sentence})
        write_bytes(artifact.path / REPORT, render_report(report, artifact.path.name).encode())
    return report


def grid_of(artifact: Artifact) -> str:
    """Return whether its activations are `symmetric` int8 or `asymmetric` uint8.

    Artifacts from before there were two grids do not tell, and have the symmetric one.
    """
    return str(artifact.manifest.options.get("int8", {}).get("activations", SYMMETRIC))


def describe_tensor(
    name: str, found: Histogram, told: Mapping[str, Any], is_symmetric: bool
) -> TensorRow:
    """Return the row of a tensor on the grid that `calibration.json` told of it."""
    grid = told if is_symmetric else told["asymmetric"]
    step = grid["scale"]
    low, high = (-LEVELS * step, LEVELS * step) if is_symmetric else (grid["low"], grid["high"])
    above, below = found.peaks
    has_floor = found.floor is not None and below > -found.floor
    return TensorRow(
        name,
        found.abs_max,
        -below if below else 0.0,
        above,
        low,
        high,
        step,
        0 if is_symmetric else grid["zero_point"],
        clipped_share(found, step, low, high),
        signal_to_noise(found, step, low, high),
        found.floor if has_floor else None,
        signal_to_noise(found.raised(), step, low, high) if has_floor else None,
        told.get("by_answer", {}).get("share"),
    )


def halvings(count: int) -> list[int]:
    """Return 1, 2, 4, ... and `count` itself."""
    return [*(2**k for k in range(count.bit_length()) if 2**k < count), count]


def share_close(scales: Mapping[str, float], final: Mapping[str, float]) -> float:
    """Return the share of tensors whose scale is close to the final one."""
    return float(np.mean([abs(scales[n] / final[n] - 1) <= CLOSE for n in final]))


def find_enough(close: Mapping[int, float]) -> int | None:
    """Return the least number from which on nearly all scales are close, if there is one."""
    enough = None
    for number in sorted(close)[-2::-1]:  # All images agree with themselves: that proves nothing.
        if close[number] < NEARLY_ALL:
            break
        enough = number
    return enough


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number} images"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def render_report(report: CalibrationReport, title: str) -> str:
    """Return the page."""
    weakest = sorted(report.rows, key=lambda row: row.snr_db)
    body = "".join(_table_row(row) for row in weakest)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}: calibration</title><style>{_STYLE}</style></head><body>"
        f"<h1>Calibration of {html.escape(title)}</h1>"
        f"<p>{html.escape(_setting(report))}</p>"
        f"<h2>How many images are enough</h2><p>{html.escape(report.sentence)}</p>"
        f"{_curve(report.close)}<p>Each point is an export with so many images, chosen as "
        "<code>--calibration-images</code> chooses them. It says which scales change, not what "
        "that does to the answer.</p>"
        "<h2>Ranges</h2><p>Light: the values seen; dark: what the grid spans; line: zero. Each row "
        "has its own scale. Clipped are values more than half a step outside the grid. SNR is the "
        f"power of the values over that of their rounding error, told up to {MOST_DB:.0f} dB; "
        "those of which the grid keeps least come first.</p>"
        "<table><thead><tr><th>tensor<th>range<th>seen from<th>to<th>grid from<th>to<th>step"
        f"<th>zero point<th>clipped<th>SNR, dB<th>note</tr></thead><tbody>{body}</tbody></table>"
        "</body></html>"
    )


_GRIDS = {
    SYMMETRIC: "symmetric int8, one step a tensor",
    "asymmetric": "uint8 with a zero point, one step a tensor",
}


def _setting(report: CalibrationReport) -> str:
    chosen = f", chosen by: {report.chosen_by}" if report.chosen_by else ""
    told = (
        f"Grid of the activations: {_GRIDS[report.grid]}. Clips by the method {report.method}. "
        f"{_images(max(report.close))} of the train split{chosen}."
    )
    if any(row.answer_share is not None for row in report.rows):
        told += " Where the note says so, the clip was chosen by the network's answer instead."
    return told


_STYLE = (
    "body{font:15px/1.5 system-ui;max-width:80rem;margin:2rem auto;padding:0 1rem}"
    "td,th{padding:.1rem .6rem;text-align:right}"
    "td:first-child,th:first-child,td:last-child,th:last-child{text-align:left}"
)
_BAR, _WIDTH, _HEIGHT = 160, 520, 240
_LEFT, _TOP, _BOTTOM = 60, 34, 48  # Room for what the axes say.


def _table_row(row: TensorRow) -> str:
    cells = (
        html.escape(row.tensor), _bar(row), f"{row.lowest:.4g}", f"{row.highest:.4g}",
        f"{row.low:.4g}", f"{row.high:.4g}", f"{row.scale:.4g}", str(row.zero_point),
        f"{100 * row.clipped_share:.4f} %", _db(row.snr_db), html.escape(_note(row)),
    )  # fmt: skip
    return f"<tr>{''.join(f'<td>{cell}' for cell in cells)}</tr>"


def _db(snr_db: float) -> str:
    return f"{snr_db:.1f}" if snr_db < MOST_DB else f"&ge; {MOST_DB:.0f}"


def _note(row: TensorRow) -> str:
    notes = []
    if row.answer_share is not None:
        notes.append(
            f"clip chosen by the network's answer: {row.answer_share:g} of that with the least "
            "squared error"
        )
    if row.floor is not None and row.snr_read_db is not None:
        notes.append(
            f"below {row.floor:g} all values are one to what reads them; with these raised to it "
            f"the SNR is {row.snr_read_db:.1f} dB"
        )
    return "; ".join(notes)


def _bar(row: TensorRow) -> str:
    """Return a picture of the values seen and the grid, as wide as both together."""
    ends = min(row.lowest, row.low), max(row.highest, row.high)
    place = [
        _BAR * (value - ends[0]) / ((ends[1] - ends[0]) or 1)
        for value in (row.lowest, row.highest, row.low, row.high, 0.0)
    ]
    parts = [
        f"<rect x='{a:.1f}' y='{top}' width='{b - a:.1f}' height='{tall}' fill='{colour}'/>"
        for a, b, top, tall, colour in (
            (place[0], place[1], 0, 14, "#bcd"),
            (place[2], place[3], 4, 6, "#357"),
        )
    ]
    zero = f"<path d='M{place[4]:.1f} 0v14' stroke='#000'/>"
    frame = f"<svg width='{_BAR}' height='14' role='img' aria-label='range'>"
    return f"{frame}{''.join(parts)}{zero}</svg>"


def _curve(close: Mapping[int, float]) -> str:
    """Return a picture of the share of close scales over the number of images."""
    steps = sorted(close)
    wide, tall = _WIDTH - _LEFT - 30, _HEIGHT - _TOP - _BOTTOM
    across = [_LEFT + wide * i / max(1, len(steps) - 1) for i in range(len(steps))]
    down = [_TOP + tall * (1 - close[step]) for step in steps]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    title = f"Scales within {_percent(CLOSE)} of those of {_images(steps[-1])}"
    upright = f"translate(14 {_TOP + tall / 2}) rotate(-90)"
    axes = f"M{_LEFT - 8} {_TOP}V{_TOP + tall + 8}H{_WIDTH - 16}"
    parts = [
        f"<title>{title}, by number of images</title>",
        _text(_WIDTH / 2, 14, title, 13),
        _text(_LEFT + wide / 2, _HEIGHT - 6, "images"),
        f"<g transform='{upright}'>{_text(0, 0, 'share of scales, %')}</g>",
        f"<path d='{axes}' fill='none' stroke='#888'/>",
        f"<polyline points='{points}' fill='none' stroke='#357'/>",
    ]
    parts += [_text(_LEFT - 24, _TOP + tall * (1 - n / 100) + 4, str(n)) for n in (0, 50, 100)]
    for step, x, y in zip(steps, across, down, strict=True):
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='#357'/>")
        parts.append(_text(x, y - 7, _percent(close[step])))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 24, str(step)))
    return f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img'>{''.join(parts)}</svg>"


def _text(x: float, y: float, words: str, size: int = 11) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' text-anchor='middle'>"
        f"{html.escape(words)}</text>"
    )
