"""RUN/tensorboard: the numbers and pictures of a run as TensorBoard's event files.

Two folders, hence two runs in its page: `steps`, whose axis is the iteration, and `epochs`. Each is
purged on its own axis when a run goes on, so that nothing is shown twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdeploy.core.files import write_errors
from segdeploy.data.pictures import Picture
from segdeploy.frameworks.tensorboard import find_tensorboard


class Board:
    """Writes events, each group of them at once to disk: a killed run keeps what it showed.

    Args:
        folder: RUN/tensorboard.
        step: The first iteration that will be written; later ones, of a killed run, are hidden.
        epoch: The same of epochs.
        recipe: Shown as a text, at the start of a run.

    Raises:
        BackendUnavailableError: If tensorboard is not installed.
        ArtifactError: As all methods, if nothing can be written.
    """

    def __init__(self, folder: Path, step: int, epoch: int, recipe: str) -> None:
        find_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        with write_errors(folder):
            self._steps = SummaryWriter(str(folder / "steps"), purge_step=step)
            self._epochs = SummaryWriter(str(folder / "epochs"), purge_step=epoch)
            if epoch == 0:
                indented = "\n".join(f"    {line}" for line in recipe.splitlines())  # As code.
                self._epochs.add_text("recipe", indented, 0)

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of one iteration."""
        self._add(self._steps, step, values)

    def add_epoch(
        self, epoch: int, values: Mapping[str, float], picture: Picture | None = None
    ) -> None:
        """Add the numbers of one epoch, and its picture (H, W, 3) if there is one."""
        with write_errors(self.folder):
            if picture is not None:
                self._epochs.add_image("validation", picture, epoch, dataformats="HWC")
        self._add(self._epochs, epoch, values)

    def _add(self, writer: Any, axis: int, values: Mapping[str, float]) -> None:
        with write_errors(self.folder):
            for name, value in values.items():
                writer.add_scalar(name, value, axis)
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        with write_errors(self.folder):
            self._steps.close()
            self._epochs.close()
