"""`segdeploy list`: the tables, without importing what they name."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from segdeploy.cli.app import JSON, app, emit


class Kind(StrEnum):
    """What can be listed."""

    MODELS = "models"
    ENCODERS = "encoders"
    DATASETS = "datasets"
    TARGETS = "targets"
    LOSSES = "losses"
    METRICS = "metrics"


@app.command("list")
def list_kind(kind: Annotated[Kind, typer.Argument()], as_json: JSON = False) -> None:
    """List the known models, data sets, targets, losses or metrics."""
    rows = _ROWS[kind]()
    emit(rows, as_json, lambda: _print_table(rows))


def _models() -> list[dict[str, Any]]:
    from segdeploy.zoo import describe_models

    return describe_models()


def _targets() -> list[dict[str, Any]]:
    from segdeploy.backends import describe_targets

    return describe_targets()


def _datasets() -> list[dict[str, Any]]:
    from segdeploy.data import DATASETS

    return [{"name": name} for name in DATASETS]


def _encoders() -> list[dict[str, Any]]:
    from segdeploy.zoo import ENCODERS

    return [{"name": name} for name in ENCODERS]


def _losses() -> list[dict[str, Any]]:
    from segdeploy.train import LOSSES

    return [{"name": name} for name in LOSSES]


def _metrics() -> list[dict[str, Any]]:
    from segdeploy.metrics import METRICS

    return [{"name": name} for name in METRICS]


_ROWS = {
    Kind.MODELS: _models,
    Kind.TARGETS: _targets,
    Kind.DATASETS: _datasets,
    Kind.ENCODERS: _encoders,
    Kind.LOSSES: _losses,
    Kind.METRICS: _metrics,
}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for name in rows[0] if rows else ["name"]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:,}" if type(v) is int else str(v)
                        for v in row.values()))  # fmt: skip
    Console().print(table)
