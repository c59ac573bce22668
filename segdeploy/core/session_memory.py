"""Memory of a child and all that it started: its session, read from /proc without a library."""

from __future__ import annotations

import os


def session_memory_mib(session: int) -> float | None:
    """Return the resident memory of all processes of a session, in MiB; None without /proc.

    Pages that several processes share are counted in each.
    """
    pages, found = 0, False
    try:
        entries = os.listdir("/proc")  # noqa: PTH208  plain calls: this runs all the time
    except OSError:
        return None
    for entry in entries:
        if not entry.isdecimal():
            continue
        try:
            # After the name, which may hold anything: state, parent, group, session.
            if int(_read(f"/proc/{entry}/stat").rpartition(b")")[2].split()[3]) == session:
                pages += int(_read(f"/proc/{entry}/statm").split()[1])
                found = True
        except (OSError, IndexError, ValueError):
            continue  # It has just ended.
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20 if found else None


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        return os.read(handle, 4096)
    finally:
        os.close(handle)
