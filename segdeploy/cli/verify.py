"""`segdeploy verify`: is an artifact as good as its reference, a run whole? Exit 1 if not."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.core.errors import ConfigError

if TYPE_CHECKING:
    from segdeploy.core.results import ParityReport
    from segdeploy.verify import RunCheck


@app.command()
def verify(
    artifact: Annotated[
        Path, typer.Argument(help="Artifact folder; or a run folder, whose digests are checked.")
    ],
    *,
    against: Annotated[
        Path | None, typer.Option(help="Reference folder; default: the checkpoint it came from.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="NAME[:ROOT] whose validation images are used.")
    ] = None,
    images: Annotated[int, typer.Option(help="Number of images at the model's own size.")] = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Compare an artifact with its reference, in decisions."""
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.verify import is_run
    from segdeploy.verify import verify as run_verify

    if is_run(artifact):
        _verify_run(artifact, against or data, as_json)
        return
    num_batches = count(1)
    with progress_bars() as advance:
        report = run_verify(
            artifact,
            against=against,
            data=data,
            num_images=images,
            device=device,
            progress=lambda: advance("verify", next(num_batches), None),
        )
    emit(report.to_dict(), as_json, lambda: _render(report))
    if not report:
        broken = ", ".join(f.rule for f in report.failures)
        say(f"error: {artifact} differs from its reference: {broken}")
        raise typer.Exit(1)


def _verify_run(run: Path, asked: object, as_json: bool) -> None:
    from segdeploy.verify import verify_run

    if asked:
        raise ConfigError(
            f"{run} is a run folder: its digests are checked, and nothing is compared.",
            hint="Give one artifact of it, or leave out --against and --data.",
        )
    found = verify_run(run)
    emit(found.to_dict(), as_json, lambda: _render_run(found))
    if not found:
        broken = ", ".join(folder.name for folder in found.folders if folder.problems)
        say(f"error: {run} is not whole: {broken}")
        raise typer.Exit(1)


def _render_run(found: RunCheck) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(found.run))
    for heading in ("folder", "identity", "made from", "files", "parity", "digests"):
        table.add_column(heading, overflow="fold")
    for folder in found.folders:
        table.add_row(
            escape(folder.name),
            (folder.digest or "-")[:12],
            " > ".join(folder.lineage) or "-",
            str(folder.num_files),
            {None: "-", True: "passed", False: "failed"}[folder.passed],
            "[green]whole[/]" if not folder.problems else escape("; ".join(folder.problems)),
        )
    Console().print(table)


def _render(report: ParityReport) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table(show_header=False, title=f"{report.target} against {report.reference}")
    for name, value in (
        ("pixels", f"{report.num_pixels:,}"),
        ("flips", f"{report.flip_rate:.2e}"),
        ("hard flips", f"{report.hard_flip_rate:.2e}"),
        ("certified", _rate(report.certified_rate)),
        ("max abs", _number(report.max_abs)),
        ("deviation", _number(report.max_deviation)),
        ("noise floor", _number(report.noise_floor)),
        ("margin tolerance", _number(report.margin_tolerance)),
        ("SNR dB", _number(report.snr_db)),
        ("worst class", escape(_worst_class(report))),
    ):
        table.add_row(name, value)
    for name, hop in report.hops.items():
        found = escape(hop.get("error") or f"flips {hop['flip_rate']:.2e}")
        table.add_row(name.replace("_", " "), f"{found} ({hop.get('target', report.parent)})")
    console.print(table)
    for failure in report.failures:
        console.print(
            f"[red]broken[/] {failure.rule}: {failure.value:.4g}, limit {failure.limit:g}"
        )
    if report.hint:
        console.print(f"hint: {report.hint}", markup=False)
    for case in report.cases:
        for problem in case["problems"]:
            console.print(f"  {case['name']}: {problem}", markup=False)
    console.print("[green]passed[/]" if report else "[red]failed[/]")


def _worst_class(report: ParityReport) -> str:
    known = {n: r for n, r in report.class_flip_rate.items() if r is not None}
    if not known:
        return "-"
    worst = max(known, key=lambda name: known[name])
    return f"{worst} {known[worst]:.2e}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
