"""HTTP by the standard library: ranges, redirects, timeouts, and errors that say what to do.

A range is asked for with If-Range, so that a file that changed meanwhile comes whole (RFC 9110,
13.1.5). A redirect from https to anything else is refused.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from importlib import metadata
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from segdeploy.core.errors import DownloadError
from segdeploy.zoo.store.locations import scheme_of, shown
from segdeploy.zoo.store.stream import BrokenConnectionError, Stream

_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE_REFUSED = 416
_HINTS = {
    401: "The server wants a login: give an address that needs none, or one of fsspec (s3://).",
    403: "Access is denied: ask the owner of the store, or check that the address has not expired.",
    404: "The file is not there: check the address in the index.",
    410: "The file was taken away: ask for a newer index.",
}
_PASSING_ERRORS = (
    TimeoutError, ConnectionError, ssl.SSLEOFError, http.client.IncompleteRead,
    http.client.BadStatusLine,
)  # fmt: skip


def open_web(url: str, *, start: int = 0, validator: str = "", timeout_s: float = 30) -> Stream:
    """Ask for a file from byte `start` on.

    Raises:
        BrokenConnectionError: If another try may help.
        DownloadError: If not.
    """
    with _explained(url):
        try:
            response = build_opener(_Redirects).open(
                Request(url, headers=_headers(start, validator)),  # noqa: S310  http(s) only
                timeout=timeout_s,
            )
        except HTTPError as error:
            if error.code != _RANGE_REFUSED or not start:
                raise
            error.close()
            return open_web(url, timeout_s=timeout_s)
    return _stream(url, response, start)


def _headers(start: int, validator: str) -> dict[str, str]:
    headers = {"User-Agent": f"segdeploy/{metadata.version('segdeploy')}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator:
            headers["If-Range"] = validator
    return headers


def _stream(url: str, response: Any, start: int) -> Stream:
    def read(size: int) -> bytes:
        with _explained(url):
            content: bytes = response.read1(size)
            return content

    length = response.headers.get("Content-Length", "")
    first, total = 0, int(length) if length.isdecimal() else None
    if response.status == http.client.PARTIAL_CONTENT:
        first, total = _content_range(response.headers)
    if first not in {0, start}:
        response.close()
        raise DownloadError(f"{shown(url)} answered with bytes that were not asked for.")
    return Stream(read, response.close, first, total, _validator(response.headers))


def _content_range(headers: Message) -> tuple[int, int | None]:
    """The first byte and the whole length; an answer that does not say it starts nowhere: -1."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _validator(headers: Message) -> str:
    """The strong entity tag, else the date: If-Range knows no weak tags."""
    tag = headers.get("ETag", "")
    return str(headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag)


class _Redirects(HTTPRedirectHandler):
    """Redirects stay on http or go to https."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        if scheme_of(newurl) not in {"https", req.type}:
            fp.close()
            raise DownloadError(
                f"{shown(req.full_url)} redirects to {shown(newurl)}, which is refused.",
                hint="A redirect may go to https, or from http to http.",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what the standard library raises into our errors."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise _status_error(url, error.code, str(error.reason)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _network_error(url, error) from error


def _status_error(url: str, status: int, reason: str) -> DownloadError:
    kind = BrokenConnectionError if status in _PASSING else DownloadError
    hint = _HINTS.get(status, "The server is in trouble; try again later." if status >= 500 else "")
    return kind(f"{shown(url)} answered {status} {reason}.", hint=hint)


def _network_error(url: str, error: Exception) -> DownloadError:
    cause = error.reason if isinstance(error, URLError) else error
    said = f"Cannot fetch {shown(url)}: {cause or type(cause).__name__}."
    if isinstance(cause, _PASSING_ERRORS):
        return BrokenConnectionError(said, hint="Run it again: what arrived is kept.")
    if isinstance(cause, socket.gaierror):
        return DownloadError(said, hint="Check the server's name and this machine's network.")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DownloadError(said, hint="SSL_CERT_FILE names the certificates of a company.")
    return DownloadError(said)
