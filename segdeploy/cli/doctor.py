"""`segdeploy doctor`: what this machine can build and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segdeploy.cli.app import JSON, app, emit

if TYPE_CHECKING:
    from rich.console import Console

    from segdeploy.workflows.doctor import Diagnosis, Finding


@app.command()
def doctor(
    as_json: JSON = False,
) -> None:
    """Say what this machine can build and run, and what to install for the rest."""
    from segdeploy.workflows.doctor import diagnose

    found = diagnose()
    emit(found.to_dict(), as_json, lambda: _render(found))


def _render(found: Diagnosis) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False)
    threads = f", torch uses {found.torch_threads} threads" if found.torch_threads else ""
    console.print(f"Python {found.python} on {found.system}")
    console.print(f"{found.cpu or 'unknown CPU'}, {found.cores} usable cores{threads}")
    console.print(f"memory {_gib(found.memory_mib)}, free disk {_gib(found.disk_free_mib)}")
    for title, findings in (
        ("devices", found.devices), ("targets", found.targets),
        ("environments", found.environments), ("packages", found.packages),
    ):  # fmt: skip
        console.print(f"\n{title}", style="bold")
        _render_findings(console, findings)
    for warning in found.warnings:
        console.print(f"\nwarning: {warning}", style="yellow")


def _render_findings(console: Console, findings: list[Finding]) -> None:
    width = max((len(finding.name) for finding in findings), default=0)
    for finding in findings:
        mark, style = ("ok", "green") if finding.available else ("--", "yellow")
        text = "  ".join(part for part in (finding.detail, finding.hint) if part)
        console.print(f"  {mark}  ", style=style, end="")
        console.print(f"{finding.name:<{width}}  {text}".rstrip())


def _gib(mib: float | None) -> str:
    return "unknown" if mib is None else f"{mib / 1024:.1f} GiB"
