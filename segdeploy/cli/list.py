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
    shown = [_brief(row) for row in rows] if kind is Kind.MODELS else rows
    emit(rows, as_json, lambda: _print_table(shown))


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

    return [*({"name": name} for name in ENCODERS), {"name": "timm/<any name of timm>"}]


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


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """A model's row for people: multiply-adds are of one image of that size."""
    macs = row["macs"]
    return {
        "name": row["name"],
        "parameters": row["num_parameters"],
        "GMAC": None if macs is None else f"{macs / 1e9:.2f}",
        "at": row["input_size"],
        "family": row["family"],
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for name in rows[0] if rows else ["name"]:
        table.add_column(name, overflow="fold", no_wrap=name in {"parameters", "GMAC", "at"})
    for row in rows:
        table.add_row(*(escape(_shown(value)) for value in row.values()))
    Console().print(table)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)
