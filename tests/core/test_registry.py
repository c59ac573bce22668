"""A table of names is lazy, explicit, and forgiving about nothing but typing errors."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from segdeploy.core.errors import ConfigError, UnknownNameError
from segdeploy.core.registry import Registry

TABLE = {
    "lraspp_large": "thing_module_a:THING",
    "lraspp_small": "thing_module_b:THING",
    "unet": "thing_module_c:THING",
}


@pytest.fixture
def things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three importable modules that must not be imported before they are asked for."""
    for letter in "abc":
        (tmp_path / f"thing_module_{letter}.py").write_text(f"THING = {letter!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    for letter in "abc":
        monkeypatch.delitem(sys.modules, f"thing_module_{letter}", raising=False)
    return tmp_path


def _plug_in(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [metadata.EntryPoint(name, value, "test.things") for name, value in values.items()]

    def entry_points(*, group: str) -> list[metadata.EntryPoint]:
        return [p for p in points if p.group == group]

    monkeypatch.setattr(metadata, "entry_points", entry_points)


@pytest.mark.usefixtures("things")
def test_listing_imports_nothing_and_get_imports_one_module() -> None:
    registry: Registry[str] = Registry("thing", TABLE)
    assert list(registry) == registry.names() == sorted(TABLE)
    assert "unet" in registry
    assert "u-net" not in registry
    assert not [name for name in sys.modules if name.startswith("thing_module")]
    assert registry.get("unet") == "c"
    assert [name for name in sys.modules if name.startswith("thing_module")] == ["thing_module_c"]


def test_an_unknown_name_answers_with_the_nearest_and_where_to_look() -> None:
    registry: Registry[str] = Registry("loss", TABLE)
    with pytest.raises(UnknownNameError, match="Unknown loss 'lraspp_smal'") as caught:
        registry.get("lraspp_smal")
    assert "lraspp_small" in caught.value.hint
    assert "segdeploy list losses" in caught.value.hint


@pytest.mark.parametrize("name", ["", "zzzzzz", "42", "lraspp_large:THING", "../unet"])
def test_a_name_without_neighbours_lists_all_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        Registry[str]("thing", TABLE).get(name)
    assert "unet" in caught.value.hint or "lraspp" in caught.value.hint


@pytest.mark.usefixtures("things")
def test_plug_ins_add_names_but_do_not_hide_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(monkeypatch, extra="thing_module_b:THING", unet="thing_module_b:THING")
    registry: Registry[str] = Registry("thing", TABLE, entry_point_group="test.things")
    assert registry.names() == sorted([*TABLE, "extra"])
    assert registry.get("extra") == "b"
    assert registry.get("unet") == "c"


@pytest.mark.usefixtures("things")
def test_a_plug_in_may_name_a_nested_attribute_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    _plug_in(monkeypatch, extra="thing_module_b:THING.upper [gpu]")
    registry: Registry[object] = Registry("thing", {}, entry_point_group="test.things")
    upper = registry.get("extra")
    assert callable(upper)
    assert upper() == "B"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("broken_plugin:THING", "import surely_not_installed"),
        ("broken_plugin:THING", "def ("),
        ("broken_plugin:THING", "raise RuntimeError('no GPU')"),
        ("broken_plugin:LOST", "THING = 1"),
        ("broken_plugin", "THING = 1"),
        ("no_such_module:THING", ""),
        ("", ""),
    ],
)
def test_a_broken_plug_in_is_a_config_error_that_names_it(
    value: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    _plug_in(monkeypatch, bad=value)
    registry: Registry[str] = Registry("thing", TABLE, entry_point_group="test.things")
    with pytest.raises(ConfigError, match="plug-in thing 'bad'") as caught:
        registry.get("bad")
    assert caught.value.__cause__ is not None


def test_a_broken_entry_of_ours_keeps_its_own_exception() -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry[str]("thing", {"a": "no_such_module_of_ours:A"}).get("a")
