"""The only door to torchvision.

A torchvision wheel whose compiled operators were built for another torch (say CUDA beside a CPU
torch) fails on import with "operator torchvision::nms does not exist", and takes timm,
torchmetrics and others down with it. Models, transforms and data sets need none of these
operators, so the two schemas that its import asks for are declared first when they are missing.
"""

from __future__ import annotations

import warnings
from types import ModuleType

from segdeploy.frameworks.interrupts import postponed_interrupts
from segdeploy.frameworks.torch import require_torch

_declared: list[object] = []  # A torch.library.Library must stay alive.


def prepare_torchvision() -> None:
    """Make `import torchvision` work here; call it before the first import of torchvision.

    Raises:
        BackendUnavailableError: If torch or torchvision is not installed.
    """
    torch = require_torch("torchvision")
    if _declared:
        return
    with postponed_interrupts():
        _declare_operators(torch)


def _declare_operators(torch: ModuleType) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Failed to load image Python extension": not used.
            import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        _import_again()
    else:
        _declared.append(torchvision)


def _import_again() -> None:
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchvision  # noqa: F401
