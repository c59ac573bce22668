"""The section about training: curves by epoch and by step, and validation samples over time."""

from __future__ import annotations

from segdeploy.report.fragments import shots
from segdeploy.report.plots import Series, line_plot
from segdeploy.report.runlog import Training, curve, smoothed


def render_training(training: Training) -> str:
    """Return the section, empty if nothing is known."""
    plots = "".join([*_epoch_plots(training), *_step_plots(training)])
    shown = f'<div class="grid2">{plots}</div>{_words(training)}' if plots else ""
    if training.samples:
        shown += (
            "<h3>The same validation samples over the epochs</h3>"
            f"{shots(training.samples, 'small')}"
        )
    return f"<h2>Training</h2>{shown}" if shown else ""


def _epoch_plots(training: Training) -> list[str]:
    epochs = training.epochs
    scores = {"mIoU": "mean_iou", "pixel accuracy": "pixel_accuracy"}
    return [
        line_plot("Training loss", [Series("loss", curve(epochs, "loss"))], from_zero=True),
        line_plot(
            "Validation", [Series(said, curve(epochs, name)) for said, name in scores.items()]
        ),
        line_plot("Learning rate", [Series("lr", curve(epochs, "lr"))], from_zero=True),
        line_plot(
            "Training speed", [Series("images/s", curve(epochs, "images_s"))], from_zero=True
        ),
    ]


def _step_plots(training: Training) -> list[str]:
    found = {"Loss by step": "loss", "Gradient norm": "grad_norm"}
    plots = []
    for title, name in found.items():
        points, means = smoothed(curve(training.steps, name))
        series = [Series("batch", points, is_faint=True), Series("smoothed", means)]
        plots.append(line_plot(title, series, from_zero=True))
    return plots


def _words(training: Training) -> str:
    epochs, best = training.epochs, training.best
    seconds = [s for line in epochs if (s := line.values.get("seconds")) is not None]
    said = f"{len(epochs)} epochs, {sum(seconds) / 60:.1f} minutes" if epochs else ""
    if best is not None:
        said += f"; best mIoU {best.values['mean_iou']:.4f} after epoch {best.place:g}"
    return f'<p class="soft">{said}.</p>' if said else ""
