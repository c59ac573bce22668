"""segdeploy: train, export, verify, evaluate, benchmark and ship semantic segmentation models.

    import segdeploy
    model = segdeploy.open("runs/street/onnx-fp32")
    labels = model.predict(image).labels          # image: uint8 RGB (H, W, 3)

    from segdeploy.export import export           # one public function per stage, of its name:
    from segdeploy.train import TrainConfig, train  # train, export, verify, evaluate, bench, ...

Importing segdeploy loads no framework; stages are imported when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.core.errors import SegDeployError

if TYPE_CHECKING:
    from segdeploy.backends.predictor import Predictor

__version__ = "0.1.0"
_STAGES = ("bench", "evaluate", "export", "predict", "report", "train", "verify", "workflows")
__all__ = ["SegDeployError", "open", *_STAGES]  # noqa: PLE0604  the stages are strings as well


def open(path: str | Path, device: str = "cpu") -> Predictor:  # noqa: A001  used as segdeploy.open
    """Open a checkpoint or artifact folder for prediction.

    Args:
        path: A folder that `segdeploy train` or `segdeploy export` wrote.
        device: `cpu` or `cuda`.

    Returns:
        A predictor: `.predict(image)` takes uint8 RGB (H, W, 3) and returns the label map at the
        image's own size; use it as a context manager, or `close` it.

    Raises:
        ArtifactError: If the folder is missing or damaged.
        BackendUnavailableError: If its runtime or the device is missing here.
    """
    from segdeploy.backends.predictor import open_predictor

    return open_predictor(Path(path), device)


def __getattr__(name: str) -> Any:
    if name in _STAGES:
        return importlib.import_module(f"segdeploy.{name}")
    raise AttributeError(f"module 'segdeploy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
