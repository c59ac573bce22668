"""`segdeploy zoo`: trained weights, out of a store and into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeploy.cli.app import JSON, app, emit, say

if TYPE_CHECKING:
    from segdeploy.zoo.store import Entry, Pulled

zoo = typer.Typer(name="zoo", help="Trained weights: list, fetch, publish.", no_args_is_help=True)
app.add_typer(zoo)

INDEX = Annotated[
    str | None,
    typer.Option(help="Path or URL of the index; default: SEGDEPLOY_ZOO, else the built-in one."),
]
OFFLINE = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]


@zoo.command("list")
def list_weights(*, index: INDEX = None, offline: OFFLINE = False, as_json: JSON = False) -> None:
    """List the entries of the index."""
    from segdeploy.zoo.store import read_index

    entries = list(read_index(index, offline=offline).entries.values())
    emit([entry.to_dict() for entry in entries], as_json, lambda: _render_entries(entries))


@zoo.command()
def pull(
    name: Annotated[str, typer.Argument(help="Entry of the index.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Checkpoint folder to make of it.")
    ] = None,
    index: INDEX = None,
    offline: OFFLINE = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint at --out.")] = False,
    as_json: JSON = False,
) -> None:
    """Fetch weights into the cache, and make a checkpoint of them."""
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.zoo.store import pull as run_pull

    with progress_bars() as advance:
        pulled = run_pull(
            name, out=out, index=index, offline=offline, force=force,
            progress=lambda done, total: advance("pull", done, total),
        )  # fmt: skip
    emit(pulled.to_dict(), as_json, lambda: _render_pulled(pulled))


@zoo.command()
def push(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    *,
    name: Annotated[str, typer.Option(help="Its name in the index.")],
    url: Annotated[
        str, typer.Option(help="Path or URL of the file; with a slash at its end, of its folder.")
    ],
    index: INDEX = None,
    metrics_from: Annotated[
        Path | None, typer.Option(help="The eval.json of the checkpoint.")
    ] = None,
    licence: Annotated[str, typer.Option(help="What the weights may be used for.")] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Replace another content of this name.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Publish a checkpoint: write it as one file, and add it to the index."""
    from segdeploy.zoo.store import push as run_push

    pushed = run_push(
        checkpoint, name=name, url=url, index=index, metrics_from=metrics_from, licence=licence,
        force=force,
    )  # fmt: skip

    def render() -> None:
        print(f"{pushed.entry.name}  {pushed.entry.url}  {pushed.entry.sha256}")  # noqa: T201

    emit(pushed.to_dict(), as_json, render)


@zoo.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Entries of the index; default: all.")
    ] = None,
    *,
    index: INDEX = None,
    offline: OFFLINE = False,
    as_json: JSON = False,
) -> None:
    """Check the fetched files against the index; exit 1 if one is damaged."""
    from segdeploy.zoo.store import State
    from segdeploy.zoo.store import verify as run_verify

    findings = run_verify(names or (), index=index, offline=offline)

    def render() -> None:
        for finding in findings:
            print(f"{finding.state:<8} {finding.name}  {finding.file}")  # noqa: T201

    emit([finding.to_dict() for finding in findings], as_json, render)
    damaged = [finding.name for finding in findings if finding.state is State.DAMAGED]
    if damaged:
        say(f"error: damaged: {', '.join(damaged)}\nFetch again: segdeploy zoo pull NAME.")
        raise typer.Exit(1)


def _render_entries(entries: list[Entry]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for title in ("name", "model", "K", "MiB", "mIoU", "on", "licence"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        size = "-" if entry.size_bytes is None else f"{entry.size_bytes / 2**20:.1f}"
        scores = ["-" if m.mean_iou is None else f"{m.mean_iou:.4f}" for m in entry.metrics]
        data = [m.data for m in entry.metrics]
        table.add_row(
            escape(entry.name), escape(entry.model), str(entry.num_classes), size,
            "\n".join(scores) or "-", escape("\n".join(data) or "-"), escape(entry.licence or "-"),
        )  # fmt: skip
    Console().print(table)


def _render_pulled(pulled: Pulled) -> None:
    print(pulled.file if pulled.checkpoint is None else pulled.checkpoint.path)  # noqa: T201
    if pulled.entry.licence:
        say(f"licence: {pulled.entry.licence}")
