"""Both fast forms equal the reference on every pixel, whatever the logits."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeploy.core.task import Task
from segdeploy.upsampling import Upsampler, kernel, reference_labels, upsample_labels
from segdeploy.upsampling.kernel import Form, compiled_form
from segdeploy.upsampling.labels import numpy_form
from segdeploy.upsampling.reference import find_axis

Logits = NDArray[np.float32]
FORMS = {"numpy": numpy_form, "compiled": compiled_form(1), "threads": compiled_form(2, 64)}


def make_logits(kind: str, shape: tuple[int, int, int, int], seed: int) -> Logits:
    rng = np.random.default_rng(seed)
    return MAKERS[kind](rng, rng.normal(size=shape).astype(np.float32))


def _smooth(rng: np.random.Generator, noise: Logits) -> Logits:
    """Large regions of one class, as of a trained model."""
    n, k, h, w = noise.shape
    y, x = np.mgrid[:h, :w] / max(h, w)
    waves = rng.normal(size=(n, k, 3, 1, 1)) * 9
    found: Logits = np.sin(waves[:, :, 0] * y + waves[:, :, 1] * x + waves[:, :, 2]).astype("f4")
    return found


def _one_ulp(rng: np.random.Generator, noise: Logits) -> Logits:
    """Two classes, everywhere so close that interpolation may tie them."""
    logits = np.minimum(noise, 0)
    base = 1 + np.abs(noise[:, 0])
    ahead = rng.integers(0, rng.choice([2, 4, 40]), base.shape).astype(np.float32)
    logits[:, 0] = base
    logits[:, -1] = base + ahead * np.spacing(base)
    return logits


def _not_finite(rng: np.random.Generator, noise: Logits) -> Logits:
    wrong = np.asarray([np.nan, np.inf, -np.inf], np.float32)[rng.integers(0, 3, noise.shape)]
    return np.where(rng.random(noise.shape) < rng.choice([0.02, 0.5]), wrong, noise)


def _huge(_: np.random.Generator, noise: Logits) -> Logits:
    limit = np.finfo(np.float32).max
    with np.errstate(over="ignore"):
        found: Logits = np.clip(noise * np.float32(3e38), -limit, limit)
    return found


def _mixed(rng: np.random.Generator, noise: Logits) -> Logits:
    powers = rng.integers(-44, 38, (*noise.shape[:2], 1, 1)).astype(np.float32)
    found: Logits = noise * np.float32(10) ** powers
    return found


MAKERS: dict[str, Callable[[np.random.Generator, Logits], Logits]] = {
    "smooth": _smooth,
    "noise": lambda _, noise: noise,
    "quantised": lambda _, noise: (np.round(noise * 3) * np.float32(0.173)).astype(np.float32),
    "equal": lambda _, noise: np.full_like(noise, noise.flat[0]),
    "one-ulp": _one_ulp,
    "not-finite": _not_finite,
    "huge": _huge,
    "denormal": lambda rng, noise: (rng.integers(-9, 9, noise.shape) * 1e-45).astype(np.float32),
    "mixed": _mixed,
}


def check(logits: Logits, size: tuple[int, int], align_corners: bool, task: Task) -> None:
    expected = reference_labels(logits, size, align_corners=align_corners, task=task)
    num_labels = logits.shape[1]
    for name, form in FORMS.items():
        found = upsample_labels(
            logits, size, align_corners=align_corners, task=task, num_labels=num_labels, form=form
        )
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected), (name, int((found != expected).sum()))


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_multiclass(
    kind: str,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    check(make_logits(kind, shape, seed), size, align_corners, Task.MULTICLASS)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted({*MAKERS} - {"one-ulp"})),
    shape=st.tuples(st.integers(1, 2), st.just(1), st.integers(1, 24), st.integers(1, 24)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_binary(
    kind: str,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    align_corners: bool,
    seed: int,
) -> None:
    check(make_logits(kind, shape, seed), size, align_corners, Task.BINARY)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["smooth", "quantised", "one-ulp"])
def test_sizes_of_real_models(kind: str, align_corners: bool) -> None:
    check(make_logits(kind, (1, 21, 65, 65), 1), (520, 520), align_corners, Task.MULTICLASS)


def test_more_classes_than_a_byte_holds() -> None:
    check(make_logits("smooth", (1, 300, 9, 9), 2), (70, 71), False, Task.MULTICLASS)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_few_cells_of_a_smooth_map_are_computed(form: Form) -> None:
    """The kernel is fast because it computes little: else it would be right but useless."""
    axis = find_axis(65, 520, align_corners=False)
    y, x = np.mgrid[:65, :65]
    logits = np.stack([y + x, 128 - y - x, np.zeros_like(x)]).astype(np.float32)
    out: Any = np.empty((520, 520), np.uint8)
    num_mixed = form(Task.MULTICLASS, axis, axis, out.dtype)(logits, out)
    assert num_mixed <= 3 * 65  # One diagonal of 65 x 65 cells.


def test_types_and_layouts_that_runtimes_return() -> None:
    logits = make_logits("smooth", (1, 5, 12, 13), 3)
    expected = reference_labels(logits, (50, 60), align_corners=False, task=Task.MULTICLASS)
    frozen = logits.copy()
    frozen.flags.writeable = False
    strided = np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for given_ in (frozen, strided, logits.astype(np.float64)):
        found = upsample_labels(
            given_, (50, 60), align_corners=False, task=Task.MULTICLASS, num_labels=5
        )
        assert np.array_equal(found, expected)


def test_multilabel_is_no_label_map() -> None:
    with pytest.raises(ValueError, match="not one label map"):
        upsample_labels(
            np.zeros((1, 2, 2, 2), np.float32), (4, 4), align_corners=False,
            task=Task.MULTILABEL, num_labels=2,
        )  # fmt: skip


def in_new_process(before: str, **variables: str) -> bool:
    """Run `before`, then the kernel, which must be right; return whether it was compiled."""
    code = (
        f"{before}\n"
        "import numpy as np\n"
        "from segdeploy.core.task import Task\n"
        "from segdeploy.upsampling import has_compiled, prepare_kernel, upsample_labels\n"
        "low = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) % 7\n"
        "prepare_kernel(2)\n"
        "found = upsample_labels(low, (9, 9), align_corners=False, task=Task.MULTICLASS,\n"
        "                        num_labels=2)\n"
        "print(has_compiled(), found.tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, env={**os.environ, **variables},
    )  # fmt: skip
    low = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4) % 7
    expected = reference_labels(low, (9, 9), align_corners=False, task=Task.MULTICLASS)
    word, _, labels = done.stdout.strip().partition(" ")
    assert labels == str(expected.tolist())
    return word == "True"


def test_numpy_serves_where_numba_is_not_installed() -> None:
    assert not in_new_process("import sys; sys.modules['numba'] = None")


def test_numpy_serves_where_the_compiler_is_turned_off() -> None:
    assert not in_new_process("", NUMBA_DISABLE_JIT="1")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("_save_data", "OSError(28, 'No space left on device')"),
        ("_load_index", "PermissionError(13, 'Permission denied')"),
        ("_load_index", "EOFError()"),
    ],
)
def test_a_cache_that_fails_is_done_without(step: str, error: str, tmp_path: Path) -> None:
    before = (
        "from numba.core.caching import IndexDataCacheFile\n"
        f"def fail(*_): raise {error}\n"
        f"IndexDataCacheFile.{step} = fail"
    )
    assert in_new_process(before, NUMBA_CACHE_DIR=str(tmp_path))


def test_the_margin_is_not_part_of_what_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    axis = find_axis(9, 70, align_corners=False)
    logits = make_logits("smooth", (1, 3, 9, 9), 0)[0]
    out: Any = np.empty((70, 70), np.uint8)
    grid = (Task.MULTICLASS, axis, axis, out.dtype)
    few = compiled_form(1)(*grid)(logits, out)
    expected = out.copy()
    monkeypatch.setattr(kernel, "MARGIN", 2.0**40)  # Nothing is clear.
    assert compiled_form(1)(*grid)(logits, out) == (len(axis.starts) - 1) ** 2
    assert few < (len(axis.starts) - 1) ** 2
    assert np.array_equal(out, expected)
    monkeypatch.setattr(kernel, "MARGIN", 16.0)
    monkeypatch.setattr(kernel, "LEAST_EXTENT", 2.0**60)
    assert compiled_form(1)(*grid)(logits, out) == (len(axis.starts) - 1) ** 2


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [({3}, None, 1), ({0, 1, 2, 3}, 1.2, 1), ({0, 1, 2, 3}, 3.0, 3), ({0, 1}, 3.0, 2)],
)
def test_threads_are_the_cores_that_affinity_and_quota_leave(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], quota: float | None, threads: int
) -> None:
    for variable in ("SEGDEPLOY_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr("segdeploy.frameworks.threads.cpu_limit_cores", lambda: quota)
    kernel._num_cores.cache_clear()
    asked: list[int] = []

    def pool(_: int, count: int) -> ThreadPoolExecutor:
        asked.append(count)
        return executor

    monkeypatch.setattr(kernel, "_pool", pool)
    axis = find_axis(9, 70, align_corners=False)
    out: Any = np.empty((70, 70), np.uint8)
    logits = make_logits("smooth", (1, 3, 9, 9), 0)[0]
    with ThreadPoolExecutor(4) as executor:
        compiled_form(None, 64)(Task.MULTICLASS, axis, axis, out.dtype)(logits, out)
    kernel._num_cores.cache_clear()
    assert asked == [threads] * (threads > 1)  # The first band is this thread's own.


def test_an_upsampler_may_be_shared_and_sent() -> None:
    """What it has prepared is no part of it: other threads and processes may have it."""
    upsampler = Upsampler(Task.MULTICLASS, 5, align_corners=False)
    logits = make_logits("smooth", (1, 5, 12, 13), 3)
    sizes = [(40 + k, 50) for k in range(24)]  # More than are kept.
    expected = [
        reference_labels(logits, size, align_corners=False, task=Task.MULTICLASS) for size in sizes
    ]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda size: upsampler.labels(logits, size), sizes * 4))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected * 4, strict=True))
    assert pickle.loads(pickle.dumps(upsampler)) == upsampler
