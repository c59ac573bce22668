"""What a run may not do: pass a stale verdict, lose an answer, take the place of what it reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.cli.pytest_plugin import _judge
from segdeploy.core.errors import ArtifactError, ConfigError
from segdeploy.core.folder import load_artifact, mark_passed
from segdeploy.core.gate import GateResult, Verdict, worst_verdict
from segdeploy.workflows.run import run
from segdeploy.workflows.run_config import load_run_config
from segdeploy.workflows.run_result import Status, gate_status

Cli = Callable[..., tuple[int, str, str]]
CONFIG = Path("segdeploy.toml")


@pytest.fixture
def ready(place: Path, cli: Cli) -> Path:
    """A ready artifact `made/tiny/onnx-fp32`, and a `ready.toml` that takes it."""
    assert cli("run", "--out", "made", "--only", "export")[0] == 0
    (place / "ready.toml").write_text(
        '[run]\nout = "runs/ready"\n[[model]]\nname = "tiny"\n'
        'artifacts = ["made/tiny/onnx-fp32"]\n[gate]\nlatency = "off"\nsize = "10%"\n'
    )
    return place / "made/tiny/onnx-fp32"


def test_a_ready_artifacts_new_verdict_arrives(ready: Path, cli: Cli) -> None:
    shutil.copytree("made", "base")
    arguments = ["run", "ready.toml", "--only", "export,gate", "--baseline", "base"]
    assert cli(*arguments)[0] == 0
    copy = Path("runs/ready/tiny/onnx-fp32")
    for more in ([], ["--force"]):
        for passed, code in ((False, 1), (True, 0)):
            mark_passed(load_artifact(ready), passed)
            assert cli(*arguments, *more)[0] == code
            assert load_artifact(copy).manifest.passed is passed
    assert "nothing has changed" in cli(*arguments)[2]
    (copy / "left.txt").touch()
    assert "nothing has changed" not in cli(*arguments, "--force")[2]
    assert not (copy / "left.txt").exists()  # --force copies again.


def test_a_run_that_cannot_be_written_down_hides_no_failed_check(ready: Path, cli: Cli) -> None:
    Path("runs/ready/run.json").mkdir(parents=True)  # As a full disk: no file can stand there.
    arguments = ["run", "ready.toml", "--only", "export", "--junit", "j.xml", "--summary", "s.md"]
    code, out, _ = cli(*arguments, "--json")
    assert (code, json.loads(out)["verdict"]) == (2, "error")
    assert [each["stage"] for each in json.loads(out)["stages"]] == ["export", "verify", "run.json"]
    mark_passed(load_artifact(ready), passed=False)
    code, out, err = cli(*arguments, "--json")
    assert (code, json.loads(out)["verdict"]) == (1, "failed")
    assert "Cannot write runs/ready/run.json" in err
    for file in ("j.xml", "s.md"):
        assert "run.json" in Path(file).read_text()


@pytest.mark.usefixtures("place")
def test_a_bench_that_is_not_written_is_not_passed() -> None:
    def block(line: str) -> None:
        if "bench of" in line:
            Path("runs/head/tiny/onnx-fp32/bench.json").mkdir()

    settings = load_run_config(CONFIG, {"run": {"stages": ["export", "bench"]}})
    result = run(settings, say=block)
    assert (result.exit_code, result.outcomes[-1].stage) == (2, "bench")
    assert "Cannot write runs/head/tiny/onnx-fp32/bench.json" in result.outcomes[-1].reason
    assert result.outcomes[-1].status is Status.ERROR


@pytest.mark.usefixtures("place")
def test_an_older_gates_file_is_not_taken_for_one_that_could_not_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(file: Path, _: object) -> None:
        raise ArtifactError(f"Cannot write {file}: No space left on device.")

    assert run(load_run_config(CONFIG, {"run": {"out": "base", "stages": ["export"]}}))
    flags: dict[str, dict[str, object]] = {
        "run": {"stages": ["export", "gate"]}, "gate": {"baseline": "base"},
    }  # fmt: skip
    assert run(load_run_config(CONFIG, flags))
    CONFIG.write_text(CONFIG.read_text().replace('"10%"', '"20%"'))
    settings = load_run_config(CONFIG, flags)
    with monkeypatch.context() as full_disk:
        full_disk.setattr("segdeploy.workflows.gate.write_json", lose)
        assert run(settings).outcomes[-1].status is Status.PASSED
    assert not Path("runs/head/tiny/onnx-fp32/gate.json").exists()
    assert not run(settings).is_unchanged
    assert run(settings).is_unchanged


def test_no_output_takes_the_place_of_what_is_read(ready: Path, cli: Cli) -> None:
    before = {file: file.read_bytes() for file in (Path("ready.toml"), ready / "manifest.json")}
    Path("other.txt").write_text("A diary.\n")
    for arguments, said in (
        (["--junit", "ready.toml"], "would be overwritten"),
        (["--summary", "runs/../ready.toml"], "would be overwritten"),
        (["--history", "ready.toml"], "would be overwritten"),
        (["--junit", "x", "--summary", "x"], "would be overwritten"),
        (["--history", "other.txt"], "is a history entry"),
    ):
        code, _, err = cli("run", "ready.toml", *arguments)
        assert code == 2
        assert said in err
    assert {file: file.read_bytes() for file in before} == before
    assert Path("other.txt").read_text() == "A diary.\n"
    assert not Path("runs").exists()


@pytest.mark.usefixtures("place")
def test_a_history_that_is_younger_than_the_run_gets_its_line(cli: Cli) -> None:
    arguments = ["run", "--only", "export,bench", "--history", "bench.jsonl"]
    assert cli(*arguments)[0] == 0
    history = Path("bench.jsonl")
    (first,) = map(json.loads, history.read_text().splitlines())
    history.unlink()
    for _ in range(2):
        assert "nothing has changed" in cli(*arguments)[2]
        (again,) = map(json.loads, history.read_text().splitlines())
        assert {**again, "time": first["time"]} == first


def test_a_damaged_artifact_is_called_damaged(place: Path, cli: Cli) -> None:
    text = CONFIG.read_text().replace(
        '["onnx-fp32"]', '["onnx-fp32", "onnx-int8"]\nint8_policy = "all"'
    )
    CONFIG.write_text(text.replace("[run]", '[run]\ncalibration = "synthetic:64x96:4"'))
    assert cli("run", "--only", "export")[0] in {0, 1}
    payload = place / "runs/head/tiny/onnx-fp32/model.onnx"
    whole = payload.read_bytes()
    payload.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    code, out, _ = cli("run", "--only", "evaluate", "--json")
    reasons = {each["artifact"]: each["reason"] for each in json.loads(out)["stages"]}
    assert code == 2
    for name in ("onnx-fp32", "onnx-int8"):
        assert "onnx-fp32/model.onnx is damaged" in reasons[name]
        assert "Run the stage export first" in reasons[name]
    payload.write_bytes(whole)
    CONFIG.write_text(CONFIG.read_text().replace('"all"', '"default"'))
    out = cli("run", "--only", "evaluate", "--json")[1]
    reasons = {each["artifact"]: each["reason"] for each in json.loads(out)["stages"]}
    assert "was made of other settings" in reasons["onnx-int8"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run = 5", "run is a table"), ('run = "x"', "run is a table"),
        ("[[run]]", "run is a table"), ("[[gate]]", "gate is a table"),
        ("bench = 1", "bench is a table"), ("model = 5", "model is a list of tables"),
        ("[model]", "model is a list of tables"), ("model = [5]", "model"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_whatever_flags_say(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_text(text + "\n")
    flags: dict[str, dict[str, object]] = {
        "run": {"out": "o"}, "gate": {"baseline": "b"}, "bench": {"threads": 1},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        load_run_config(tmp_path / "x.toml", flags)


def test_what_is_not_judged_is_no_pass() -> None:
    assert worst_verdict([Verdict.PASS, Verdict.UNJUDGED, Verdict.IMPROVEMENT]) is Verdict.UNJUDGED
    assert worst_verdict([Verdict.UNJUDGED, Verdict.INCONCLUSIVE]) is Verdict.INCONCLUSIVE
    result = GateResult(baseline="b", candidate="c", verdict=Verdict.UNJUDGED, reason="r")
    with pytest.raises(pytest.skip.Exception, match="r"):
        _judge(result, "r", "fail")
    assert (Verdict.UNJUDGED.exit_code, gate_status(Verdict.UNJUDGED)) == (0, Status.SKIPPED)
