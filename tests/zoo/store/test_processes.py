"""Several processes, a kill, Ctrl-C and a full disk leave whole files or none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segdeploy.zoo.store import Patience, Pulled, pull

if TYPE_CHECKING:
    from tests.zoo.store.conftest import Request, Site

CONTENT = np.random.default_rng(0).bytes(300_000)
PATIENCE = Patience(timeout_s=0.5, retries=3, backoff_s=0.01)


def _pull(index: str, **options: Any) -> Pulled:
    return pull("net", index=index, patience=PATIENCE, **options)


def _parts(cache: Path) -> list[int]:
    return [part.stat().st_size for part in cache.glob("*.part")]


_PULL = """
import sys
from segdeploy.zoo.store import Patience, pull
pull("net", index=sys.argv[1], patience=Patience(timeout_s=20, retries=0))
"""


@contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, *arguments], text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_of_several_processes_one_fetches_and_the_others_wait(
    site: Site, index: str, cache: Path
) -> None:
    site.answers["/net.pth"] = [site.slow(1.5)]
    with ExitStack() as stack:
        children = [stack.enter_context(_process("-c", _PULL, index)) for _ in range(3)]
        for child in children:
            _, err = child.communicate(timeout=60)
            assert child.returncode == 0, err
    assert len(site.requests) == 1
    assert [file.read_bytes() for file in cache.iterdir()] == [CONTENT]


def test_who_waited_for_a_process_that_failed_fetches_itself(
    site: Site, index: str, cache: Path
) -> None:
    def slowly_wrong(request: Request) -> None:
        time.sleep(1.5)
        site.whole(bytes(len(CONTENT)))(request)

    site.answers["/net.pth"] = [slowly_wrong]
    with _process("-c", _PULL, index) as first:
        _wait_for(lambda: site.requests)
        with _process("-c", _PULL, index) as second:
            for child, code in ((first, 1), (second, 0)):
                _, err = child.communicate(timeout=60)
                assert child.returncode == code, err
    assert [file.read_bytes() for file in cache.iterdir()] == [CONTENT]


def test_a_killed_process_leaves_a_part_and_no_lock(site: Site, index: str, cache: Path) -> None:
    site.answers["/net.pth"] = [site.hang(100_000)]
    with _process("-c", _PULL, index):
        _wait_for(lambda: sum(_parts(cache)) > 0)
    left = _parts(cache)[0]
    assert 0 < left <= 100_000
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.ranges("/net.pth") == [None, f"bytes={left}-"]


def test_ctrl_c_is_exit_130_and_keeps_what_arrived(site: Site, index: str, cache: Path) -> None:
    site.answers["/net.pth"] = [site.hang(100_000)]
    with _process("-m", "segdeploy", "zoo", "pull", "net", "--index", index) as child:
        _wait_for(lambda: sum(_parts(cache)) > 0)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    left = _parts(cache)[0]
    assert _pull(index).file.read_bytes() == CONTENT
    assert site.ranges("/net.pth") == [None, f"bytes={left}-"]


def test_a_full_disk_is_an_error_and_nothing_is_left(site: Site, index: str, cache: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))\n"
    with _process("-c", limited + _PULL, index) as child:
        _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "ArtifactError: Cannot write" in err
    assert list(cache.iterdir()) == []
    assert len(site.requests) == 1
