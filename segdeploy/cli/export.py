"""`segdeploy export`: build artifacts from a checkpoint and verify each. Exit 1 if one fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.core.contract import InputKind, OutputKind
from segdeploy.core.errors import ConfigError
from segdeploy.core.foreign import Layout
from segdeploy.core.preprocess import SizeRule
from segdeploy.core.target import ClipMethod
from segdeploy.core.task import Task

if TYPE_CHECKING:
    from segdeploy.core.folder import Artifact
    from segdeploy.export.calibration import Int8Options, Progress
    from segdeploy.workflows.export_verified import VerifiedExport


class Output(StrEnum):
    """The output contracts, and `auto`."""

    LOGITS = OutputKind.LOGITS.value
    LABELS = OutputKind.LABELS.value
    LABELS_CONFIDENCE = OutputKind.LABELS_CONFIDENCE.value
    LOW_LOGITS = OutputKind.LOW_LOGITS.value
    AUTO = "auto"


def _foreign(text: str, *names: str) -> Any:
    """Return an option that says what a foreign ONNX file does not say of itself."""
    return typer.Option(
        *names, help=text, rich_help_panel="A foreign model.onnx", show_default=False
    )


@app.command()
def export(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Checkpoint folder, e.g. RUN/checkpoint, or a foreign model.onnx."),
    ],
    *,
    target: Annotated[
        list[str], typer.Option(help="BACKEND-PRECISION, e.g. onnx-int8; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder that gets one folder per target.")],
    calibration: Annotated[
        str | None,
        typer.Option(help="NAME[:ROOT] whose train images choose int8 ranges and fp16 islands."),
    ] = None,
    calibration_images: Annotated[int, typer.Option(help="How many of them.")] = 32,
    calibration_method: Annotated[
        ClipMethod, typer.Option(help="How a range is chosen from what the images give.")
    ] = ClipMethod.MSE,
    percentile: Annotated[float, typer.Option(help="Share in % within the range.")] = 99.99,
    equalize: Annotated[
        bool, typer.Option("--equalize/--no-equalize", help="Bring channels to alike ranges.")
    ] = False,
    bias_correction: Annotated[
        bool,
        typer.Option("--bias-correction/--no-bias-correction", help="Put int8's mean error back."),
    ] = False,
    calibration_report: Annotated[
        bool,
        typer.Option("--calibration-report", help="Write calibration.html: ranges, images needed."),
    ] = False,
    int8_policy: Annotated[
        str, typer.Option(help="default, all, a backend or a TOML file: what int8 quantises.")
    ] = "default",
    input_kind: Annotated[
        InputKind, typer.Option("--input", help="What the artifact takes.")
    ] = InputKind.TENSOR,
    output_kind: Annotated[
        Output, typer.Option("--output", help="What the artifact gives; auto: the fastest here.")
    ] = Output.LOGITS,
    size: Annotated[str, typer.Option(help="HxW, dynamic, or a range HxW..HxW.")] = "dynamic",
    max_batch: Annotated[
        int, typer.Option(help="Largest batch, for formats built for a range.")
    ] = 1,
    name: Annotated[str | None, typer.Option(help="Folder name, for one target.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is unchanged.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="NAME[:ROOT] whose val images verify; default: the calibration set."),
    ] = None,
    build_timeout: Annotated[float, typer.Option(help="Longest time of a converter, s.")] = 1800.0,
    build_memory: Annotated[
        float | None, typer.Option(help="Most memory of a converter, MiB.")
    ] = None,
    model_config: Annotated[
        Path | None, _foreign("TOML file with what the following flags say; flags win.")
    ] = None,
    input_name: Annotated[
        str | None, _foreign("The image, where there are several inputs.")
    ] = None,
    output_name: Annotated[
        str | None, _foreign("The logits, where there are several outputs; any tensor will do.")
    ] = None,
    layout: Annotated[Layout | None, _foreign("Of its input, where sizes leave it open.")] = None,
    output_layout: Annotated[Layout | None, _foreign("Of its logits.")] = None,
    upsample: Annotated[
        bool | None, _foreign("Resize coarse logits to the image's size.", "--upsample")
    ] = None,
    is_logits: Annotated[
        bool | None, _foreign("Its output is logits, whatever it looks like.", "--is-logits")
    ] = None,
    task: Annotated[Task | None, _foreign("What the logits mean; 1 channel is binary.")] = None,
    classes: Annotated[
        str | None, _foreign("File with one class name a line, or NAME,NAME,...")
    ] = None,
    scale: Annotated[float | None, _foreign("Input = (pixel x SCALE - mean) / std.")] = None,
    mean: Annotated[str | None, _foreign("Three numbers, in the model's channel order.")] = None,
    std: Annotated[str | None, _foreign("Three numbers.")] = None,
    channel_order: Annotated[str | None, _foreign("rgb (default) or bgr.")] = None,
    size_rule: Annotated[
        SizeRule | None, _foreign("How images get a fixed size: fixed (default) or letterbox.")
    ] = None,
    note: Annotated[str | None, _foreign("Kept in the manifest, e.g. the licence.")] = None,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Build deployable artifacts from a checkpoint or a foreign model.onnx, and verify each."""
    from segdeploy.cli.parsing import parse_names, parse_sizes, parse_triple
    from segdeploy.core.contract import IoContract
    from segdeploy.export.calibration import Int8Options
    from segdeploy.export.foreign import ForeignOptions, read_options
    from segdeploy.frameworks.progress import progress_bars
    from segdeploy.workflows.choose_output import export_fastest
    from segdeploy.workflows.export_verified import export_and_verify

    said = ForeignOptions(
        input_name=input_name,
        layout=layout,
        output_name=output_name,
        output_layout=output_layout,
        upsample=upsample,
        is_logits=is_logits,
        task=task,
        classes=parse_names(classes),
        scale=scale,
        mean=None if mean is None else parse_triple(mean),
        std=None if std is None else parse_triple(std),
        channel_order=channel_order,
        size_rule=size_rule,
        note=note,
    )
    foreign = said if model_config is None else said.over(read_options(model_config))
    if output_kind is Output.AUTO:
        work = partial(export_fastest, input_kind=input_kind)
    else:
        work = partial(export_and_verify, io=IoContract(input_kind, OutputKind(output_kind.value)))
    if calibration_report and calibration is None:
        raise ConfigError("--calibration-report needs --calibration.")
    int8 = Int8Options(calibration_method, percentile, equalize, bias_correction)
    with progress_bars() as advance:
        found = work(
            checkpoint,
            target,
            out,
            calibration=calibration,
            num_calibration_images=calibration_images,
            int8_options=int8,
            int8_policy=int8_policy,
            size=parse_sizes(size),
            max_batch=max_batch,
            name=name,
            force=force,
            dry_run=dry_run,
            verify=not no_verify,
            data=data,
            build_limit_s=build_timeout,
            build_memory_mib=build_memory,
            progress=advance,
            report=say,
            foreign=None if foreign.is_empty() else foreign,
        )
        if calibration_report and calibration is not None and not dry_run:
            done = [each.outcome.artifact for each in found if each.outcome.requested]
            _report_calibration(filter(None, done), calibration, calibration_images, int8, advance)
    emit([each.to_dict() for each in found], as_json, lambda: _render(found, planned=dry_run))
    failed = [each.outcome.path for each in found if each.passed is False]
    if failed and not dry_run:
        say(f"error: failed verification: {', '.join(map(str, failed))}")
        hints = dict.fromkeys(each.report.hint for each in found if each.report is not None)
        for hint in filter(None, hints):
            say(f"hint: {hint}")
    errors = [each.outcome for each in found if each.outcome.error is not None]
    for outcome in errors:
        say(f"error: {outcome.target}: {outcome.error}")
    codes = [outcome.error.exit_code for outcome in errors if outcome.error is not None]
    if codes or (failed and not dry_run):
        raise typer.Exit(max([*codes, 1]))


def _report_calibration(
    artifacts: Iterable[Artifact],
    calibration: str,
    num_images: int,
    options: Int8Options,
    advance: Progress,
) -> None:
    from segdeploy.export.calibration import open_calibration
    from segdeploy.export.calibration_report import REPORT, has_ranges, report_calibration

    for artifact in filter(has_ranges, artifacts):
        images = open_calibration(calibration, num_images, options)
        found = report_calibration(artifact, images, advance)
        say(f"{artifact.path / REPORT}: {found.sentence}")


def _render(found: Sequence[VerifiedExport], *, planned: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="plan" if planned else None)
    for heading in ("target", "folder", "made from", "work", "MiB", "verified"):
        justify: Literal["left", "right"] = "right" if heading == "MiB" else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for each in found:
        outcome = each.outcome
        work = "build" if planned else f"{outcome.seconds:.1f} s"
        size = outcome.artifact.size_mib if outcome.artifact else None
        table.add_row(
            outcome.target,
            escape(str(outcome.path)),
            escape(outcome.parent),
            "reused" if outcome.reused else work,
            "-" if size is None else f"{size:.2f}",
            _VERDICTS[each.passed] if outcome.error is None else "[red]error[/]",
        )
    Console().print(table)


_VERDICTS = {None: "-", True: "[green]passed[/]", False: "[red]failed[/]"}
