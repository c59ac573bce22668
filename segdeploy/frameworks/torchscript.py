"""The door to torch.jit, deprecated since torch 2.13: its warnings stop here."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeploy.frameworks.torch import require_torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def _no_warnings() -> Iterator[None]:
    """torch.jit warns of its own deprecation, and of Python values that a trace cannot follow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace_module(module: nn.Module, sample: Tensor) -> Any:
    """Return the module as a frozen TorchScript module, traced at `sample`.

    Freezing folds batch norm into convolutions: about half the latency, and rounding differences
    of the size that any other fp32 runtime has.
    """
    torch = require_torch()
    with _no_warnings(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), sample, check_trace=False)
        return torch.jit.freeze(traced.eval())


def save_script(script: Any, path: Path, extra_files: Mapping[str, str]) -> None:
    """Write a TorchScript module to a file, with texts that travel inside it.

    Through memory: torch's own writer aborts the whole process when the disk is full. Without the
    debug records, which hold stack traces and paths of this machine: equal modules, equal bytes.
    """
    torch = require_torch()
    buffer = io.BytesIO()
    with _no_warnings():
        torch.jit.save(script, buffer, _extra_files=dict(extra_files))
    path.write_bytes(_without_debug_records(buffer).getbuffer())


_OWN_RECORDS = ("version", "byteorder", ".data/serialization_id")  # The writer adds these itself.


def _without_debug_records(archive: io.BytesIO) -> io.BytesIO:
    torch = require_torch()
    archive.seek(0)
    reader = torch._C.PyTorchFileReader(archive)  # noqa: SLF001  jit.save has no such option
    kept = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(kept)  # noqa: SLF001
    for name in reader.get_all_records():
        if name not in _OWN_RECORDS and not name.endswith(".debug_pkl"):
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return kept


def load_script(path: Path, device: str) -> Any:
    """Return the TorchScript module of a file on a device. A TorchScript file is code."""
    torch = require_torch()
    with _no_warnings():
        return torch.jit.load(str(path), map_location=device)
