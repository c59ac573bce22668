"""Which artifacts, stages and baselines a `segdeploy run` takes, and which it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeploy.core.errors import ConfigError, DataError
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


def _write_folder(root: Path) -> None:
    """Write 20 val images; number 1, which verify does not look at, calibrates as well."""
    for split, count, first in (("train", 3, 1), ("val", 20, 0)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng(first + 100 * index).integers(0, 256, (64, 96, 3))
            if (split, index) == ("val", 1):
                pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"images/{split}/{index:02}.png")
            label = Image.fromarray(np.zeros((64, 96), np.uint8))
            label.save(root / f"labels/{split}/{index:02}.png")
    (root / "classes.txt").write_text("background\ndisc\nbox\ntriangle\nbar\n")


@pytest.mark.usefixtures("place")
def test_images_that_calibrate_and_judge_are_refused_before_any_work() -> None:
    _write_folder(Path("data"))
    text = CONFIG.read_text().replace('["onnx-fp32"]', '["onnx-fp32", "onnx-int8"]')
    CONFIG.write_text(text.replace('"synthetic:64x96:8"', '"folder:data"'))
    leak = {"run": {"calibration": "folder:data"}}
    for force in (False, True):
        with pytest.raises(DataError, match=r"Image 01 of .*val.* calibrated int8 .*00"):
            run(load_run_config(CONFIG, leak), force=force)
    assert not Path("runs").exists()
    assert [row.export.partition(":")[0] for row in plan_run(load_run_config(CONFIG, leak))] == [
        "build", "refused",
    ]  # fmt: skip
    with CONFIG.open("a") as file:
        file.write("[evaluate]\nlimit = 1\n")  # Nothing else looks at number 1.
    assert [row.export for row in plan_run(load_run_config(CONFIG, leak))] == ["build", "build"]
    Image.open("data/images/train/00.png").save("data/images/val/00.png")
    with pytest.raises(DataError, match=r"Image 00 of .*val"):
        run(load_run_config(CONFIG, leak))


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
