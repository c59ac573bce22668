"""A cache and an environment of the tests' own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; returns where its files will lie."""
    monkeypatch.setenv("SEGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGDEPLOY_ZOO", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "zoo"
