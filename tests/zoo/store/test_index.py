"""The index: what it must say, how addresses in it are read, and what comes with segdeploy."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from segdeploy.core.errors import BackendUnavailableError, ConfigError, UnknownNameError
from segdeploy.core.preprocess import SizeRule
from segdeploy.zoo.store import Entry, Format, Metrics, read_index
from segdeploy.zoo.store import cache as cache_module
from segdeploy.zoo.store.index import add_entry, decode_index
from segdeploy.zoo.store.locations import relate, resolve, shown

_SHA = "ab" * 32
_HEAD = "schema_version = 1\n"
_NET = f"""{_HEAD}
[weights.net]  # ours
model = "unet"
format = "checkpoint"
classes = ["a", "b"]
url = "net.tar"
sha256 = "{_SHA}"
"""


def _entry(name: str, **changes: Any) -> Entry:
    fields: dict[str, Any] = {
        "name": name, "model": "unet", "format": Format.CHECKPOINT, "classes": ("a", "b"),
        "url": "x.tar", "sha256": _SHA,
    }  # fmt: skip
    return Entry(**fields | changes)


@pytest.mark.parametrize(
    ("base", "location", "found"),
    [
        ("zoo/index.toml", "net.tar", "zoo/net.tar"),
        ("/srv/zoo/index.toml", "../net.tar", "/srv/zoo/../net.tar"),
        ("/srv/zoo/index.toml", "/other/net.tar", "/other/net.tar"),
        ("file:///srv/a%20b/index.toml", "net.tar", "/srv/a b/net.tar"),
        ("https://a.example/zoo/index.toml", "nets/net.tar", "https://a.example/zoo/nets/net.tar"),
        ("https://a.example/zoo/index.toml?sig=1", "net.tar", "https://a.example/zoo/net.tar"),
        ("https://a.example/zoo/index.toml", "../net.tar", "https://a.example/net.tar"),
        ("s3://bucket/zoo/index.toml", "net.tar", "s3://bucket/zoo/net.tar"),
        ("memory:///index.toml", "net.tar", "memory:///net.tar"),
        ("index.toml", "s3://bucket/net.tar", "s3://bucket/net.tar"),
    ],
)
def test_addresses_are_relative_to_the_index(base: str, location: str, found: str) -> None:
    assert resolve(base, location) == found


def test_addresses_below_the_index_are_written_relative_to_it(tmp_path: Path) -> None:
    index = str(tmp_path / "index.toml")
    assert relate(index, str(tmp_path / "nets" / "net.tar")) == "nets/net.tar"
    assert relate(index, f"file://{tmp_path}/net.tar") == "net.tar"
    assert relate(index, str(tmp_path.parent / "net.tar")) == str(tmp_path.parent / "net.tar")
    assert relate("s3://b/zoo/index.toml", "s3://b/zoo/net.tar") == "net.tar"
    assert relate("s3://b/zoo/index.toml", "s3://b/zoo2/net.tar") == "s3://b/zoo2/net.tar"


def test_messages_hide_passwords() -> None:
    assert shown("https://me:secret@a.example/x?key=secret#y") == "https://a.example/x"
    assert shown("folder/a?b") == "folder/a?b"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("schema_version = ", "TOML"),
        ("", "no schema_version"),
        ("schema_version = 1\nweights = 3", "not the index"),
        ("schema_version = 2", "newer segdeploy"),
        (_HEAD + "[weights]\nnet = 3", "'net' is not valid"),
        (_NET.replace(_SHA, "ab"), "sha256"),
        (_NET.replace(_SHA, _SHA.upper()), "sha256"),
        (_NET.replace("weights.net", 'weights."../net"'), "name"),
        (_NET.replace('"checkpoint"', '"pickle"'), "pickle"),
        (_NET.replace("url = ", "uri = "), "url"),
        (_NET + 'preprocess = { scale = "much" }', "scale"),
        (_NET + "preprocess = { scale = -1.0 }", "scale"),
        (_NET.replace("net.tar", "http://[/net.tar"), "'net' is not valid: A http://"),
        (_NET + "metrics = [{ data = 'a', mean_iou = nan }]", "not in"),
        (_NET + "metrics = [{ data = 'a', pixel_accuracy = 97.5 }]", "not in"),
        (_NET + "size_bytes = -1", "-1 bytes"),
        (_NET.replace('["a", "b"]', "0"), "0 classes"),
        (_NET.replace('["a", "b"]', "[]"), "0 classes"),
    ],
)
def test_what_is_no_index_is_a_config_error(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "index.toml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_index(str(path))
    assert said in str(caught.value)


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="fcn_resnet50-coco"):
        read_index().get("fcn_resnet50-cocoa")


def test_an_addition_keeps_what_is_there_and_a_replacement_keeps_the_others() -> None:
    added = add_entry(_NET.encode(), _entry("two", metrics=(Metrics(data="d", mean_iou=0.5),)), "i")
    assert added.decode().startswith(_NET.rstrip())
    plain = tomllib.loads(added.decode())["weights"]
    assert list(plain) == ["net", "two"]
    assert plain["two"]["metrics"] == [{"data": "d", "mean_iou": 0.5}]
    replaced = add_entry(added, _entry("net", url="new.tar"), "zoo/index.toml")
    found = decode_index(replaced, "zoo/index.toml")
    assert found.get("net").url == "zoo/new.tar"
    assert found.get("two").metrics[0].mean_iou == 0.5


def test_a_new_index_and_an_empty_one_get_their_head() -> None:
    for content in (b"", b"schema_version = 1"):
        assert decode_index(add_entry(content, _entry("a.b+c"), "i"), "i").get("a.b+c")


def test_the_index_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.toml").write_text(_NET)
    monkeypatch.setenv("SEGDEPLOY_ZOO", str(tmp_path / "index.toml"))
    assert list(read_index().entries) == ["net"]
    assert list(read_index(str(tmp_path / "index.toml")).entries) == ["net"]


def test_files_of_one_name_and_two_contents_do_not_meet_in_the_cache() -> None:
    first, second = _entry("a"), _entry("a", sha256="cd" * 32)
    assert cache_module.cached_file(first) != cache_module.cached_file(second)
    odd = cache_module.cached_file(_entry("a", url="https://a.example/..%2F..%2Fx y.pth?q=/z"))
    assert odd.parent == cache_module.cache_folder()
    assert odd.suffix == ".pth"


def test_the_cache_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SEGDEPLOY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.cache_folder() == tmp_path / "segdeploy" / "zoo"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGDEPLOY_CACHE")
    for package in ("platformdirs", "fsspec.core", "tomli_w"):
        monkeypatch.setitem(sys.modules, package, None)
    for attempt in (
        cache_module.cache_folder,
        lambda: read_index("memory://index.toml"),
        lambda: add_entry(b"", _entry("a"), "i"),
    ):
        with pytest.raises(BackendUnavailableError) as caught:
            attempt()
        assert "pip install 'segdeploy[zoo]'" in caught.value.hint


def test_the_packaged_index_says_what_torchvision_says() -> None:
    pytest.importorskip("torch")
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    from torchvision import models

    known = {
        name: next(iter(models.get_model_weights(name)))
        for name in models.list_models(models.segmentation)
    }
    entries = read_index().entries.values()
    assert {entry.model for entry in entries} == set(known)
    for entry in entries:
        weights = known[entry.model]
        scores = weights.meta["_metrics"]["COCO-val2017-VOC-labels"]
        assert entry.url == weights.url
        assert entry.url.endswith(f"-{entry.sha256}.pth")
        assert list(entry.classes) == weights.meta["categories"]  # type: ignore[arg-type]
        assert entry.metrics[0].mean_iou == pytest.approx(scores["miou"] / 100)
        assert entry.metrics[0].pixel_accuracy == pytest.approx(scores["pixel_acc"] / 100)
        assert str(weights) in entry.source
        transforms, preprocess = weights.transforms(), entry.preprocess
        assert preprocess is not None
        assert preprocess.size_rule is SizeRule.SHORTER_SIDE
        assert preprocess.size == (*transforms.resize_size, *transforms.resize_size)
        assert list(preprocess.mean) == transforms.mean
        assert list(preprocess.std) == transforms.std
        assert preprocess.kernel == transforms.interpolation.value
        assert preprocess.antialias == transforms.antialias
