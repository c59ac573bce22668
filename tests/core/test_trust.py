"""Code that a file names needs permission; names of the zoo never do."""

from __future__ import annotations

import os

import pytest

from segdeploy.core.errors import CheckpointError
from segdeploy.core.trust import (
    ALLOW_CODE,
    allow_code,
    check_trusted,
    is_callable_name,
    is_code_allowed,
)


@pytest.fixture(autouse=True)
def _no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_CODE, "")


@pytest.mark.parametrize("name", ["os:system", "my.nets:Net", "_a._b:c.d", "näme:f"])
def test_callables_are_refused_until_code_is_allowed(name: str) -> None:
    assert is_callable_name(name)
    with pytest.raises(CheckpointError, match="code would be imported") as caught:
        check_trusted(name, "runs/x")
    assert "--allow-code" in caught.value.hint
    allow_code()
    assert os.environ[ALLOW_CODE] == "1"  # Child processes inherit it.
    check_trusted(name, "runs/x")


@pytest.mark.parametrize(
    "name", ["unet", "unet_timm/resnet50.a1_in1k", "unet_timm/hf_hub:a/b", "a:", ":b", "a b:c", ""]
)
def test_other_names_are_no_code(name: str) -> None:
    assert not is_callable_name(name)
    check_trusted(name, "runs/x")


@pytest.mark.parametrize(("value", "is_allowed"), [("", False), ("0", False), ("1", True)])
def test_the_environment_gives_permission(
    monkeypatch: pytest.MonkeyPatch, value: str, is_allowed: bool
) -> None:
    monkeypatch.setenv(ALLOW_CODE, value)
    assert is_code_allowed() is is_allowed
