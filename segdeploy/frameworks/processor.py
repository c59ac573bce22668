"""What this processor does, where the numbers of a runtime depend on it."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_VNNI = {"avx512_vnni", "avx_vnni"}
_X86 = {"x86_64", "amd64", "i386", "i686"}
_ISA_WITHOUT_VNNI = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}


@cache
def has_vnni() -> bool:
    """Return whether this processor sums products of bytes exactly (VNNI); False if unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _VNNI.isdisjoint(flags.split())


def onednn_saturates() -> bool:
    """Return whether oneDNN adds two products of bytes in int16 here, which can overflow.

    So it does on x86 without VNNI, or with VNNI kept from it by its own variable
    (https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
    """
    if platform.machine().lower() not in _X86:
        return False
    kept = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return kept in _ISA_WITHOUT_VNNI or not has_vnni()
