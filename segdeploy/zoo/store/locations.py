"""Where an index or a file of it lies: a path, `file://`, `http(s)://`, or any URL of fsspec."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import url2pathname

from segdeploy.core.errors import ConfigError


def scheme_of(location: str) -> str:
    """Return the scheme in lower case; a path has none."""
    scheme, mark, _ = location.partition("://")
    return scheme.lower() if mark else ""


def split(location: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return urlsplit(location)
    except ValueError as error:  # Its text may hold a password: only the scheme is shown.
        raise ConfigError(f"A {scheme_of(location)}:// address is not valid: {error}.") from error


def is_web(location: str) -> bool:
    """Return True for http and https."""
    return scheme_of(location) in {"http", "https"}


def local_path(location: str) -> Path | None:
    """Return the path on this machine, or None for an address elsewhere."""
    scheme = scheme_of(location)
    if scheme == "file":
        return Path(url2pathname(split(location).path))
    return None if scheme else Path(location)


def resolve(base: str, location: str) -> str:
    """Return `location` as seen from the file at `base`: one with a scheme is already whole.

    Raises:
        ConfigError: If it is no address.
    """
    if scheme_of(location):
        split(location)
        return location
    path = local_path(base)
    if path is not None:
        return str(path.parent / location)
    scheme, _, rest = base.partition("://")
    joined = urljoin(f"http://{rest}", location)  # urljoin leaves schemes alone that it ignores.
    return scheme + joined.removeprefix("http")


def relate(base: str, location: str) -> str:
    """Return `location` relative to the file at `base` where it lies beside or below it."""
    path, target = local_path(base), local_path(location)
    if path is not None and target is not None:
        folder, target = path.resolve().parent, target.resolve()
        inside = target.is_relative_to(folder)
        return target.relative_to(folder).as_posix() if inside else str(target)
    folder_url = base.rpartition("/")[0] + "/"
    return location.removeprefix(folder_url)


def shown(location: str) -> str:
    """Return it for messages: without a password, and without a query that may hold a signature."""
    if not scheme_of(location):
        return location
    parts = split(location)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
