"""Files and folders are whole or absent: whatever raises, whoever is killed, however full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segdeploy.core import files
from segdeploy.core.errors import ArtifactError
from segdeploy.core.files import (
    canonical_json,
    digest_of,
    remove_leftovers,
    replacing_directory,
    sha256_file,
    write_bytes,
    write_json,
)
from segdeploy.core.lock import run_lock


def _folder(path: Path, mark: str) -> Path:
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(mark)
    (path / "samples").mkdir()
    (path / "samples" / "a.png").write_text(mark)
    return path


def _write_half(folder: Path, raised: type[BaseException]) -> None:
    (folder / "half").write_text("n")
    raise raised


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_sha256_is_that_of_the_standard_test_vector(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1.
    assert sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_equal_values_have_equal_bytes_and_digest() -> None:
    first: dict[str, Any] = {"b": [1, 2.5], "a": {"y": None, "x": "é"}}
    second: dict[str, Any] = {"a": {"x": "é", "y": None}, "b": [1, 2.5]}
    assert canonical_json(first) == canonical_json(second)
    assert canonical_json(first) == '{"a":{"x":"é","y":null},"b":[1,2.5]}'.encode()
    assert digest_of(first) == digest_of(second) != digest_of({"b": [1, 2.5]})


def test_written_bytes_replace_the_old_and_leave_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a.json", b"old")
    write_json(tmp_path / "a.json", {"new": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "new": 1\n}\n'
    assert _names(tmp_path) == ["a.json"]


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    write_bytes(target, b"old")

    def fsync(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ArtifactError, match=r"Cannot write .*a\.json: No space left"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert _names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("place", ["no/such/folder/a.json", "file/a.json", "x" * 300])
def test_an_impossible_place_is_an_artifact_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="Cannot write"):
        write_bytes(tmp_path / place, b"new")
    assert _names(tmp_path) == ["file"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = _folder(tmp_path / "onnx-fp32", "old")
    with replacing_directory(path) as temporary:
        (temporary / "model.onnx").write_text("new")
        assert (path / "manifest.json").read_text() == "old"
    assert _names(path) == ["model.onnx"]
    assert _names(tmp_path) == ["onnx-fp32"]


def test_parents_of_a_new_folder_are_made(tmp_path: Path) -> None:
    with replacing_directory(tmp_path / "runs" / "a" / "b") as temporary:
        (temporary / "x").write_text("1")
    assert (tmp_path / "runs" / "a" / "b" / "x").read_text() == "1"


@pytest.mark.parametrize("raised", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_block_that_raises_keeps_the_old_folder_and_its_exception(
    tmp_path: Path, raised: type[BaseException]
) -> None:
    path = _folder(tmp_path / "onnx-fp32", "old")
    with pytest.raises(raised), replacing_directory(path) as temporary:
        _write_half(temporary, raised)
    assert (path / "samples" / "a.png").read_text() == "old"
    assert _names(tmp_path) == ["onnx-fp32"]


def test_a_failing_write_in_the_block_is_an_artifact_error(tmp_path: Path) -> None:
    path = _folder(tmp_path / "onnx-fp32", "old")
    with (
        pytest.raises(ArtifactError, match="onnx-fp32") as caught,
        replacing_directory(path) as temporary,
    ):
        (temporary / "no" / "such" / "place").write_text("n")
    assert isinstance(caught.value.__cause__, OSError)
    assert (path / "manifest.json").read_text() == "old"


def test_without_an_exchange_system_call_folders_are_replaced_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_names: False)
    path = _folder(tmp_path / "onnx-fp32", "old")
    with replacing_directory(path) as temporary:
        (temporary / "manifest.json").write_text("new")
    assert _names(path) == ["manifest.json"]
    assert _names(tmp_path) == ["onnx-fp32"]


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("years of work")
    with pytest.raises(ArtifactError, match="in the way"), replacing_directory(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert _names(tmp_path) == ["thesis"]


def test_through_a_link_the_folder_behind_it_is_replaced(tmp_path: Path) -> None:
    real = _folder(tmp_path / "disk" / "real", "old")
    (tmp_path / "link").symlink_to(real)
    with replacing_directory(tmp_path / "link") as temporary:
        (temporary / "manifest.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (real / "manifest.json").read_text() == "new"
    assert _names(tmp_path) == ["disk", "link"]
    assert _names(tmp_path / "disk") == ["real"]


def test_leftovers_are_removed_at_the_next_lock_and_only_ours(tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = _folder(run / "onnx-fp32", "good")
    for place in (run, model, model / "samples"):
        (place / ".parity.json.0123abcd.tmp").write_text("half")
    _folder(run / ".onnx-int8.0123abcd.tmp", "half")
    (run / ".link.0123abcd.tmp").symlink_to(model)
    keep = [run / ".notes.tmp", run / "a.0123abcd.tmp", model / ".cache"]
    for file in keep:
        file.write_text("yours")
    with run_lock(run):
        assert _names(run) == [".notes.tmp", "a.0123abcd.tmp", "onnx-fp32"]
        assert _names(model) == [".cache", "manifest.json", "samples"]
        assert _names(model / "samples") == ["a.png"]
    assert all(file.read_text() == "yours" for file in keep)


def test_an_old_folder_whose_successor_was_lost_is_put_back(tmp_path: Path) -> None:
    _folder(tmp_path / ".onnx-fp32.0123abcd.old.tmp", "old")
    _folder(tmp_path / ".onnx-fp32.89abcdef.tmp", "perhaps half")
    remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["onnx-fp32"]
    assert (tmp_path / "onnx-fp32" / "manifest.json").read_text() == "old"


_REPLACING = """
import sys
from pathlib import Path
from segdeploy.core.files import replacing_directory, write_bytes
run = Path(sys.argv[1])
number = 0
while True:
    number += 1
    with replacing_directory(run / "model") as temporary:
        for name in ("a", "b", "c"):
            (temporary / name).write_text(str(number))
    write_bytes(run / "result.json", str(number).encode() * 1000)
    print(number, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_a_whole_folder(tmp_path: Path) -> None:
    for attempt in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", _REPLACING, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.003 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        contents = {(tmp_path / "model" / name).read_text() for name in ("a", "b", "c")}
        assert len(contents) == 1, "parts of two generations"
        result = (tmp_path / "result.json").read_text()
        assert result == result[: len(result) // 1000] * 1000
    with run_lock(tmp_path):
        assert _names(tmp_path) == ["model", "result.json"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where mounting is allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_keeps_old_files_and_leaves_no_part(small_disk: Path) -> None:
    path = _folder(small_disk / "onnx-fp32", "old")
    write_bytes(small_disk / "bench.json", b"old")
    with pytest.raises(ArtifactError, match="No space left"):
        write_bytes(small_disk / "bench.json", bytes(2**21))
    with (
        pytest.raises(ArtifactError, match="No space left"),
        replacing_directory(path) as temporary,
    ):
        (temporary / "model.onnx").write_bytes(bytes(2**21))
    assert (small_disk / "bench.json").read_bytes() == b"old"
    assert (path / "manifest.json").read_text() == "old"
    assert _names(small_disk) == ["bench.json", "onnx-fp32"]
