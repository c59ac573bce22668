"""`segdeploy train`: a recipe (TOML and flags) becomes RUN/checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from segdeploy.cli.app import ALLOW_CODE, JSON, app, emit, say
from segdeploy.cli.parsing import parse_pair, parse_size
from segdeploy.core.trust import check_trusted
from segdeploy.frameworks.launch_env import is_main_process


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Argument(help="Recipe in TOML; flags override it.", metavar="CONFIG")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="See 'segdeploy list models'; or package.module:callable."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="NAME or NAME:ROOT.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    epochs: int | None = None,
    batch_size: Annotated[int | None, typer.Option(help="Over all processes.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="recipe; preset: the data set's usual one; or none.")
    ] = None,
    crop: Annotated[str | None, typer.Option(help="Training crop HxW.")] = None,
    scale: Annotated[str | None, typer.Option(help="Random scale LOW,HIGH.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, adam or sgd.")] = None,
    loss: Annotated[
        str | None, typer.Option(help="One or a weighted sum: '0.5*focal(gamma=3)+dice'.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    head_lr_factor: Annotated[
        float | None, typer.Option(help="Of --lr, for all but the encoder.")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="poly, cosine, step or one_cycle.")] = None,
    weight_decay: float | None = None,
    warmup_steps: int | None = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest norm of the gradients; 0 for any.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Work each batch through in N parts, for less memory.")
    ] = None,
    class_weights: Annotated[str | None, typer.Option(help="none or sqrt_median.")] = None,
    amp: Annotated[str | None, typer.Option(help="none, bf16 or fp16.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="0 keeps no average.")] = None,
    seed: int | None = None,
    val_every: Annotated[int | None, typer.Option(help="Validate every N epochs.")] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Also write RUN/tensorboard.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="End after N validations without a better mIoU; 0 never.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    nproc: Annotated[int | None, typer.Option(help="Processes (DDP) to start.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes per rank.")] = None,
    save_minutes: Annotated[
        float | None,
        typer.Option(
            "--save-every-minutes", help="Write RUN/last also within an epoch; 0: only after it."
        ),
    ] = None,
    on_nan: Annotated[
        str | None, typer.Option(help="stop, or skip the iteration, if it is not finite.")
    ] = None,
    sync_batch_norm: Annotated[
        bool | None, typer.Option("--sync-batch-norm", help="Norm statistics over all processes.")
    ] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile", help="Run the model through torch.compile.")
    ] = None,
    cache_mib: Annotated[
        int | None, typer.Option(help="Memory for decoded images, over all processes; 0 for none.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Start from a checkpoint, .safetensors or .pth; heads may differ."),
    ] = None,
    freeze: Annotated[str | None, typer.Option(help="none or encoder.")] = None,
    note: Annotated[str | None, typer.Option(help="Kept in the manifest.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue RUN/last.")] = False,
    _allow_code: ALLOW_CODE = False,
    as_json: JSON = False,
) -> None:
    """Train a model; the best checkpoint by validation mIoU is RUN/checkpoint."""
    from segdeploy.train import train as run
    from segdeploy.train.config import load_config, resumed_config

    flags: dict[str, Any] = {
        "model": model, "data": data, "out": str(out) if out else None, "epochs": epochs,
        "batch_size": batch_size, "augment": augment,
        "crop": parse_size(crop), "scale": parse_pair(scale),
        "optimizer": optimizer, "loss": loss, "lr": lr, "head_lr_factor": head_lr_factor,
        "schedule": schedule, "weight_decay": weight_decay, "clip_norm": clip_norm,
        "accumulate": accumulate, "patience": patience,
        "warmup_steps": warmup_steps, "class_weights": class_weights, "amp": amp,
        "ema_decay": ema_decay, "seed": seed, "val_every": val_every, "device": device,
        "nproc": nproc, "workers": workers, "cache_mib": cache_mib,
        "init": str(init) if init else None,
        "save_minutes": save_minutes, "on_nan": on_nan,
        "sync_batch_norm": sync_batch_norm, "compile": compile_,
        "freeze": freeze, "tensorboard": tensorboard, "note": note,
    }  # fmt: skip
    settings = resumed_config(config, flags) if resume else load_config(config, flags)
    if settings.model != model:  # What was typed is consent; what a file says is not.
        check_trusted(settings.model, "The recipe")
    checkpoint = run(settings, resume=resume)
    document = {
        "path": str(checkpoint.path),
        "model": checkpoint.manifest.model,
        "mean_iou": checkpoint.manifest.options.get("best_mean_iou"),
        "epochs": settings.epochs,
    }
    if is_main_process(os.environ):  # One rank speaks for all.
        emit(document, as_json, lambda: say(f"checkpoint: {checkpoint.path}"))
