"""What `segdeploy run` compares with: a folder of an earlier run, or its stored result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segdeploy.core.errors import ArtifactError
from segdeploy.core.folder import load_artifact
from segdeploy.core.manifest import encode_manifest
from segdeploy.workflows.run import run
from segdeploy.workflows.run_baseline import NO_COUNTERPART, check_matches, find_baseline
from segdeploy.workflows.run_config import load_run_config
from segdeploy.workflows.run_result import StageOutcome, Status

Cli = Callable[..., tuple[int, str, str]]
CONFIG = Path("segdeploy.toml")


@pytest.mark.usefixtures("place")
def test_what_is_left_of_a_run_is_a_stored_baseline(cli: Cli) -> None:
    assert cli("run", "--out", "runs/base", "--only", "export,bench")[0] == 0
    base, kept = Path("runs/base/tiny/onnx-fp32"), Path("kept/tiny/onnx-fp32")
    kept.mkdir(parents=True)
    (kept / "bench.json").write_bytes((base / "bench.json").read_bytes())
    assert find_baseline(Path("kept"), "tiny", base) == kept / "bench.json"
    text = CONFIG.read_text()
    CONFIG.write_text(
        text.replace("size =", "# size =").replace('latency = "off"', 'latency = "90%"')
    )

    for place in ("kept", str(kept / "bench.json")):
        out = cli("run", "--baseline", place, "--only", "export,gate", "--json")[1]
        found = json.loads(out)["stages"][-1]
        assert found["gate"]["baseline"] == str(kept / "bench.json"), found

    plain = json.loads((kept / "bench.json").read_text())
    plain["environment"]["cpu"] = "Some other CPU"
    (kept / "bench.json").write_text(json.dumps(plain))
    code, out, _ = cli("run", "--baseline", "kept", "--only", "export,gate", "--json")
    assert (code, "Some other CPU" in json.loads(out)["stages"][-1]["reason"]) == (2, True)
    allowed = "[gate]\nallow_different_machine = true"
    CONFIG.write_text(CONFIG.read_text().replace("[gate]", allowed))
    out = cli("run", "--baseline", "kept", "--only", "export,gate", "--json")[1]
    assert json.loads(out)["stages"][-1]["gate"] is not None

    plain["target"] = "onnx-int8"
    (kept / "bench.json").write_text(json.dumps(plain))
    assert find_baseline(kept / "bench.json", "tiny", base) is None
    (kept / "bench.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not the result of a bench"):
        find_baseline(kept / "bench.json", "tiny", base)


def test_a_baseline_is_found_by_name_or_target(place: Path, cli: Cli) -> None:
    assert cli("run", "--out", "run", "--only", "export")[0] == 0
    made = place / "run/tiny/onnx-fp32"
    assert find_baseline(place / "run", "tiny", made) == made
    assert find_baseline(place / "run/tiny", "other", made) == made
    other = made.rename(made.with_name("another-name"))
    assert find_baseline(other, "tiny", other) == other
    assert find_baseline(place / "run", "tiny", made) is None
    manifest = load_artifact(other).manifest
    (place / "int8").mkdir()
    changed = encode_manifest(manifest.replace(target="onnx-int8"))
    (place / "int8/manifest.json").write_bytes(changed)
    assert find_baseline(place / "int8", "tiny", other) is None


def test_a_baseline_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    gated = StageOutcome(model="m", artifact="a", stage="gate", status=Status.PASSED)
    new = replace(gated, status=Status.SKIPPED, kind=NO_COUNTERPART)
    assert check_matches([new, gated], tmp_path)[0].status is Status.SKIPPED
    assert check_matches([new, replace(gated, stage="bench")], tmp_path)[0].exit_code == 2


@pytest.mark.usefixtures("place")
def test_a_baseline_that_is_not_there_yet_stops_no_run_without_a_gate() -> None:
    CONFIG.write_text(CONFIG.read_text().replace("[gate]", '[gate]\nbaseline = "runs/base"'))
    result = run(load_run_config(CONFIG, {"run": {"out": "runs/base", "stages": ["export"]}}))
    assert result.exit_code == 0
