"""A page about a calibration: ranges, what is clipped, and how many images are enough.

The images are counted once more, so that the page can be had of any int8 artifact made from ONNX.
After 1, 2, 4, ... images the scales are chosen as if these had been all. Enough is the least of
these numbers from which on nearly all scales stay close to the final ones; more images would repeat
what is known. The page holds its pictures (SVG), so that it is one file; JSON beside has numbers.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from segdeploy.core.contract import InputKind
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.files import write_bytes, write_json
from segdeploy.core.folder import Artifact, find_linked
from segdeploy.core.lock import run_lock
from segdeploy.core.results import read_result
from segdeploy.export.calibration import CALIBRATION, CalibrationSet, Progress
from segdeploy.graph.clipping import Histogram, choose_clip, signal_to_noise

REPORT, NUMBERS = "calibration.html", "calibration_report.json"
CLOSE, NEARLY_ALL = 0.05, 0.95  # A scale within 5 % of the final one; 95 % of the tensors.


@dataclass(frozen=True)
class TensorRow:
    """One tensor: range, share of clipped values, and what int8 leaves of it (dB)."""

    tensor: str
    abs_max: float
    clip: float
    clipped_share: float
    snr_db: float


@dataclass(frozen=True)
class CalibrationReport:
    """`close` is by number of images the share of tensors whose scale is close to the final one.

    `enough` is None where the scales were still moving at the last step; `num_left` is how many
    images the data set has beyond these.
    """

    rows: list[TensorRow]
    close: dict[int, float]
    enough: int | None
    num_left: int = 0

    @property
    def sentence(self) -> str:
        """Say how many images are enough."""
        if self.enough is None:
            used = max(self.close)
            more = used + min(used, self.num_left)
            advice = f"Add images: --calibration-images {more}"
            cure = advice if more > used else "There are no more"
            return (
                f"{used} images are not enough: scales still change by more than {CLOSE:.0%}. "
                f"{cure}."
            )
        return (
            f"{self.enough} images are enough: from there on {NEARLY_ALL:.0%} of the scales stay "
            f"within {CLOSE:.0%} of those of all {max(self.close)}."
        )


def has_ranges(artifact: Artifact) -> bool:
    """Return whether its int8 ranges are ours; some converters choose their own."""
    return bool((read_result(artifact.path / CALIBRATION) or {}).get("ranges"))


def report_calibration(
    artifact: Artifact, calibration: CalibrationSet, progress: Progress | None = None
) -> CalibrationReport:
    """Write `calibration.html` and its numbers into an int8 artifact's folder.

    Raises:
        ConfigError: If the artifact has no ranges of ours.
        ArtifactError: If its parent is not there any more.
    """
    from segdeploy.export.graphs import calibration_batches, prepare_int8
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
    plain = prepare_int8(plain, calibration, spec, progress)
    steps = halvings(len(calibration.indices))
    options = calibration.options
    scales: dict[int, dict[str, float]] = {step: {} for step in steps}

    def watch(number: int, name: str, found: Histogram) -> None:
        if number in scales:
            scales[number][name] = choose_clip(found, options.method, options.percentile).scale

    batches = calibration_batches(calibration, spec, progress, "report")
    counted = count_values(plain, list(ranges), batches, watch)
    rows = [_row(name, counted[name], told) for name, told in ranges.items()]
    close, enough = find_enough([scales[step] for step in steps], steps)
    num_left = len(calibration.dataset) - len(calibration.indices)
    report = CalibrationReport(rows, close, enough, num_left)
    with run_lock(artifact.path.parent):
        write_json(artifact.path / NUMBERS, {**asdict(report), "sentence": report.sentence})
        write_bytes(artifact.path / REPORT, render_report(report, artifact.path.name).encode())
    return report


def _row(name: str, found: Histogram, told: dict[str, float]) -> TensorRow:
    """Return the row of a tensor, with the range that the artifact was made with."""
    snr_db = min(signal_to_noise(found, told["clip"]), 999.0)  # A tensor of zeros has no error.
    return TensorRow(name, told["abs_max"], told["clip"], told["clipped_share"], snr_db)


def halvings(count: int) -> list[int]:
    """Return 1, 2, 4, ... and `count` itself."""
    return [*(2**k for k in range(count.bit_length()) if 2**k < count), count]


def find_enough(
    scales: Sequence[dict[str, float]], steps: Sequence[int]
) -> tuple[dict[int, float], int | None]:
    """Return the share of close scales by number of images, and the number that is enough."""
    final = scales[-1]
    close = {
        step: float(np.mean([abs(found[n] / final[n] - 1) <= CLOSE for n in final]))
        for step, found in zip(steps, scales, strict=True)
    }
    enough = None
    for step in reversed(steps[:-1]):  # All images agree with themselves: that proves nothing.
        if close[step] < NEARLY_ALL:
            break
        enough = step
    return close, enough


def render_report(report: CalibrationReport, title: str) -> str:
    """Return the page."""
    weakest = sorted(report.rows, key=lambda row: row.snr_db)
    body = "".join(_table_row(row, max(r.abs_max for r in report.rows)) for row in weakest)
    return (
        "<!doctype html><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}: calibration</title><style>{_STYLE}</style>"
        f"<h1>Calibration of {html.escape(title)}</h1>"
        f"<h2>How many images are enough</h2><p>{html.escape(report.sentence)}</p>"
        f"{_curve(report.close)}"
        "<h2>Ranges</h2><p>Full bar: largest magnitude seen; dark: the range that int8 spans. "
        "Those that int8 keeps least of come first.</p><table><tr><th>tensor<th>range<th>largest"
        f"<th>clip<th>clipped<th>SNR, dB</tr>{body}</table>"
    )


_STYLE = (
    "body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "td,th{padding:.1rem .6rem;text-align:right}td:first-child,th:first-child{text-align:left}"
)
_BAR, _WIDTH, _HEIGHT = 160, 480, 180


def _table_row(row: TensorRow, largest: float) -> str:
    full, inner = (_BAR * value / (largest or 1) for value in (row.abs_max, row.clip))
    bar = (
        f"<svg width='{_BAR}' height='12'><rect width='{full:.1f}' height='12' fill='#bcd'/>"
        f"<rect width='{inner:.1f}' height='12' fill='#357'/></svg>"
    )
    return (
        f"<tr><td>{html.escape(row.tensor)}<td>{bar}<td>{row.abs_max:.4g}<td>{row.clip:.4g}"
        f"<td>{100 * row.clipped_share:.4f} %<td>{row.snr_db:.1f}</tr>"
    )


def _curve(close: dict[int, float]) -> str:
    """Return a picture of the share of close scales over the number of images."""
    steps = list(close)
    across = [40 + (_WIDTH - 60) * i / max(1, len(steps) - 1) for i in range(len(steps))]
    down = [20 + (_HEIGHT - 50) * (1 - close[step]) for step in steps]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
    marks = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='#357'/><text x='{x:.1f}' "
        f"y='{_HEIGHT - 8}' font-size='11' text-anchor='middle'>{step}</text>"
        f"<text x='{x:.1f}' y='{y - 7:.1f}' font-size='11' text-anchor='middle'>"
        f"{100 * close[step]:.0f} %</text>"
        for step, x, y in zip(steps, across, down, strict=True)
    )
    return (
        f"<svg width='{_WIDTH}' height='{_HEIGHT}' role='img' aria-label='share of scales within "
        f"{CLOSE:.0%} of the final ones, by number of images'><polyline points='{points}' "
        f"fill='none' stroke='#357'/>{marks}</svg>"
    )
