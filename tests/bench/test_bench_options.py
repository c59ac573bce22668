"""Launches, pauses, streams, affinity, sustained runs and one process, on the made-up backend."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from segdeploy.bench import BenchPlan, interleave, measure_interleaved, sustained
from segdeploy.bench.collect import _sustained_warnings, others_cores
from segdeploy.bench.entry import Entry, Launch
from segdeploy.bench.plan import NUM_BLOCKS
from segdeploy.bench.streams import count_stream_calls
from segdeploy.bench.sustained import compare_ends
from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.cli.app import run_app
from segdeploy.core.errors import ConfigError
from segdeploy.core.folder import load_folder
from segdeploy.core.results import BenchResult
from segdeploy.measure.fingerprint import fingerprint, fingerprint_difference
from segdeploy.measure.machine_state import state_change

MakeArtifact = Callable[..., Path]
FAST = BenchPlan(seconds=0, warmup_s=0, threads=1, size=(8, 12))


def measure(folder: Path, plan: BenchPlan, *, save: bool = False) -> BenchResult:
    outcome = measure_interleaved([folder], plan, save=save)
    for failure in outcome.failures:
        raise failure
    return outcome.results[0]


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return found


def test_whoever_is_not_asked_stands_still(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    pids, states = tmp_path / "pids", tmp_path / "states"
    pids.mkdir()
    told = {"pids": str(pids), "states": str(states)}
    paths = [make_artifact(tmp_path / "run", name, **told) for name in ("a", "b", "c")]
    assert not measure_interleaved(paths, FAST, save=False).failures
    assert len(states.read_text()) >= 2 * 2 * 3 * NUM_BLOCKS
    assert set(states.read_text()) == {"T"}


def test_samples_of_all_workers_are_on_one_clock(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    paths = [make_artifact(tmp_path, name) for name in ("a", "b")]
    results = measure_interleaved(paths, FAST, save=False).results
    spans = sorted(
        (start, start + ms / 1000)
        for result in results
        for start, ms in zip(result.starts_s, result.samples_ms, strict=True)
    )
    assert len(spans) == 2 * NUM_BLOCKS
    assert spans[0][0] > 0
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    first, second = (result.environment for result in results)
    assert fingerprint_difference(first, second) == []
    assert fingerprint(first)["runtimes"].keys() == {"numpy"}, "what was imported is what ran"


def test_each_launch_is_a_process_of_its_own(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    folder = make_artifact(tmp_path / "run", "a", pids=str(pids))
    result = measure(folder, replace(FAST, launches=3), save=True)
    assert len(list(pids.iterdir())) == 3
    assert result.launches == [NUM_BLOCKS] * 3
    assert len(result.samples_ms) == len(result.starts_s) == 3 * NUM_BLOCKS
    assert len(result.launch_memory_mib) == len(result.cold_starts_ms) == len(result.warm_ups) == 3
    assert BenchResult.from_dict(json.loads((folder / "bench.json").read_text())) == result


def test_a_cold_start_is_the_sum_of_its_parts(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    result = measure(make_artifact(tmp_path, "a", sleep=0.03), FAST)
    found = result.cold_start_ms
    assert found is not None
    parts = [found[name] or 0.0 for name in ("process", "load", "first_run")]
    assert all(part > 0 for part in parts)
    assert parts[2] >= 30
    assert found["total"] == pytest.approx(sum(parts))


def test_a_document_of_an_earlier_version_is_read(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    document = measure(make_artifact(tmp_path, "a"), FAST).to_dict()
    early = ("target", "path", "latency_ms", "throughput_img_s", "peak_memory_mib", "batch_size",
             "input_shape", "samples_ms", "environment")  # fmt: skip
    result = BenchResult.from_dict({name: document[name] for name in early})
    assert result.samples_ms == document["samples_ms"]
    assert (result.launches, result.cold_start_ms, result.regions_ms) == ([], None, None)


def test_streams_run_at_the_same_time_with_their_share_of_the_threads(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(tmp_path, "a", together=True)  # Each stream waits for the other one.
    result = measure(folder, replace(FAST, threads=6, streams=2))
    (row,) = result.throughput
    assert (row["batch_size"], row["streams"]) == (1, 2)
    assert row["images"] == 2 * 2, "two turns of two streams, one call each"
    assert row["img_s"] == pytest.approx(row["images"] / row["seconds"])
    assert seen(folder)["limit"] == "3"
    assert result.environment["threads"] == 6


def test_throughput_is_measured_at_each_batch_size(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(tmp_path, "a")
    result = measure(folder, replace(FAST, batch_sizes=(1, 4)))
    assert [(row["batch_size"], row["images"]) for row in result.throughput] == [(1, 2), (4, 8)]
    assert seen(folder)["shape"] == [4, 3, 8, 12]
    assert result.input_shape == (1, 3, 8, 12)


def test_workers_run_on_the_cores_that_were_asked_for(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    folder = make_artifact(tmp_path, "a")
    before = os.sched_getaffinity(0)
    last = max(before)
    result = measure(folder, replace(FAST, threads=None, affinity=(last,)))
    assert seen(folder)["affinity"] == result.environment["affinity"] == [last]
    assert result.environment["threads"] == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ConfigError, match="affinity"):
        BenchPlan(affinity=(4000,))


def test_in_process_there_is_no_other_process(tmp_path: Path, make_artifact: MakeArtifact) -> None:
    folder = make_artifact(tmp_path, "a")
    before = os.environ.get("SEGDEPLOY_NUM_THREADS")
    result = measure(folder, replace(FAST, in_process=True, threads=5))
    assert seen(folder)["pid"] == os.getpid()
    assert seen(folder)["limit"] == "5"
    assert os.environ.get("SEGDEPLOY_NUM_THREADS") == before
    assert len(result.samples_ms) == NUM_BLOCKS
    assert result.cold_starts_ms[0]["process"] is None
    with pytest.raises(ConfigError, match="in-process"):
        BenchPlan(in_process=True, launches=2)


def test_an_interrupted_sustained_run_keeps_what_was_measured(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    calls_before = 2 + 2 * NUM_BLOCKS  # Opening, warm-up, blocks.
    paths = [
        make_artifact(tmp_path, "a", sleep=0.01, interrupt_at=calls_before + 130),
        make_artifact(tmp_path, "b"),
    ]
    outcome = measure_interleaved(paths, replace(FAST, sustained_s=600.0), save=False)
    assert not outcome.failures
    first, second = outcome.results
    assert first.sustained is not None
    assert first.sustained["is_interrupted"]
    assert 1 <= len(first.sustained["rows"]) <= 2
    assert len(first.samples_ms) == NUM_BLOCKS
    assert first.peak_memory_mib is not None
    assert first.environment["others_cores"] is None  # Its own share is not known.
    assert second.sustained is None
    assert len(second.samples_ms) == NUM_BLOCKS


def test_a_sustained_run_compares_its_first_minute_with_its_last() -> None:
    rows = [(float(s), 10.0 if s < 300 else 12.0, 13.0, 100) for s in range(600)]
    found = compare_ends(rows, 600.0)
    assert found is not None
    assert (found["first_p50_ms"], found["last_p50_ms"], found["window_s"]) == (10.0, 12.0, 60.0)
    assert found["ratio"] == pytest.approx(1.2)
    assert (found["is_slower"], found["is_throttled"]) == (True, None)  # Nobody counted.
    short = compare_ends(rows[:40], 40.0)
    assert short is not None
    assert (short["window_s"], short["is_slower"]) == (20.0, False)
    counted = compare_ends(rows[:40], 40.0, num_throttled=2.0)
    assert counted is not None
    assert (counted["is_throttled"], counted["is_slower"]) == (True, False)
    noisy = compare_ends([(float(s), 10.0 + 3 * (s % 2), 14.0, 9) for s in range(121)], 121.0)
    assert noisy is not None
    assert not noisy["is_slower"]
    assert compare_ends([], 0.0) is None


def test_a_sustained_run_is_as_long_as_its_last_row_lasts(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]

    class Slow:
        """One call takes 40 s; a row is one call then."""

        def ask(self, do: str, **details: Any) -> dict[str, Any]:
            if do == "note_peak":
                return {"peak_memory_mib": 1.0}
            assert (do, details["seconds"] <= 1) == ("sample", True)
            now_s[0] += 40.0
            return {"samples_ms": [40_000.0 if now_s[0] < 190 else 50_000.0]}

        def pause(self) -> None: ...
        def resume(self) -> None: ...
        def stop(self) -> None: ...

    monkeypatch.setattr(sustained, "monotonic", lambda: now_s[0])
    entry = Entry(load_folder(make_artifact(tmp_path, "a")), (8, 12), [Launch()], Slow())
    sustained.run_sustained(entry, replace(FAST, sustained_s=130.0))
    assert [row[0] for row in entry.sustained] == [0.0, 40.0, 80.0, 120.0]
    found = compare_ends(entry.sustained, entry.sustained_s)
    assert found is not None
    assert (found["seconds"], found["window_s"]) == (160.0, 60.0)
    assert found["ratio"] == pytest.approx(1.25)
    assert found["is_slower"]


def test_each_sign_of_throttling_is_said_in_its_own_words(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter((5.0, 7.0))
    monkeypatch.setattr(sustained, "throttle_count", lambda: next(counts))
    result = measure(make_artifact(tmp_path, "a"), replace(FAST, sustained_s=0.05))
    said = [text for text in result.environment["warnings"] if "sustained" in text]
    assert said == ["Under sustained load the kernel counted 2 times of throttling."]
    slow = {"is_slower": True, "ratio": 1.25, "num_throttled": None}
    assert _sustained_warnings(slow) == [
        "Under sustained load the end was 1.25 times as slow as the start."
    ]


def test_what_others_used_is_told_from_what_this_process_used_itself(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    entry = Entry(load_folder(make_artifact(tmp_path, "a")), (8, 12))
    entry.launches = [Launch(finished={"cpu_s": 6.0})]
    change = {"busy_s": 10.0, "seconds": 10.0}
    assert others_cores([entry], change, 1.0) == pytest.approx(0.3)
    # In one process the worker's time is that of the whole process, and in `own_s` already.
    assert others_cores([entry], change, 7.0, in_process=True) == pytest.approx(0.3)


def test_in_process_neighbours_are_not_hidden_by_what_this_process_did_before(
    tmp_path: Path, make_artifact: MakeArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = {"busy_s": 1e6, "seconds": 1.0}
    monkeypatch.setattr(interleave, "state_change", lambda *states: state_change(*states) | busy)
    begin = process_time()
    result = measure(make_artifact(tmp_path, "a"), replace(FAST, in_process=True))
    assert 1e6 - result.environment["others_cores"] <= process_time() - begin


def test_an_error_in_one_stream_ends_all_and_is_the_one_that_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no memory for a second session")

    with pytest.raises(ValueError, match="second session"):
        count_stream_calls([lambda: None, fail, lambda: None], 60.0, 1)


def test_the_time_of_streams_is_their_own_however_late_the_main_thread_is() -> None:
    ticks = iter(range(100))
    main = threading.get_ident()

    def clock() -> float:
        return 1000.0 if threading.get_ident() == main else float(next(ticks))

    count, seconds = count_stream_calls([lambda: None] * 3, 0.0, 1, clock=clock)
    assert (count, seconds) == (3, 5.0)  # Three starts and three ends.


def test_sessions_of_streams_are_opened_once_for_all_batch_sizes(
    tmp_path: Path, make_artifact: MakeArtifact
) -> None:
    opened = tmp_path / "opened"
    folder = make_artifact(tmp_path / "run", "a", opened=str(opened))
    result = measure(folder, replace(FAST, streams=2, batch_sizes=(1, 4, 8)))
    assert [row["images"] for row in result.throughput] == [4, 16, 32]
    assert opened.read_text() == "o" * (1 + 2)


def test_end_to_end_takes_one_image_at_a_time() -> None:
    for change in ({"batch_size": 2}, {"batch_sizes": (1, 4)}):
        with pytest.raises(ConfigError, match=r"--end-to-end.*--batch-size"):
            BenchPlan(end_to_end=True, **change)


def test_streams_share_nothing_but_the_start() -> None:
    threads: list[set[int]] = [set(), set(), set()]
    calls = [lambda seen=seen: seen.add(threading.get_ident()) for seen in threads]
    count, seconds = count_stream_calls(calls, 0.0, 1)
    assert count == 3
    assert seconds > 0
    assert all(len(seen) == 1 for seen in threads)
    assert len(set.union(*threads)) == 3


def answer(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["segdeploy", "bench", *arguments])
    return run_app()


def test_the_command_hands_its_options_on(
    tmp_path: Path,
    make_artifact: MakeArtifact,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_artifact(tmp_path, "a")
    core = str(min(os.sched_getaffinity(0)))
    common = (str(folder), "--size", "8x12", "--seconds", "0", "--warmup", "0", "--affinity", core)
    options = ("--launches", "2", "--batch-size", "2,3", "--streams", "2", "--sustained", "0.1s")
    assert answer(monkeypatch, *common, *options, "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["launches"] == [NUM_BLOCKS] * 2
    assert document["input_shape"][0] == 2
    assert [(r["batch_size"], r["streams"]) for r in document["throughput"]] == [(2, 2), (3, 2)]
    assert len(document["sustained"]["rows"]) == 1
    assert document["environment"]["affinity"] == [int(core)]
    assert (folder / "sustained.svg").exists()
    assert answer(monkeypatch, *common, *options) == 0
    table = capsys.readouterr().out
    for heading in ("95 %", "first run ms", "streams", "throttled"):
        assert heading in table
    assert answer(monkeypatch, *common, "--batch-size", "two") == 2
    assert "'two' are no numbers" in capsys.readouterr().err
