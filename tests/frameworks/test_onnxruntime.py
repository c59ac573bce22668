"""Session options that depend on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segdeploy.frameworks import onnxruntime, processor

ENTRY = "session.x64quantprecision"


@pytest.mark.parametrize(
    ("flags", "is_exact"),
    [("sse4_2 avx2", False), ("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), (None, False)],
)
def test_slow_exact_kernels_are_asked_for_only_without_vnni(
    flags: str | None, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_path: Path, **_settings: Any) -> str:
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags\t\t: fpu {flags} rdpid\nbugs :\n"

    monkeypatch.setattr(Path, "read_text", read)
    processor.has_vnni.cache_clear()
    try:
        options = onnxruntime.session_options()
    finally:
        processor.has_vnni.cache_clear()
    if is_exact:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry(ENTRY)
    else:
        assert options.get_session_config_entry(ENTRY) == "1"
