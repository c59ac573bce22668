"""Which artifacts, stages and baselines a `segdeploy run` takes, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.core.errors import ConfigError
from segdeploy.workflows.run import plan_run, run
from segdeploy.workflows.run_config import load_run_config
from segdeploy.workflows.run_result import Status
from segdeploy.workflows.run_tables import Stage

Cli = Callable[..., tuple[int, str, str]]
CONFIG = Path("segdeploy.toml")


@pytest.mark.usefixtures("place")
def test_an_int8_policy_that_is_none_is_refused_before_any_work() -> None:
    text = CONFIG.read_text().replace('"onnx-fp32"', '"onnx-int8"')
    CONFIG.write_text(text.replace("[[model]]", '[[model]]\nint8_policy = "absent"'))
    calibrated = {"run": {"calibration": "synthetic:64x96:8"}}
    with pytest.raises(ConfigError, match="int8 policy 'absent'"):
        run(load_run_config(CONFIG, calibrated))
    assert not Path("runs").exists()


@pytest.mark.usefixtures("place")
def test_ready_artifacts_of_one_name_are_refused() -> None:
    for places in ('["d1/a", "d2/a"]', '["d1/a", "d2/b/../a/."]'):
        CONFIG.write_text(f'[run]\nout = "runs/x"\n[[model]]\nname = "m"\nartifacts = {places}\n')
        with pytest.raises(ConfigError, match="d1/a twice"):
            load_run_config(CONFIG, {})


@pytest.mark.usefixtures("place")
def test_two_sizes_of_a_model_of_one_size_are_one_artifact() -> None:
    CONFIG.write_text(
        CONFIG.read_text().replace("[bench]", 'sizes = ["dynamic", "64x96"]\n[bench]')
    )
    result = run(load_run_config(CONFIG, {"run": {"stages": ["export"]}}))
    assert [(o.artifact, o.status) for o in result.outcomes if o.stage == "export"] == [
        ("onnx-fp32", Status.PASSED), ("onnx-fp32+64x96", Status.ERROR),
    ]  # fmt: skip
    assert "of another target or size" in result.outcomes[-1].reason


def test_a_run_is_not_its_own_baseline(place: Path, cli: Cli) -> None:
    assert cli("run", "--only", "export")[0] == 0
    (place / "link").symlink_to("runs/head")
    for own in ("runs/head", "runs/../runs/head/tiny", "link"):
        with pytest.raises(ConfigError, match="compared with itself"):
            run(load_run_config(CONFIG, {"gate": {"baseline": own}}))


@pytest.mark.usefixtures("place")
def test_an_error_of_a_foreign_file_says_where_the_settings_stand() -> None:
    CONFIG.write_text(CONFIG.read_text().replace(', "bar"', ""))
    (failed,) = run(load_run_config(CONFIG, {})).outcomes
    assert "4 class names" in failed.reason
    assert "In segdeploy.toml" in failed.reason


@pytest.mark.usefixtures("place")
def test_the_flag_only_leaves_out_stages_of_a_model_that_says_its_own() -> None:
    CONFIG.write_text(CONFIG.read_text().replace("[[model]]", '[[model]]\nstages = ["export"]'))
    flags = {"run": {"stages": ["export", "evaluate"]}}
    config = load_run_config(CONFIG, flags)
    assert config.stages_of(config.model[0]) == (Stage.EXPORT,)
    with pytest.raises(ConfigError, match="stage left to do"):
        load_run_config(CONFIG, {"run": {"stages": ["evaluate"]}})
    text = CONFIG.read_text()
    other = text[text.index("[[model]]") : text.index("[bench]")].replace("tiny", "other")
    CONFIG.write_text(text + other.replace('stages = ["export"]\n', ""))
    config = load_run_config(CONFIG, {"run": {"stages": ["bench"]}})
    assert [config.stages_of(model) for model in config.model] == [(), (Stage.BENCH,)]
    assert [row.model for row in plan_run(config)] == ["other"]
    assert {outcome.model for outcome in run(config).outcomes} == {"other"}
