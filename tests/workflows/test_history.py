"""`bench.jsonl` and its steps: synthetic histories in real git repositories."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdeploy.core.errors import ArtifactError, ConfigError, DataError
from segdeploy.core.results import BenchResult
from segdeploy.measure import describe_environment
from segdeploy.workflows.commits import commits_between, current_branch, current_commit
from segdeploy.workflows.history import (
    HistoryEntry,
    append_history,
    history_entry,
    load_history,
    machine_digest,
)
from segdeploy.workflows.history_steps import read_series

Cli = Callable[..., tuple[int, str, str]]
LEVELS = [10.0] * 8 + [11.5] * 6


def git(place: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *names, *arguments], cwd=place, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with fourteen commits, one for each of LEVELS."""
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA", "GITHUB_HEAD_REF", "GITHUB_REF_NAME",
                 "CI_COMMIT_REF_NAME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "repository"
    place.mkdir()
    git(place, "init", "--quiet", "--initial-branch=main")
    for index in range(len(LEVELS)):
        git(place, "commit", "--quiet", "--allow-empty", "--message", f"change {index}")
    return place


def entry(p50_ms: float, **changes: object) -> HistoryEntry:
    plain = HistoryEntry(
        time="2026-01-01T00:00:00Z", commit=None, branch="main", model="m", target="onnx-fp32",
        artifact="onnx-fp32", digest="d", machine="this", cpu="a CPU", input_shape=(1, 3, 64, 96),
        threads=1, measured="tensor to logits", p50_ms=p50_ms, p50_ci_ms=None, num_samples=100,
        min_ms=p50_ms, mean_ms=p50_ms, spread_ms=0.1, peak_memory_mib=None,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


def noisy(levels: Sequence[float], seed: int = 0) -> list[float]:
    factors = np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(levels)))
    return [float(level * factor) for level, factor in zip(levels, factors, strict=True)]


def by_commit(repository: Path, levels: Sequence[float]) -> list[HistoryEntry]:
    commits = git(repository, "rev-list", "--reverse", "HEAD").splitlines()
    return [entry(ms, commit=c) for ms, c in zip(noisy(levels), commits, strict=True)]


def test_a_step_is_told_with_the_commits_that_can_have_made_it(repository: Path) -> None:
    entries = by_commit(repository, LEVELS)
    (series,) = read_series(entries, repository=repository)
    (found,) = series.steps
    assert found.is_slower
    assert found.step.ratio == pytest.approx(1.15, abs=0.02)
    assert (found.since.commit, found.until.commit) == (entries[7].commit, entries[8].commit)
    assert found.commits is not None
    assert [line.split(maxsplit=1)[1] for line in found.commits] == ["change 8"]
    assert f"in {str(entries[7].commit)[:12]}..{str(entries[8].commit)[:12]}" in found.reason


def test_skipped_commits_are_all_in_the_range(repository: Path) -> None:
    entries = by_commit(repository, LEVELS)
    known = [each for index, each in enumerate(entries) if index not in {7, 8}]
    (found,) = read_series(known, repository=repository)[0].steps
    assert found.commits is not None
    assert [line.split(maxsplit=1)[1] for line in found.commits] == [
        "change 9", "change 8", "change 7",
    ]  # fmt: skip


def test_a_step_within_one_commit_is_the_machines_and_versions_are_shown() -> None:
    entries = [
        entry(ms, commit="abc", versions={"onnxruntime": "1.1" if index < 8 else "1.2"})
        for index, ms in enumerate(noisy(LEVELS))
    ]
    (found,) = read_series(entries)[0].steps
    assert "the machine or a package changed" in found.reason
    assert found.to_dict()["versions_changed"] == {"onnxruntime": ["1.1", "1.2"]}
    (found,) = read_series([replace(each, commit=None) for each in entries])[0].steps
    assert found.commits is None
    assert "between 2026" in found.reason


def test_machines_inputs_and_branches_are_never_mixed() -> None:
    slow, fast = noisy([12.0] * 10), noisy([10.0] * 10, seed=1)
    for change in (
        {"machine": "other"}, {"input_shape": (1, 3, 32, 32)}, {"threads": 2}, {"artifact": "b"},
    ):  # fmt: skip
        mixed = [*map(entry, fast), *(replace(entry(ms), **change) for ms in slow)]
        assert [len(series.entries) for series in read_series(mixed)] == [10, 10]
        assert not any(series.steps for series in read_series(mixed))
    mixed = [*map(entry, fast), *(entry(ms, branch="topic") for ms in slow)]
    assert len(read_series(mixed)[0].steps) == 1
    assert not read_series(mixed, branch="topic")[0].steps
    with pytest.raises(ConfigError, match="no entry of branch absent"):
        read_series(mixed, branch="absent")


def test_entries_are_written_whole_by_several_writers_and_bad_lines_are_counted(
    tmp_path: Path,
) -> None:
    file = tmp_path / "below" / "bench.jsonl"
    writers = [
        threading.Thread(target=append_history, args=(file, [entry(10.0)] * 20)) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert load_history(file) == ([entry(10.0)] * 80, 0)
    with file.open("ab") as stream:
        stream.write(b'{"time": "2026')  # Killed while writing.
    append_history(file, [entry(11.0)])
    entries, num_damaged = load_history(file)
    assert (len(entries), num_damaged) == (81, 1)
    (tmp_path / "bad").write_text("no entry\n")
    with pytest.raises(DataError, match="No line"):
        load_history(tmp_path / "bad")
    with pytest.raises(DataError, match="Cannot read"):
        load_history(tmp_path / "absent")
    (tmp_path / "empty").write_text("")
    assert load_history(tmp_path / "empty") == ([], 0)
    with pytest.raises(ArtifactError):
        append_history(tmp_path / "bad" / "x", [entry(1.0)])


def test_a_bench_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    first = [entry(10.0, bench_run="r1"), entry(11.0, bench_run="r1", artifact="onnx-int8")]
    assert append_history(file, first) == []
    assert append_history(file, [first[0], entry(12.0, bench_run="r2")]) == [first[0]]
    twice = entry(13.0, bench_run="r3")
    assert append_history(file, [twice, twice]) == [twice]
    assert append_history(file, [entry(14.0)] * 2) == []  # Without a name nobody can tell.
    assert [each.p50_ms for each in load_history(file)[0]] == [10.0, 11.0, 12.0, 13.0, 14.0, 14.0]


@pytest.mark.parametrize("bad", ["--output=HACKED", "HEAD", "-p", "main~1", "abc", "A" * 40, ""])
def test_only_commits_reach_git(repository: Path, bad: str) -> None:
    before = sorted(repository.iterdir())
    head = git(repository, "rev-parse", "HEAD")
    assert commits_between(bad, head, repository) is None
    assert commits_between(head, bad, repository) is None
    assert commits_between(head[:7], head, repository) == []
    assert sorted(repository.iterdir()) == before


def test_an_entry_says_what_bench_found_and_where(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        **describe_environment(), "threads": 2, "artifact": "digest", "bench_run": "r1",
    }  # fmt: skip
    samples = [1.0, 2.0, 3.0, 4.0, 5.0]
    result = BenchResult(
        target="onnx-fp32", path="runs/head/m/onnx-fp32", samples_ms=samples, batch_size=1,
        input_shape=(1, 3, 8, 8), peak_memory_mib=9.0, environment=environment,
    )  # fmt: skip
    found = history_entry(result, "m", repository)
    assert (found.p50_ms, found.min_ms, found.mean_ms, found.spread_ms) == (3.0, 1.0, 3.0, 2.0)
    assert (found.commit, found.branch) == (git(repository, "rev-parse", "HEAD"), "main")
    assert (found.artifact, found.digest, found.threads) == ("onnx-fp32", "digest", 2)
    assert found.bench == ("r1", "m", "onnx-fp32", "digest")
    newer = {**environment, "runtime": {"versions": {"onnxruntime": "9"}}}
    assert machine_digest(newer) == machine_digest(environment)  # An upgrade may be the step.
    assert machine_digest({**environment, "cpu": "another"}) != machine_digest(environment)
    with pytest.raises(DataError, match="no samples"):
        history_entry(replace(result, samples_ms=[]), "m", repository)

    git(repository, "checkout", "--quiet", "--detach")  # As CI checkouts are.
    assert current_branch(repository) is None
    monkeypatch.setenv("GITHUB_HEAD_REF", "topic")
    assert current_branch(repository) == "topic"


def test_without_git_the_ci_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("CI_COMMIT_SHA", "from-the-ci")
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    assert current_commit(tmp_path) == "from-the-ci"
    assert commits_between("a", "b", tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert current_commit(tmp_path) == "from-the-ci"


def test_the_command_tells_steps_fails_on_demand_and_draws(
    repository: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    append_history(Path("bench.jsonl"), by_commit(repository, LEVELS))
    code, out, _ = cli("history", "--json", "--page", "history.html")
    assert code == 0
    (series,) = json.loads(out)
    assert [step["ratio"] for step in series["steps"]] == [pytest.approx(1.15, abs=0.02)]
    assert series["num_entries"] == 14
    page = Path("history.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("<polyline") == 2
    assert "slower" in page
    assert "change 8" in cli("history")[1]
    assert cli("history", "--fail-on-step")[0] == 1
    assert cli("history", "--fail-on-step", "--min-change", "30%")[0] == 0
    append_history(Path("bench.jsonl"), [entry(ms) for ms in noisy([10.0] * 6, seed=3)])
    assert cli("history", "--fail-on-step")[0] == 0  # It is fast again.
    assert cli("history", "absent.jsonl")[0] == 2
