"""What a training run tells: `log.jsonl` for programs, a progress bar on stderr for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segdeploy.core.files import write_bytes, write_errors
from segdeploy.frameworks.progress import is_quiet


class EpochLog:
    """`log.jsonl`: one line an epoch, appended as soon as the epoch is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Add the line of an epoch.

        Raises:
            ArtifactError: If it cannot be written.
        """
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def truncate(self, epoch: int) -> None:
        """Drop the lines of epochs >= `epoch` and broken ones: they will be done again."""
        if not self.path.exists():
            return
        kept, found = [], self.path.read_bytes()
        for text in found.splitlines():
            try:
                is_before = json.loads(text)["epoch"] < epoch
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # A line cut by a kill, or damaged.
            if is_before:
                kept.append(text + b"\n")
        if b"".join(kept) != found:  # A finished run is resumed without writing anything.
            write_bytes(self.path, b"".join(kept))


class TrainingDisplay:
    """The progress bar of the main rank; other ranks show nothing."""

    def __init__(self, epochs: int, *, is_shown: bool) -> None:
        self.is_shown = is_shown and not is_quiet()
        self.epochs = epochs
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.is_shown or not sys.stderr.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task("train", loss=float("nan"))

    def begin(self, epoch: int, num_batches: int, done: int) -> None:
        """Start the bar of an epoch."""
        self._bar.reset(self._task, total=num_batches, completed=done, loss=float("nan"),
                        description=f"epoch {epoch + 1}/{self.epochs}")  # fmt: skip

    def step(self, loss: float) -> None:
        """Advance by one batch."""
        self._bar.update(self._task, advance=1, loss=loss)

    def end(self, line: dict[str, Any]) -> None:
        """Print the summary of an epoch."""
        score = line.get("mean_iou")
        shown = "" if score is None else f"  val mIoU {score:.4f}"
        self.say(
            f"epoch {line['epoch'] + 1}/{self.epochs}  loss {line['loss']:.4f}{shown}"
            f"  lr {line['lr']:.2e}  {line['images_s']:.1f} images/s"
        )

    def say(self, message: str) -> None:
        """Print one line for people."""
        if self.is_shown:
            self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
