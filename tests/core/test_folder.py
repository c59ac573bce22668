"""Model folders: only whole ones open, and links find theirs wherever it was moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from segdeploy.core.contract import IoContract, contract_tensors
from segdeploy.core.errors import (
    ArtifactError,
    CheckpointError,
    DigestMismatchError,
    ManifestError,
)
from segdeploy.core.folder import (
    Artifact,
    Checkpoint,
    ModelFolder,
    find_linked,
    installed_versions,
    load_artifact,
    load_checkpoint,
    load_folder,
    mark_passed,
    save_folder,
)
from segdeploy.core.manifest import Link, Manifest, encode_manifest
from segdeploy.core.preprocess import PreprocessSpec
from segdeploy.core.task import Task

PAYLOAD = bytes(range(256)) * 8


def _manifest(kind: Any = "artifact", **changes: Any) -> Manifest:
    inputs, outputs = contract_tensors(IoContract(), Task.MULTICLASS, 2, None)
    name = "weights.safetensors" if kind == "checkpoint" else "model.onnx"
    manifest = Manifest(
        kind=kind,
        model="unet",
        task=Task.MULTICLASS,
        classes=("road", "car"),
        preprocess=PreprocessSpec(),
        inputs=inputs,
        outputs=outputs,
        files={name: ""},
        target=None if kind == "checkpoint" else "onnx-fp32",
    )
    return manifest.replace(**changes)


def _save(path: Path, kind: str = "artifact", content: bytes = PAYLOAD, **more: Any) -> ModelFolder:
    manifest = _manifest(kind, **more)

    def write(folder: Path) -> None:
        for name in manifest.files:
            (folder / name).write_bytes(content)
        (folder / "calibration.json").write_text("{}")

    return save_folder(path, manifest, write)


def test_a_saved_folder_opens_as_what_it_is(tmp_path: Path) -> None:
    for kind, cls in (("checkpoint", Checkpoint), ("artifact", Artifact)):
        saved = _save(tmp_path / kind, kind)
        opened = load_folder(tmp_path / kind)
        assert type(saved) is type(opened) is cls
        assert opened == saved
        assert opened.payload.read_bytes() == PAYLOAD
        assert opened.size_mib == len(PAYLOAD) / 2**20
        assert (opened.path / "calibration.json").exists()
    assert load_folder(tmp_path / "checkpoint").name == "pytorch-fp32"
    assert load_folder(tmp_path / "artifact").name == "onnx-fp32"


def test_versions_that_made_it_are_noted(tmp_path: Path) -> None:
    found = _save(tmp_path / "a").manifest
    assert found.built_with == installed_versions()
    assert {"numpy", "segdeploy"} <= set(found.built_with)
    assert found.built_on


@pytest.mark.parametrize("position", [0, 1, len(PAYLOAD) // 2, len(PAYLOAD) - 1])
def test_a_flipped_bit_of_the_payload_is_found(tmp_path: Path, position: int) -> None:
    payload = _save(tmp_path / "a").payload
    damaged = bytearray(PAYLOAD)
    damaged[position] ^= 1
    payload.write_bytes(damaged)
    with pytest.raises(DigestMismatchError, match=r"model\.onnx is damaged"):
        load_folder(tmp_path / "a")


@pytest.mark.parametrize("content", [b"", PAYLOAD[:-1], PAYLOAD + b"\0"])
def test_a_truncated_or_longer_payload_is_found(tmp_path: Path, content: bytes) -> None:
    _save(tmp_path / "a").payload.write_bytes(content)
    with pytest.raises(DigestMismatchError):
        load_folder(tmp_path / "a")


def test_a_missing_payload_is_named(tmp_path: Path) -> None:
    payload = _save(tmp_path / "a").payload
    payload.unlink()
    with pytest.raises(ArtifactError, match=r"lacks its file model\.onnx"):
        load_folder(tmp_path / "a")
    payload.mkdir()
    with pytest.raises(ArtifactError, match=r"lacks its file model\.onnx"):
        load_folder(tmp_path / "a")


def test_what_is_no_model_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.onnx").write_text("")
    for name, found in (
        ("lost", "no such folder"),
        ("empty", "no manifest.json in it"),
        ("file.onnx", "a file, not a folder"),
    ):
        with pytest.raises(ArtifactError, match=found) as caught:
            load_folder(tmp_path / name)
        assert "RUN/onnx-fp32" in caught.value.hint


def test_a_manifest_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(encode_manifest(_manifest(files={})))
    with pytest.raises(ManifestError, match="names no files"):
        load_folder(tmp_path)


def test_the_wrong_kind_is_refused_with_the_right_command(tmp_path: Path) -> None:
    _save(tmp_path / "c", "checkpoint")
    _save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="onnx-fp32") as caught:
        load_checkpoint(tmp_path / "a")
    assert "segdeploy train" in caught.value.hint
    with pytest.raises(ArtifactError, match="is a checkpoint") as other:
        load_artifact(tmp_path / "c")
    assert "segdeploy export" in other.value.hint
    assert isinstance(load_checkpoint(tmp_path / "c"), Checkpoint)
    assert isinstance(load_artifact(tmp_path / "a"), Artifact)


def test_a_build_that_raises_leaves_no_folder_and_keeps_an_older_one(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "new", _manifest(), write)
    _save(tmp_path / "old")
    with pytest.raises(KeyboardInterrupt):
        save_folder(tmp_path / "old", _manifest(), write)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert load_folder(tmp_path / "old").payload.read_bytes() == PAYLOAD


def test_a_promised_file_that_was_not_written_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        save_folder(tmp_path / "new", _manifest(), lambda _folder: None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_text("dear")
    with pytest.raises(ArtifactError, match="will not be replaced"):
        _save(photos)
    assert (photos / "holiday.jpg").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    _save(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").unlink()  # Ours, though damaged.
    _save(tmp_path / "empty")
    assert load_folder(tmp_path / "empty")


def test_the_verdict_is_written_and_leaves_the_identity_alone(tmp_path: Path) -> None:
    saved = _save(tmp_path / "a")
    for verdict in (True, False):
        mark_passed(saved, verdict)
        found = load_folder(tmp_path / "a")
        assert found.manifest.passed is verdict
        assert found.manifest.digest == saved.manifest.digest


@pytest.fixture
def linked(tmp_path: Path) -> tuple[ModelFolder, ModelFolder]:
    """A checkpoint, and an artifact beside it that links to it."""
    checkpoint = _save(tmp_path / "run" / "checkpoint", "checkpoint")
    place = tmp_path / "run" / "onnx-fp32"
    return checkpoint, _save(place, reference=checkpoint.link_from(place))


def _found(artifact: ModelFolder) -> ModelFolder | None:
    opened = load_folder(artifact.path)
    return find_linked(opened, opened.manifest.reference)


def test_a_link_is_found_at_its_hint(linked: tuple[ModelFolder, ModelFolder]) -> None:
    checkpoint, artifact = linked
    assert artifact.manifest.reference == Link(checkpoint.manifest.digest, "../checkpoint")
    assert _found(artifact) == checkpoint
    assert find_linked(artifact, None) is None


def test_a_link_is_found_beside_after_both_moved_or_were_renamed(
    linked: tuple[ModelFolder, ModelFolder], tmp_path: Path
) -> None:
    _save(tmp_path / "run" / "another", "checkpoint", b"other")
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / "renamed")
    (tmp_path / "run").rename(tmp_path / "moved")
    found = find_linked(load_folder(tmp_path / "moved" / "onnx-fp32"), linked[1].manifest.reference)
    assert found is not None
    assert found.path == tmp_path / "moved" / "renamed"


def test_a_link_is_found_when_the_artifact_is_opened_as_dot(
    linked: tuple[ModelFolder, ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "checkpoint").rename(tmp_path / "run" / "renamed")
    monkeypatch.chdir(linked[1].path)
    opened = load_folder(Path())
    assert opened.path.name == "onnx-fp32"
    assert find_linked(opened, opened.manifest.reference) is not None


def test_a_different_checkpoint_at_the_hint_is_not_taken(
    linked: tuple[ModelFolder, ModelFolder],
) -> None:
    checkpoint, artifact = linked
    _save(checkpoint.path, "checkpoint", b"trained again")
    assert _found(artifact) is None


def test_a_damaged_or_missing_reference_is_not_taken(
    linked: tuple[ModelFolder, ModelFolder],
) -> None:
    checkpoint, artifact = linked
    checkpoint.payload.write_bytes(b"damaged")
    assert _found(artifact) is None
    shutil.rmtree(checkpoint.path)
    assert _found(artifact) is None


@pytest.mark.parametrize("hint", ["", "/etc", "../../../..", "a\0b", "x" * 5000, "../loop"])
def test_a_nonsense_hint_does_no_harm(
    linked: tuple[ModelFolder, ModelFolder], hint: str, tmp_path: Path
) -> None:
    checkpoint, artifact = linked
    (tmp_path / "run" / "loop").symlink_to("loop")
    found = find_linked(artifact, Link(checkpoint.manifest.digest, hint))
    assert found == checkpoint  # Found beside.
    assert find_linked(artifact, Link("00" * 32, hint)) is None
