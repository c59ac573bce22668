"""Archives: the same folder gives the same bytes, and nothing unsafe comes out of one."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.core.errors import ArtifactError, CheckpointError
from segdeploy.core.folder import Checkpoint, load_checkpoint
from segdeploy.zoo.store.archive import pack, unpack


@pytest.fixture
def packed(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A sound archive."""
    path = tmp_path / "net.tar"
    path.write_bytes(pack(tiny_checkpoint))
    return path


def _unpack(packed: Path, out: Path) -> Checkpoint:
    return unpack(packed, out, model="lraspp_mobilenet_v3_small")


def test_a_folder_comes_back_byte_for_byte(
    tiny_checkpoint: Checkpoint, packed: Path, tmp_path: Path
) -> None:
    found = _unpack(packed, tmp_path / "out")
    assert found.manifest == tiny_checkpoint.manifest
    assert load_checkpoint(tmp_path / "out") == found
    for name in ("manifest.json", "weights.safetensors"):
        assert (found.path / name).read_bytes() == (tiny_checkpoint.path / name).read_bytes()


def test_bytes_depend_on_content_only_and_results_stay_out(
    tiny_checkpoint: Checkpoint, packed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint.path, copy, copy_function=shutil.copyfile)
    for file in copy.iterdir():
        file.chmod(0o600)
        os.utime(file, (1, 1))
    (copy / "eval.json").write_text("{}")
    (copy / "state.pt").write_text("training state")
    assert pack(load_checkpoint(copy)) == packed.read_bytes()
    (copy / "train.toml").write_text("seed = 1\n")
    with tarfile.open(fileobj=io.BytesIO(pack(load_checkpoint(copy)))) as archive:
        assert archive.getnames() == ["manifest.json", "weights.safetensors", "train.toml"]


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


_UNSAFE = {
    "climbs": _member("../manifest.json"),
    "absolute": _member("/tmp/manifest.json"),  # noqa: S108
    "below": _member("sub/manifest.json"),
    "unknown": _member("evil.py"),
    "link": _member("train.toml", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": _member("train.toml", tarfile.LNKTYPE, "/etc/passwd"),
    "folder": _member("train.toml", tarfile.DIRTYPE),
    "device": _member("train.toml", tarfile.CHRTYPE),
    "twice": _member("manifest.json"),
    "dots": _member(".."),
}


@pytest.mark.parametrize("unsafe", _UNSAFE)
def test_an_unsafe_member_is_refused_and_nothing_is_written(
    packed: Path, tmp_path: Path, unsafe: str
) -> None:
    with tarfile.open(packed, "a") as archive:
        archive.addfile(_UNSAFE[unsafe])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="is not a file of a checkpoint"):
        _unpack(packed, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_with_holes_is_refused(packed: Path, tmp_path: Path) -> None:
    """GNU's sparse files are small in the archive and as large outside as they like."""
    header = bytearray(tarfile.TarInfo("train.toml").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = packed.read_bytes()
    with tarfile.open(packed) as archive:
        end = max(m.offset_data + -(-m.size // 512) * 512 for m in archive)
    packed.write_bytes(content[:end] + bytes(header) + bytes(1024))
    with tarfile.open(packed) as archive:
        assert archive.getmember("train.toml").size == 1 << 32
    with pytest.raises(CheckpointError, match=r"train\.toml"):
        _unpack(packed, tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"not an archive" * 1000,
        lambda content: content[:700],
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"lraspp_mobilenet_v3_small", b"lraspp_mobilenet_v3_smalk"),
        lambda content: content[:-20_000] + b"x" + content[-19_999:],
    ],
)
def test_a_damaged_archive_is_a_checkpoint_error(
    packed: Path, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(CheckpointError, match=r"net\.tar"):
        _unpack(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["net.tar"]


def test_a_checkpoint_of_another_model_is_refused(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lraspp_mobilenet_v3_small, not of unet"):
        unpack(packed, tmp_path / "out", model="unet")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_not_replaced(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="will not be replaced"):
        _unpack(packed, out)
    assert (out / "thesis.txt").read_text() == "years of work"
    (out / "manifest.json").write_text(json.dumps({"an": "older one"}))
    assert _unpack(packed, out).manifest.model == "lraspp_mobilenet_v3_small"
    assert not (out / "thesis.txt").exists()
