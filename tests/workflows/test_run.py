"""`segdeploy run`: one tiny model through all stages, by real converters and runtimes."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import onnxruntime
import pytest

from segdeploy.core.errors import BackendUnavailableError, BuildError, ConfigError, ParityError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.gate import GateResult, Verdict
from segdeploy.core.manifest import encode_manifest
from segdeploy.workflows.run import plan_run, run
from segdeploy.workflows.run_config import RunConfig, load_run_config, run_toml
from segdeploy.workflows.run_result import RunResult, StageOutcome, Status
from segdeploy.workflows.run_tables import Stage

Cli = Callable[..., tuple[int, str, str]]
CONFIG = Path("segdeploy.toml")


def stages(document: dict[str, object]) -> dict[str, str]:
    found = document["stages"]
    assert isinstance(found, list)
    return {f"{each['artifact']}/{each['stage']}": each["status"] for each in found}


def test_the_whole_way_then_again_then_against_a_baseline(
    place: Path, cli: Cli, make_model: Callable[..., onnx.ModelProto]
) -> None:
    code, out, err = cli("run", "--out", "runs/base", "--history", "bench.jsonl", "--json")
    first = json.loads(out)
    assert code == 0, err
    assert first["verdict"] == "passed"
    assert list(stages(first)) == [
        *(f"onnx-fp32/{name}" for name in ("export", "verify", "evaluate", "bench")), "/report",
    ]  # fmt: skip
    folder = place / "runs/base/tiny/onnx-fp32"
    names = {"manifest.json", "model.onnx", "parity.json", "eval.json", "bench.json"}
    assert names <= {file.name for file in folder.iterdir()}
    onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert len((place / "bench.jsonl").read_text().splitlines()) == 1

    code, out, err = cli("run", "--out", "runs/base", "--history", "bench.jsonl", "--json")
    assert code == 0
    assert json.loads(out)["unchanged"] is True
    assert "nothing has changed" in err
    assert len((place / "bench.jsonl").read_text().splitlines()) == 1

    code, out, _ = cli("history", "--add", "runs/base/tiny/onnx-fp32", "--json")
    assert [series["num_entries"] for series in json.loads(out)] == [1]  # The run had noted it.

    gated = ["--only", "export,gate,report", "--baseline", "runs/base"]
    code, out, _ = cli("run", *gated, "--json", "--junit", "j.xml", "--summary", "s.md")
    last = json.loads(out)
    assert code == 0
    gate = next(each for each in last["stages"] if each["stage"] == "gate")
    assert gate["gate"]["metrics"][0]["ratio"] == 1.0
    assert gate["gate"]["parity"]["passed"] is True
    assert (place / "runs/head/tiny/onnx-fp32/gate.json").is_file()
    assert ET.parse(place / "j.xml").getroot().get("tests") == "4"  # noqa: S314  our own
    assert "tiny/onnx-fp32" in (place / "s.md").read_text()

    stages_of = {"stages": ["export", "gate", "report"]}
    again = run(load_run_config(CONFIG, {"run": stages_of, "gate": {"baseline": "runs/base"}}))
    assert again.is_unchanged
    assert next(o.gate for o in again.outcomes if o.stage == "gate") is not None

    (place / "model.onnx").write_bytes(make_model(extra=6).SerializeToString())  # Larger by far.
    for is_unchanged in (False, True):  # A failed check is not tried until it passes.
        code, out, _ = cli("run", *gated, "--json")
        last = json.loads(out)
        gate = next(each for each in last["stages"] if each["stage"] == "gate")
        assert (code, last["verdict"], gate["kind"]) == (1, "failed", "regression")
        assert last["unchanged"] is is_unchanged

    saved = tomllib.loads((place / "runs/head/run.toml").read_text())
    assert saved["gate"]["baseline"] == "runs/base"  # The flag.
    assert saved["gate"]["size"] == "10%"  # The file.
    assert saved["bench"]["batch_size"] == 1  # The default.


@pytest.mark.usefixtures("place")
def test_a_failing_target_stops_no_other_and_a_mended_run_goes_on() -> None:
    text = CONFIG.read_text()
    CONFIG.write_text(text.replace('["onnx-fp32"]', '["torchscript-fp32", "onnx-fp32"]'))
    only = {"run": {"stages": ["export", "evaluate"]}}
    result = run(load_run_config(CONFIG, only))
    by_place = {outcome.place: outcome for outcome in result.outcomes}
    failed = by_place["tiny/torchscript-fp32/export"]
    assert (failed.status, failed.exit_code) == (Status.ERROR, 2)
    assert "came as ONNX" in failed.reason
    assert by_place["tiny/onnx-fp32/evaluate"].status is Status.PASSED
    assert result.exit_code == 2

    shutil.rmtree("runs/head/tiny/onnx-fp32")  # As if the run had been killed before it.
    targets = 'int8_policy = "all"\ntargets = ["onnx-int8", "onnx-fp32"]'
    CONFIG.write_text(text.replace('targets = ["onnx-fp32"]', targets))
    flags = {"run": {**only["run"], "calibration": "synthetic:64x96:8"}}
    result = run(load_run_config(CONFIG, flags))
    statuses = {outcome.place: outcome.status for outcome in result.outcomes}
    assert statuses["tiny/onnx-int8/export"] is Status.PASSED
    assert statuses["tiny/onnx-fp32/evaluate"] is Status.PASSED


def test_ready_artifacts_are_copied_and_keep_their_verdict(place: Path, cli: Cli) -> None:
    assert cli("run", "--out", "made", "--only", "export")[0] == 0
    theirs = place / "made/tiny/onnx-fp32"
    before = sorted((file.name, file.stat().st_mtime_ns) for file in theirs.iterdir())
    CONFIG.write_text(
        '[run]\nout = "runs/ready"\ndata = "synthetic:64x96:8"\n'
        '[[model]]\nname = "tiny"\nartifacts = ["made/tiny/onnx-fp32"]\n'
    )
    settings = load_run_config(CONFIG, {"run": {"stages": ["export", "evaluate"]}})
    result = run(settings)
    assert result
    assert [o.stage for o in result.outcomes] == ["export", "verify", "evaluate"]
    assert (place / "runs/ready/tiny/onnx-fp32/eval.json").is_file()
    assert sorted((file.name, file.stat().st_mtime_ns) for file in theirs.iterdir()) == before
    assert run(settings).is_unchanged

    artifact = load_artifact(theirs)
    bad = encode_manifest(artifact.manifest.replace(passed=False, note="another"))
    (theirs / "manifest.json").write_bytes(bad)
    shutil.rmtree("runs/ready")
    result = run(settings)
    assert result.exit_code == 1
    assert result.verdict is Status.FAILED


def test_a_dry_run_writes_nothing(place: Path, cli: Cli) -> None:
    code, out, _ = cli("run", "--dry-run", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert row == {
        "model": "tiny", "artifact": "onnx-fp32", "export": "build",
        "stages": ["export", "evaluate", "bench", "report"],
    }  # fmt: skip
    assert not (place / "runs").exists()
    assert "build" in cli("run", "--dry-run")[1]


@pytest.mark.usefixtures("place")
def test_stages_without_their_artifact_say_which_is_missing(cli: Cli) -> None:
    code, out, err = cli("run", "--only", "evaluate", "--json")
    assert code == 2
    assert "error: tiny/onnx-fp32/export" in err
    (stage,) = json.loads(out)["stages"]
    assert "Run the stage export first" in stage["reason"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("size =", "sizes ="), r"\[gate\].*sizes.*Did you mean size"),
        (("[bench]", "[banch]"), "banch.*Did you mean bench"),
        (("targets =", "target ="), r"\[model\].*target'.*Did you mean targets"),
        (("scale =", "scales ="), r"\[onnx\].*scales.*Did you mean scale"),
        (('["onnx-fp32"]', '["onnx-fp31"]'), "onnx-fp31"),
        (('["onnx-fp32"]', '["onxx-fp32"]'), "onxx.*onnx"),
        (('["onnx-fp32"]', "[]"), "tiny needs targets"),
        (("[[model]]", "[model]"), r"Write \[\[model\]\]"),
        (('"model.onnx"', '"absent.onnx"'), "absent.onnx is not there"),
        (('"10%"', '"small"'), "size = 'small' is no share"),
        (("[gate]", '[gate]\nbudget = "soon"'), "soon"),
        (("threads = 1", 'threads = "1"'), "bench.threads"),
        (('name = "tiny"', 'name = "../tiny"'), "no name of a folder"),
        (('"synthetic:64x96:8"', '"synthtic"'), "synthtic"),
        (('[run]\nout = "runs/head"', "[run]"), "where the run goes"),
        (("[gate]", '[gate]\nbaseline = "absent"'), "baseline absent"),
        (("[gate]", "[gate"), "not valid TOML"),
        (("[run]", '[run]\nstages = ["gate"]'), "gate of tiny needs a baseline"),
        (("[run]", '[run]\nstages = ["gates"]'), "stages"),
        (("[run]", "[run]\nstages = []"), "stage left to do"),
        (("[run]", "[run]\ncalibration_images = 0"), "calibration_images.*at least 1"),
        (("[run]", '[run]\ncalibration = "synthtic"'), "synthtic"),
        (("seconds = 0.05", "seconds = -1.0"), "seconds must be in"),
        (("seconds = 0.05", "seconds = inf"), "bench: seconds is inf"),
        (("threads = 1", "threads = -3"), "threads must be in"),
        (("threads = 1", "launches = 0"), "launches must be in"),
        (("[bench]", "[evaluate]\nlimit = 0\n[bench]"), "limit must be at least 1"),
        (("[gate]", "[gate]\nstreams = 0"), "streams must be in"),
        (('["onnx-fp32"]', '["onnx-fp32", "onnx-int8"]'), "onnx-int8 needs images.*calibration ="),
        (("scale = 0.0039, ", ""), r"and scale of `onnx` not given.*onnx = \{ scale ="),
        (('["onnx-fp32"]', '["onnx-fp32", "onnx-fp32"]'), "target onnx-fp32 twice"),
        (("[[model]]", '[[model]]\nsizes = ["64x96", "64X96"]'), "size 64x96 twice"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    place: Path, change: tuple[str, str], said: str
) -> None:
    assert change[0] in CONFIG.read_text()
    CONFIG.write_text(CONFIG.read_text().replace(*change))
    with pytest.raises(ConfigError) as caught:
        run(load_run_config(CONFIG, {}))
    assert caught.match(f"(?s){said}")
    assert not (place / "runs").exists()


@pytest.mark.usefixtures("place")
def test_the_resolved_settings_read_back_as_themselves() -> None:
    text = CONFIG.read_text().replace('"tiny"', '"m\U0001f600"')
    CONFIG.write_text(text.replace('"synthetic:64x96:8"', r'"\u007f \u0001 \\ \" \u00e9"'))
    config = load_run_config(CONFIG, {"bench": {"threads": 3, "size": None}})
    Path("again.toml").write_bytes(run_toml(config))
    assert load_run_config(Path("again.toml"), {}) == config
    assert config.bench.threads == 3
    with pytest.raises(ConfigError, match="absent"):
        load_run_config(Path("absent.toml"), {})


@pytest.mark.usefixtures("place")
def test_models_may_choose_their_own_stages_and_data() -> None:
    text = CONFIG.read_text().replace(
        "[[model]]", '[[model]]\nstages = ["export"]\ndata = "camvid"'
    )
    CONFIG.write_text(text)
    config = load_run_config(CONFIG, {})
    assert config.stages_of(config.model[0]) == (Stage.EXPORT,)
    assert config.data_of(config.model[0]) == "camvid"
    CONFIG.write_text(text + text[text.index("[[model]]") : text.index("[bench]")])
    with pytest.raises(ConfigError, match=r"Two .*tiny"):
        load_run_config(CONFIG, {})


def outcome(stage: str, **more: object) -> StageOutcome:
    settings = {"status": Status.PASSED, **more}
    return StageOutcome(model="m", artifact="a", stage=stage, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("errors", "code", "verdict"),
    [
        ([], 0, Status.PASSED),
        ([BuildError("x")], 2, Status.ERROR),
        ([BackendUnavailableError("x")], 4, Status.ERROR),
        ([BackendUnavailableError("x"), BuildError("x")], 2, Status.ERROR),
        ([BackendUnavailableError("x"), ParityError("x")], 1, Status.FAILED),
    ],
)
def test_the_exit_code_is_that_of_what_is_certain(
    errors: list[BuildError], code: int, verdict: Status
) -> None:
    outcomes = [outcome("export"), *(StageOutcome.of_error("m", "a", "x", e) for e in errors)]
    result = RunResult(out=Path(), outcomes=outcomes)
    assert (result.exit_code, result.verdict, bool(result)) == (code, verdict, code == 0)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([Verdict.PASS, Verdict.IMPROVEMENT], 0),
        ([Verdict.PASS, Verdict.INCONCLUSIVE], 3),
        ([Verdict.REGRESSION, Verdict.INCONCLUSIVE], 1),
        ([Verdict.BROKEN], 1),
    ],
)
def test_gates_decide_as_their_verdicts_do(verdicts: list[Verdict], code: int) -> None:
    gates = [GateResult(baseline="b", candidate="c", verdict=v, reason="r") for v in verdicts]
    outcomes = [StageOutcome.of_gate("m", "a", gate) for gate in gates]
    assert RunResult(out=Path(), outcomes=outcomes).exit_code == code


def test_an_error_hides_an_inconclusive_gate_and_a_failed_check_hides_both() -> None:
    unknown = outcome("gate", status=Status.INCONCLUSIVE, exit_code=3)
    error = outcome("bench", status=Status.ERROR, exit_code=4)
    failed = outcome("verify", status=Status.FAILED, exit_code=1)
    assert RunResult(out=Path(), outcomes=[unknown, error]).exit_code == 4
    assert RunResult(out=Path(), outcomes=[unknown, error, failed]).exit_code == 1


@pytest.mark.usefixtures("place")
def test_an_interrupted_run_goes_on_where_it_was() -> None:
    def interrupt(line: str) -> None:
        if "bench" in line:
            raise KeyboardInterrupt

    settings = load_run_config(CONFIG, {})
    with pytest.raises(KeyboardInterrupt):
        run(settings, say=interrupt)
    result = run(settings)
    reused = {outcome.stage: outcome.reused for outcome in result.outcomes}
    assert reused == {
        "export": True, "verify": True, "evaluate": True, "bench": False, "report": False,
    }  # fmt: skip


@pytest.mark.usefixtures("place")
def test_a_plan_says_what_cannot_be_built() -> None:
    CONFIG.write_text(CONFIG.read_text().replace('"onnx-fp32"', '"torchscript-fp32"'))
    config: RunConfig = load_run_config(CONFIG, {})
    (row,) = plan_run(config)
    assert row.export.startswith("refused:")


@pytest.mark.slow
def test_sizes_are_measured_each_by_itself(tiny_checkpoint: Checkpoint, place: Path) -> None:
    CONFIG.write_text(
        f'[run]\nout = "{place}/runs"\nstages = ["export", "bench"]\n'
        f'[[model]]\nname = "m"\ncheckpoint = "{tiny_checkpoint.path}"\n'
        'targets = ["torchscript-fp32"]\nsizes = ["64x96", "96x96"]\n'
        "[bench]\nthreads = 1\nseconds = 0.01\nwarmup = 0.01\n"
    )
    result = run(load_run_config(CONFIG, {}))
    assert result, [outcome.reason for outcome in result.outcomes]
    shapes = {}
    for name in ("torchscript-fp32+64x96", "torchscript-fp32+96x96"):
        found = json.loads((place / "runs/m" / name / "bench.json").read_text())
        assert found["environment"]["beside"] == [str(place / "runs/m" / name)]
        shapes[name] = found["input_shape"][2:]
    assert list(shapes.values()) == [[64, 96], [96, 96]]


@pytest.mark.slow
@pytest.mark.serial
def test_a_slower_model_fails_the_run_and_stays_failed(
    place: Path, cli: Cli, make_model: Callable[..., onnx.ModelProto]
) -> None:
    limits = 'latency = "20%"\nbudget = "20s"'
    CONFIG.write_text(CONFIG.read_text().replace('latency = "off"\nsize = "10%"', limits))
    assert cli("run", "--out", "runs/base", "--only", "export")[0] == 0
    (place / "model.onnx").write_bytes(make_model(extra=6).SerializeToString())
    for _ in range(2):
        code, out, _ = cli("run", "--baseline", "runs/base", "--only", "export,gate", "--json")
        document = json.loads(out)
        gate = document["stages"][-1]
        assert (code, document["verdict"], gate["kind"]) == (1, "failed", "regression")
    assert document["unchanged"] is True  # Not tried again until it passes.
