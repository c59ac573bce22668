"""Files come whole or not at all, whatever the server, the disk or the user does."""

from __future__ import annotations

import hashlib
import io
import socket
import time
import urllib.request
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from segdeploy.core.errors import DigestMismatchError, DownloadError
from segdeploy.zoo.store import Patience, Pulled, State, pull, read_index, verify
from segdeploy.zoo.store.web import _Redirects

if TYPE_CHECKING:
    from tests.zoo.store.conftest import Request, Site

CONTENT = np.random.default_rng(0).bytes(300_000)
PATIENCE = Patience(timeout_s=0.5, retries=3, backoff_s=0.01)


def _pull(index: str, **options: Any) -> Pulled:
    return pull("net", index=index, patience=PATIENCE, **options)


def _parts(cache: Path) -> list[int]:
    return [part.stat().st_size for part in cache.glob("*.part")]


def test_a_file_is_fetched_once_and_then_found(site: Site, index: str, cache: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    pulled = _pull(index, progress=lambda done, total: seen.append((done, total)))
    assert pulled.file.read_bytes() == CONTENT
    assert pulled.file.suffix == ".pth"
    assert [path.name for path in cache.iterdir()] == [pulled.file.name]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert _pull(index).file == pulled.file
    assert len(site.requests) == 1


def test_a_cut_connection_is_continued_where_it_broke(site: Site, index: str) -> None:
    site.answers["/net.pth"] = [site.cut(100_000), site.cut(50_000)]
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.ranges("/net.pth") == [None, "bytes=100000-", "bytes=150000-"]


def test_progress_earns_more_tries_than_patience_has(site: Site, index: str) -> None:
    site.answers["/net.pth"] = [site.cut(20_000) for _ in range(2 * PATIENCE.retries)]
    assert _pull(index).file.read_bytes() == CONTENT


def test_a_server_that_always_cuts_at_the_same_place_is_given_up(
    site: Site, index: str, cache: Path
) -> None:
    """It ignores Range, so each try begins anew: bytes flow, but there is no progress."""

    def stuck(request: Request) -> None:
        del request.headers["Range"]
        site.cut(70_000)(request)

    site.answers["/net.pth"] = [stuck] * 50
    with pytest.raises(DownloadError, match="broke after 70000 of 300000"):
        _pull(index)
    assert len(site.requests) == 1 + PATIENCE.retries
    assert _parts(cache) == [70_000]


def test_the_next_process_continues(site: Site, index: str, cache: Path) -> None:
    site.answers["/net.pth"] = [site.cut(100_000), *[site.status(503)] * 4]
    with pytest.raises(DownloadError, match="503"):
        _pull(index)
    assert _parts(cache) == [100_000]
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.ranges("/net.pth")[-1] == "bytes=100000-"
    assert _parts(cache) == []


def test_a_server_that_ignores_ranges_starts_over(site: Site, index: str) -> None:
    site.answers["/net.pth"] = [site.cut(100_000), site.whole(CONTENT)]
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.ranges("/net.pth") == [None, "bytes=100000-"]


def test_content_that_changes_between_two_tries_comes_whole(site: Site, tmp_path: Path) -> None:
    """If-Range: the second answer is the new content from its beginning."""
    index = site.write_index(tmp_path / "index.toml", f"{site.url}/net.pth")
    site.files["/net.pth"] = bytes(len(CONTENT))

    def cut_then_replace(request: Request) -> None:
        site.cut(100_000)(request)
        site.files["/net.pth"] = CONTENT

    site.answers["/net.pth"] = [cut_then_replace]
    assert _pull(index).file.read_bytes() == CONTENT
    assert len(site.requests) == 2


def test_a_part_of_other_content_is_thrown_away(site: Site, index: str, cache: Path) -> None:
    part = cache / f"{hashlib.sha256(CONTENT).hexdigest()[:16]}-net.pth.part"
    cache.mkdir(parents=True)
    for left in (bytes(1000), bytes(len(CONTENT)), bytes(len(CONTENT) + 5)):
        part.write_bytes(left)
        pulled = _pull(index)
        assert pulled.file.read_bytes() == CONTENT
        assert site.ranges("/net.pth")[-1] is None
        pulled.file.unlink()


def test_a_whole_part_needs_no_request(site: Site, index: str, cache: Path) -> None:
    """The process was killed between the last byte and the name."""
    cache.mkdir(parents=True)
    part = cache / f"{hashlib.sha256(CONTENT).hexdigest()[:16]}-net.pth.part"
    part.write_bytes(CONTENT)
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.requests == []


@pytest.mark.parametrize("served", [bytes(300_000), CONTENT[:-1], CONTENT + b"x", b"<html>login"])
@pytest.mark.parametrize("length", [True, False])
def test_wrong_bytes_are_refused_and_not_kept(
    site: Site, index: str, cache: Path, served: bytes, length: bool
) -> None:
    site.answers["/net.pth"] = [site.whole(served, length=length)] * 9
    with pytest.raises(DigestMismatchError, match="index says") as caught:
        _pull(index)
    if len(served) == len(CONTENT):
        assert hashlib.sha256(served).hexdigest() in str(caught.value)
        assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert list(cache.iterdir()) == []


def test_a_shortened_digest_and_no_size_still_find_damage(site: Site, tmp_path: Path) -> None:
    prefix = hashlib.sha256(CONTENT).hexdigest()[:8]
    index = site.write_index(
        tmp_path / "index.toml", f"{site.url}/net.pth", sha256=prefix, size_bytes=None
    )
    site.answers["/net.pth"] = [site.whole(CONTENT[:-1] + b"x")]
    with pytest.raises(DigestMismatchError):
        _pull(index)
    site.answers["/net.pth"] = [site.cut(1000)]
    assert _pull(index).file.read_bytes() == CONTENT


def test_a_damaged_cached_file_is_found_and_fetched_again(site: Site, index: str) -> None:
    file = _pull(index).file
    file.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
    assert [f.state for f in verify(index=index)] == [State.DAMAGED]
    with pytest.raises(DigestMismatchError, match="damaged"):
        _pull(index, offline=True)
    assert _pull(index).file.read_bytes() == CONTENT
    assert [f.state for f in verify(["net"], index=index)] == [State.OK]
    assert len(site.requests) == 2


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final(site: Site, index: str, cache: Path, code: int) -> None:
    site.answers["/net.pth"] = [site.status(code)]
    with pytest.raises(DownloadError, match=f"net.pth answered {code}") as caught:
        _pull(index)
    assert caught.value.hint
    assert caught.value.exit_code == 2
    assert len(site.requests) == 1
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("code", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(site: Site, index: str, code: int) -> None:
    site.answers["/net.pth"] = [site.status(code)] * PATIENCE.retries
    assert _pull(index).file.read_bytes() == CONTENT
    assert len(site.requests) == 1 + PATIENCE.retries


def test_a_server_that_stays_in_trouble_is_given_up(site: Site, index: str) -> None:
    site.answers["/net.pth"] = [site.status(500)] * 50
    with pytest.raises(DownloadError, match="answered 500"):
        _pull(index)
    assert len(site.requests) == 1 + PATIENCE.retries


def test_a_silent_server_times_out_and_is_asked_again(site: Site, index: str) -> None:
    site.answers["/net.pth"] = [site.hang(100_000)]
    began = time.monotonic()
    assert _pull(index).file.read_bytes() == CONTENT
    assert time.monotonic() - began < 10 * PATIENCE.timeout_s
    assert site.ranges("/net.pth") == [None, "bytes=100000-"]


def test_a_dead_server_and_an_unknown_name_are_clear_errors(site: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    index = site.write_index(tmp_path / "index.toml", f"http://127.0.0.1:{port}/net.pth")
    with pytest.raises(DownloadError, match=r"Cannot fetch http://127.0.0.1.*refused"):
        _pull(index)
    index = site.write_index(tmp_path / "index.toml", "https://no-such-host.invalid/net.pth")
    with pytest.raises(DownloadError, match=r"no-such-host\.invalid") as caught:
        _pull(index)
    assert "network" in caught.value.hint


def test_redirects_are_followed_and_endless_ones_are_not(site: Site, index: str) -> None:
    site.files["/moved"] = CONTENT
    site.answers["/net.pth"] = [site.redirect("/moved")]
    site.answers["/moved"] = [site.cut(1000)]
    assert _pull(index).file.read_bytes() == CONTENT
    site.answers["/net.pth"] = [site.redirect("/net.pth")] * 99
    _pull(index).file.unlink()
    with pytest.raises(DownloadError, match="302"):
        _pull(index)


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/net.pth", "file:///etc/hostname"])
def test_redirects_to_other_protocols_are_refused(site: Site, index: str, target: str) -> None:
    site.answers["/net.pth"] = [site.redirect(target)]
    with pytest.raises(DownloadError, match=r"refused|not allowed"):
        _pull(index)


@pytest.mark.parametrize(
    ("old", "new", "is_refused"),
    [("https", "http", True), ("https", "https", False), ("http", "http", False),
     ("http", "https", False)],
)  # fmt: skip
def test_a_redirect_never_leaves_https(old: str, new: str, is_refused: bool) -> None:
    request = urllib.request.Request(f"{old}://a.example/net.pth")  # noqa: S310
    follow = _Redirects().redirect_request
    arguments = (request, io.BytesIO(), 302, "Found", Message(), f"{new}://b.example/net.pth")
    if is_refused:
        with pytest.raises(DownloadError, match="refused"):
            follow(*arguments)
    else:
        found = follow(*arguments)
        assert found is not None
        assert found.full_url == f"{new}://b.example/net.pth"


def test_passwords_and_signatures_are_not_shown(site: Site, tmp_path: Path) -> None:
    index = site.write_index(tmp_path / "index.toml", f"{site.url}/gone?X-Signature=secret")
    with pytest.raises(DownloadError) as caught:
        _pull(index)
    assert "gone answered 404" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_answer_from_another_place_of_the_file_is_refused(site: Site, index: str) -> None:
    def shifted(request: Request) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}")
        request.end_headers()

    site.answers["/net.pth"] = [site.cut(1000), shifted]
    with pytest.raises(DownloadError, match="not asked for"):
        _pull(index)
    assert _pull(index).file.read_bytes() == CONTENT


def test_offline_never_asks(site: Site, index: str) -> None:
    with pytest.raises(DownloadError, match="not in the cache") as caught:
        _pull(index, offline=True)
    assert "without --offline" in caught.value.hint
    _pull(index)
    assert _pull(index, offline=True).file.read_bytes() == CONTENT
    assert len(site.requests) == 1


def test_a_remote_index_is_kept_for_offline(site: Site, tmp_path: Path) -> None:
    index = f"{site.url}/zoo/index.toml"
    site.write_index(tmp_path / "index.toml", "../net.pth")
    with pytest.raises(DownloadError, match="no copy of the index"):
        read_index(index, offline=True)
    site.files["/zoo/index.toml"] = (tmp_path / "index.toml").read_bytes()
    site.answers["/zoo/index.toml"] = [site.cut(60), site.status(500)]
    assert _pull(index).file.read_bytes() == CONTENT
    site.requests.clear()
    assert read_index(index, offline=True).get("net").url == f"{site.url}/net.pth"
    assert _pull(index, offline=True).file.read_bytes() == CONTENT
    assert site.requests == []
