"""Lines of JSON for programs, a progress bar on stderr for people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segdeploy.core.files import append_whole, write_bytes, write_errors
from segdeploy.frameworks.progress import is_quiet


class JsonLines:
    """A file of one JSON object a line, in the order of one of their numbers.

    Args:
        path: RUN/log.jsonl (a line an epoch) or RUN/steps.jsonl (a line every few iterations).
        key: The number: "epoch" or "step".
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line; what is not finite becomes null.

        Raises:
            ArtifactError: If it cannot be written.
        """
        with write_errors(self.path), self.path.open("ab", buffering=0) as file:
            append_whole(file, msgspec.json.encode(line) + b"\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the lines, but for those that a kill has cut or that are damaged."""
        return [line for line, _ in self._lines()]

    def truncate(self, end: int) -> None:
        """Keep the whole lines whose number is below `end`: the others will come again."""
        kept = b"".join(text + b"\n" for line, text in self._lines() if line[self.key] < end)
        if self.path.exists() and kept != self.path.read_bytes():
            write_bytes(self.path, kept)  # A finished run is resumed without writing anything.

    def _lines(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield each whole line, and as it stands in the file."""
        for text in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with contextlib.suppress(msgspec.DecodeError, RecursionError):
                line = msgspec.json.decode(text)
                if isinstance(line, dict) and isinstance(line.get(self.key), int):
                    yield line, text


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

    def end(self, line: Mapping[str, Any]) -> None:
        """Print the summary of an epoch."""
        score = line.get("mean_iou")
        shown = "" if score is None else f"  val mIoU {score:.4f}"
        self.say(
            f"epoch {line['epoch'] + 1}/{self.epochs}  loss {line['loss']:.4f}{shown}"
            f"  lr {line['lr']:.2e}  {line['images_s']:.1f} images/s"
        )

    def line(self, message: str) -> None:
        """Print one line of many, where no bar shows the same."""
        if not sys.stderr.isatty():
            self.say(message)

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
