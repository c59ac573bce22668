"""A manifest reads back equal, or is refused; a changed byte is never believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import msgspec
import pytest

from segdeploy.core.contract import InputKind, IoContract, OutputKind, contract_tensors
from segdeploy.core.errors import ArtifactError, ManifestError
from segdeploy.core.manifest import (
    SCHEMA_VERSION,
    Link,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from segdeploy.core.preprocess import PreprocessSpec, SizeRule
from segdeploy.core.task import Task


def _manifest(**changes: Any) -> Manifest:
    io = IoContract(InputKind.IMAGE, OutputKind.LABELS)
    inputs, outputs = contract_tensors(io, Task.MULTICLASS, 3, (64, 96))
    manifest = Manifest(
        kind="artifact",
        model="unet",
        task=Task.MULTICLASS,
        classes=("Straße", "car", 'a "b"'),
        preprocess=PreprocessSpec(size_rule=SizeRule.FIXED, size=(64, 96)),
        inputs=inputs,
        outputs=outputs,
        files={"model.onnx": "ab" * 32},
        io=io,
        target="onnx-int8",
        parent=Link("cd" * 32, "../onnx-fp32"),
        reference=Link("ef" * 32, "../checkpoint"),
        design_size=(64, 96),
        trained=False,
        note="for people",
        options={"size": "dynamic", "nested": {"a": [1, 2.5, None, True]}},
        build_key="k",
        built_with={"torch": "2.13.0"},
        built_on="now",
        passed=True,
    )
    return manifest.replace(**changes)


def _signed(plain: dict[str, Any]) -> bytes:
    """A manifest file with a right checksum, made independently of the encoder."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({**plain, "checksum": checksum}).encode()


def _plain(manifest: Manifest) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    return plain


def test_a_manifest_reads_back_equal_with_its_types() -> None:
    manifest = _manifest()
    found = decode_manifest(encode_manifest(manifest), "here")
    assert found == manifest
    assert isinstance(found.io.output, OutputKind)
    assert isinstance(found.task, Task)


def test_options_that_json_changes_still_read_back() -> None:
    manifest = _manifest(options={1: (2, 3), 10: float("nan"), 9: "é"})
    found = decode_manifest(encode_manifest(manifest), "here")
    assert found.options == {"1": [2, 3], "10": None, "9": "é"}


def test_every_flipped_byte_is_detected_or_changes_nothing() -> None:
    manifest = _manifest()
    content = encode_manifest(manifest)
    harmless = 0
    for position in range(len(content)):
        for mask in (0x01, 0x20, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= mask
            try:
                found = decode_manifest(bytes(damaged), "here")
            except ArtifactError:
                continue
            harmless += 1
            assert found == manifest, f"byte {position} ^ {mask:#x} was believed"
    assert harmless < len(content) / 4  # Indentation only: the rest must have been found.


def test_every_truncation_is_detected() -> None:
    content = encode_manifest(_manifest())
    for length in range(len(content.rstrip())):
        with pytest.raises(ManifestError):
            decode_manifest(content[:length], "here")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 100_000,
        b'{"schema_version": "1"}', b'{"schema_version": 1}', b'{"schema_version": 1e999}',
        b"PK\x03\x04", b"\0" * 100,
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_a_manifest_error(content: bytes) -> None:
    with pytest.raises(ManifestError, match="here"):
        decode_manifest(content, "here")


def test_a_newer_schema_is_refused_with_the_cure() -> None:
    plain = _plain(_manifest()) | {"schema_version": SCHEMA_VERSION + 1, "new_field": 1}
    with pytest.raises(ManifestError, match="schema version") as caught:
        decode_manifest(_signed(plain), "here")
    assert "newer segdeploy" in caught.value.hint


def test_an_older_folder_without_the_fields_that_have_defaults_is_read() -> None:
    manifest = _manifest()
    plain = _plain(manifest)
    optional = [
        f.name
        for f in dataclasses.fields(Manifest)
        if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
    ]
    for name in optional:
        older = {k: v for k, v in plain.items() if k != name or name == "schema_version"}
        found = decode_manifest(_signed(older), "here")
        assert found == manifest or name != "schema_version"
    oldest = {k: v for k, v in plain.items() if k not in optional} | {"schema_version": 1}
    found = decode_manifest(_signed(oldest), "here")
    assert found.io == IoContract()
    assert found.passed is None
    assert found.files == manifest.files


def test_a_field_of_the_future_in_the_same_schema_is_ignored() -> None:
    plain = _plain(_manifest()) | {"colour": "blue"}
    assert decode_manifest(_signed(plain), "here") == _manifest()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "engine"),
        ("task", "panoptic"),
        ("classes", []),
        ("classes", ["a", "a", "b"]),
        ("classes", ["a", " "]),
        ("classes", "abc"),
        ("files", {"../weights": "0"}),
        ("files", {"/etc/passwd": "0"}),
        ("files", {"a\\b": "0"}),
        ("files", {"..": "0"}),
        ("files", {".": "0"}),
        ("files", {"": "0"}),
        ("files", {"a\0b": "0"}),
        ("files", ["model.onnx"]),
        ("preprocess", {"std": [0, 1, 1]}),
        ("preprocess", {"size_rule": "crop"}),
        ("preprocess", {"mean": [0, 1]}),
        ("io", {"input": "video"}),
        ("passed", "yes"),
        ("model", None),
    ],
)
def test_a_well_signed_but_senseless_field_is_a_manifest_error(name: str, value: object) -> None:
    plain = _plain(_manifest()) | {name: value}
    with pytest.raises(ManifestError, match="here is not valid"):
        decode_manifest(_signed(plain), "here")


@pytest.mark.parametrize("name", ["kind", "model", "task", "classes", "files", "preprocess"])
def test_a_missing_required_field_is_a_manifest_error(name: str) -> None:
    plain = {k: v for k, v in _plain(_manifest()).items() if k != name}
    with pytest.raises(ManifestError, match=name):
        decode_manifest(_signed(plain), "here")


def test_a_binary_task_has_exactly_one_class() -> None:
    with pytest.raises(ManifestError, match="binary"):
        _manifest(task=Task.BINARY)
    assert _manifest(task=Task.BINARY, classes=("person",)).classes == ("person",)


def test_identity_is_what_it_computes_not_what_was_found_out_later() -> None:
    manifest = _manifest()
    found_later: list[dict[str, Any]] = [
        {"passed": False},
        {"note": "other"},
        {"built_on": "later"},
        {"built_with": {}},
        {"parent": None},
    ]
    for change in found_later:
        assert manifest.replace(**change).digest == manifest.digest
    for other in (
        {"files": {"model.onnx": "00" * 32}},
        {"classes": ("a", "b", "c")},
        {"preprocess": PreprocessSpec()},
        {"target": "onnx-fp32"},
        {"io": IoContract()},
    ):
        assert manifest.replace(**other).digest != manifest.digest
