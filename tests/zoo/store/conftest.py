"""A cache of the tests' own, and a server that answers as it is told."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONTENT = np.random.default_rng(0).bytes(300_000)
Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; the site says how it is answered."""

    site: Site

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.site.requests.append((path, self.headers.get("Range")))
        queue = self.site.answers.get(path, [])
        (queue.pop(0) if queue else serve)(self)

    def log_message(self, *_: Any) -> None:
        pass


def _body(request: Request) -> tuple[bytes, int]:
    """Send the head of a right answer; return the content and the first byte wanted."""
    content = request.site.files.get(request.path.partition("?")[0])
    if content is None:
        request.send_error(404)
        return b"", 0
    tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
    first = int((request.headers.get("Range") or "bytes=0-")[6:-1])
    if request.headers.get("If-Range", tag) != tag:
        first = 0
    if first and first >= len(content):
        request.send_error(416)
        return b"", 0
    request.send_response(206 if first else 200)
    request.send_header("ETag", tag)
    request.send_header("Content-Length", str(len(content) - first))
    if first:
        request.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
    request.end_headers()
    return content, first


def serve(request: Request) -> None:
    """Answer as a good server does."""
    content, first = _body(request)
    request.wfile.write(content[first:])


def cut(size: int) -> Answer:
    """Announce all, send `size` bytes of what was asked for, close the connection."""

    def answer(request: Request) -> None:
        content, first = _body(request)
        request.wfile.write(content[first : first + size])

    return answer


def hang(size: int) -> Answer:
    """Send `size` bytes of what was asked for, then nothing until the test is over."""

    def answer(request: Request) -> None:
        content, first = _body(request)
        request.wfile.write(content[first : first + size])
        request.wfile.flush()
        request.site.closing.wait(30)

    return answer


def slow(seconds: float) -> Answer:
    """Serve, but rest in the middle."""

    def answer(request: Request) -> None:
        content, first = _body(request)
        request.wfile.write(content[first:100_000])
        request.wfile.flush()
        time.sleep(seconds)
        request.wfile.write(content[max(first, 100_000) :])

    return answer


def status(code: int) -> Answer:
    """Answer with an error."""
    return lambda request: request.send_error(code)


def redirect(target: str) -> Answer:
    """Send the client elsewhere."""

    def answer(request: Request) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def whole(content: bytes, *, length: bool = True) -> Answer:
    """Send this content from its beginning, whatever was asked for."""

    def answer(request: Request) -> None:
        request.send_response(200)
        if length:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def write_index(path: Path, url: str, content: bytes = CONTENT, **changes: Any) -> str:
    """Write an index with one entry `net`, and return its location."""
    fields = {
        "model": "unet", "format": "state_dict", "classes": 2, "url": url,
        "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content), **changes,
    }  # fmt: skip
    lines = [f"{k} = {v!r}" for k, v in fields.items() if v is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["schema_version = 1", "[weights.net]", *lines, ""]))
    return str(path)


@dataclass
class Site:
    """Files by path; `answers` are used up, one for each request, before normal service."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    # The answers, for tests, which import nothing from here.
    cut = staticmethod(cut)
    hang = staticmethod(hang)
    slow = staticmethod(slow)
    status = staticmethod(status)
    redirect = staticmethod(redirect)
    whole = staticmethod(whole)
    write_index = staticmethod(write_index)

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of all requests of a path."""
        return [asked for found, asked in self.requests if found == path]


@pytest.fixture
def site() -> Iterator[Site]:
    """A server on this machine with CONTENT at /net.pth."""
    handler = type("Bound", (Request,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    found = Site(f"http://127.0.0.1:{server.server_port}", {"/net.pth": CONTENT})
    handler.site = found  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def index(site: Site, tmp_path: Path) -> str:
    """An index whose entry `net` is CONTENT on the server."""
    return write_index(tmp_path / "index.toml", f"{site.url}/net.pth")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; returns where its files will lie."""
    monkeypatch.setenv("SEGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGDEPLOY_ZOO", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "zoo"
