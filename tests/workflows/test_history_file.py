"""The history's file: merged, damaged, on a full disk, and what may be written over it."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeploy.core.errors import ArtifactError, SegDeployError
from segdeploy.workflows.history import (
    HistoryEntry,
    append_history,
    entry_of_folder,
    load_history,
)
from segdeploy.workflows.history_steps import read_series
from segdeploy.workflows.summary import STEP_SUMMARY, write_summary

Cli = Callable[..., tuple[int, str, str]]


def entry(index: int, p50_ms: float, **changes: Any) -> HistoryEntry:
    plain = HistoryEntry(
        time=f"2026-01-01T00:00:{index:02d}Z", commit="abc", branch="main", model="m",
        target="onnx-fp32", artifact="onnx-fp32", digest="d", machine="this", cpu="a CPU",
        input_shape=(1, 3, 64, 96), threads=1, measured="tensor to logits", p50_ms=p50_ms,
        p50_ci_ms=None, num_samples=100, min_ms=p50_ms, mean_ms=p50_ms, spread_ms=0.1,
        peak_memory_mib=None,
    )  # fmt: skip
    return replace(plain, **changes)


def a_step() -> list[HistoryEntry]:
    """Ten entries of 10 ms, then ten that are 20 % slower."""
    levels = [10.0] * 10 + [12.0] * 10
    noise = np.random.default_rng(0).normal(1, 0.005, len(levels))
    return [
        entry(index, float(ms * by))
        for index, (ms, by) in enumerate(zip(levels, noise, strict=True))
    ]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing beyond this size fails, after what fits, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_merged_history_is_read_in_the_order_of_its_times(tmp_path: Path) -> None:
    written = a_step()
    shuffled = [written[index] for index in np.random.default_rng(1).permutation(len(written))]
    for name, lines in (("turned", written[::-1]), ("halves", [*written[10:], *written[:10]]),
                        ("shuffled", shuffled)):  # fmt: skip
        append_history(tmp_path / name, lines)
        found, _ = load_history(tmp_path / name)
        assert found == written
        (step,) = read_series(found)[0].steps
        assert step.is_slower


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    append_history(file, [entry(0, 10.0)])
    before = file.read_bytes()
    with largest_file(len(before) + 50), pytest.raises(ArtifactError, match="Cannot write"):
        append_history(file, [entry(1, 10.0)])
    assert file.read_bytes() == before


def test_a_full_disk_leaves_no_part_of_githubs_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "summary.md"
    monkeypatch.setenv(STEP_SUMMARY, str(file))
    write_summary("one", None)
    with largest_file(50), pytest.raises(ArtifactError, match="Cannot write"):
        write_summary("x" * 100, None)
    assert file.read_text() == "\none"


def test_two_models_of_one_bench_are_two_entries(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    models = [entry(0, 10.0, bench_run="r", model=model) for model in ("ma", "mb")]
    assert append_history(file, models) == []
    assert append_history(file, models) == models
    assert [each.model for each in load_history(file)[0]] == ["ma", "mb"]


def test_a_step_tells_the_packages_that_changed_with_it() -> None:
    entries = [
        replace(each, versions={"onnxruntime": "1.1" if index < 10 else "1.2", "numpy": "2"})
        for index, each in enumerate(a_step())
    ]
    (step,) = read_series(entries)[0].steps
    assert step.reason.endswith("; changed with it: onnxruntime 1.1 -> 1.2")
    (step,) = read_series(a_step())[0].steps
    assert "changed with it" not in step.reason


@pytest.mark.usefixtures("place")
def test_a_damaged_bench_is_no_entry(cli: Cli) -> None:
    assert cli("run", "--out", "runs", "--only", "export,bench")[0] == 0
    folder = Path("runs/tiny/onnx-fp32")
    sound = json.loads((folder / "bench.json").read_text())
    assert entry_of_folder(folder).model == "tiny"
    for change in (
        {"samples_ms": ["a"]}, {"samples_ms": [None]}, {"samples_ms": [-1.0, -2.0]},
        {"samples_ms": 3}, {"environment": "x"}, {"environment": {"cpu": 5}}, {"input_shape": "x"},
        {"input_shape": None}, {"target": 7}, {"peak_memory_mib": "much"},
    ):  # fmt: skip
        (folder / "bench.json").write_text(json.dumps(sound | change))
        with pytest.raises(SegDeployError, match="bench"):
            entry_of_folder(folder)
        assert cli("history", "h.jsonl", "--add", str(folder))[0] == 2, change
    assert not Path("h.jsonl").exists()


def test_a_page_does_not_take_the_place_of_its_history(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    append_history(Path("ok.jsonl"), a_step())
    before = Path("ok.jsonl").read_bytes()
    code, _, err = cli("history", "ok.jsonl", "--page", str(tmp_path / "ok.jsonl"))
    assert (code, "the history itself" in err) == (2, True)
    assert Path("ok.jsonl").read_bytes() == before
    code, out, _ = cli("history", "ok.jsonl", "--page", "page.html")
    assert (code, "slower" in out) == (0, True)
