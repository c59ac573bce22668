"""What all renderers of results share: how a file is read, and how its machine is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def read(name: str) -> Any:
    """Return a file of benchmarks/results/."""
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cpu_of(environment: Mapping[str, Any]) -> str:
    """Return the CPU of a result; what was written before its generation was gets it by its flags.

    Of CPUs called `AMD EPYC`, family 26 (Zen 5) has AVX-VNNI, and 25 has AVX-512 VNNI without.
    """
    name: str = environment["cpu"] or "a CPU"
    flags = environment.get("cpu_flags") or ()
    if name != "AMD EPYC" or "avx512_vnni" not in flags:
        return name
    return f"{name} (family {26 if 'avx_vnni' in flags else 25})"
