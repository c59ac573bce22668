"""What `segdeploy run` compares with: a folder of an earlier run, or its stored result."""

from __future__ import annotations

import json
import shutil
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


def find(root: Path, model: str, artifact: Path) -> Path | None:
    return find_baseline(root, model, artifact, is_only_model=True)


@pytest.mark.usefixtures("place")
def test_what_is_left_of_a_run_is_a_stored_baseline(cli: Cli) -> None:
    assert cli("run", "--out", "runs/base", "--only", "export,bench")[0] == 0
    base, kept = Path("runs/base/tiny/onnx-fp32"), Path("kept/tiny/onnx-fp32")
    kept.mkdir(parents=True)
    (kept / "bench.json").write_bytes((base / "bench.json").read_bytes())
    for place in (Path("kept"), kept.parent, kept, kept / "bench.json"):
        assert find(place, "tiny", base) == kept / "bench.json"
    text = CONFIG.read_text()
    CONFIG.write_text(
        text.replace("size =", "# size =").replace('latency = "off"', 'latency = "90%"')
    )

    for root in ("kept", str(kept), str(kept / "bench.json")):
        out = cli("run", "--baseline", root, "--only", "export,gate", "--json")[1]
        found = json.loads(out)["stages"][-1]
        assert found["gate"]["baseline"] == str(kept / "bench.json"), found

    plain = json.loads((kept / "bench.json").read_text())
    plain["environment"]["cpu"] = "Some other CPU"
    (kept / "bench.json").write_text(json.dumps(plain))
    code, out, _ = cli("run", "--baseline", "kept", "--only", "export,gate", "--json")
    reason = json.loads(out)["stages"][-1]["reason"]
    assert (code, "Some other CPU" in reason) == (2, True)
    assert "keys:" in reason  # Not only flags, which `run` does not have.
    assert "allow_different_machine of [gate]" in reason
    allowed = "[gate]\nallow_different_machine = true"
    CONFIG.write_text(CONFIG.read_text().replace("[gate]", allowed))
    for is_reused in (False, True):
        out = cli("run", "--baseline", "kept", "--only", "export,gate", "--json")[1]
        told = json.loads(out)["stages"][-1]
        assert (told["status"], told["kind"]) == ("skipped", "unjudged")
        assert (told["gate"]["verdict"], told["reused"]) == ("unjudged", is_reused)
        assert json.loads(out)["unchanged"] is is_reused

    plain["target"] = "onnx-int8"
    (kept / "bench.json").write_text(json.dumps(plain))
    assert find(kept / "bench.json", "tiny", base) is None
    (kept / "bench.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not the result of a bench"):
        find(kept / "bench.json", "tiny", base)


def test_a_baseline_is_found_by_model_and_name(place: Path, cli: Cli) -> None:
    assert cli("run", "--out", "run", "--only", "export")[0] == 0
    made = place / "run/tiny/onnx-fp32"
    assert find(place / "run", "tiny", made) == made
    assert find(place / "run", "other", made) is None
    for root in (place / "run/tiny", Path("run/../run/tiny"), made, Path("run/tiny/onnx-fp32")):
        for model, is_only_model, is_its_own in (
            ("tiny", False, True), ("tiny", True, True), ("other", False, False),
            ("other", True, True),  # Whatever the only model is called: a person named the place.
        ):  # fmt: skip
            found = find_baseline(root, model, made, is_only_model=is_only_model)
            assert (found is not None) is is_its_own, (root, model, is_only_model)
    other = place / "run/tiny/onnx-fp32+64x96"  # Of the same target.
    shutil.copytree(made, other)
    assert find(made, "tiny", other) is None
    (place / "int8/onnx-fp32").mkdir(parents=True)
    changed = encode_manifest(load_artifact(made).manifest.replace(target="onnx-int8"))
    (place / "int8/onnx-fp32/manifest.json").write_bytes(changed)
    assert find(place / "int8/onnx-fp32", "tiny", made) is None


@pytest.mark.usefixtures("place")
def test_one_models_baseline_serves_no_other_model(cli: Cli) -> None:
    assert cli("run", "--out", "runs/base", "--only", "export,bench")[0] == 0
    text = CONFIG.read_text()
    model = text[text.index("[[model]]") : text.index("[bench]")]
    CONFIG.write_text(text + model.replace('"tiny"', '"new"'))
    shutil.copy("runs/base/tiny/onnx-fp32/bench.json", "base.json")
    for root in ("runs/base/tiny", "runs/base/tiny/onnx-fp32"):
        code, out, _ = cli("run", "--only", "export,gate", "--baseline", root, "--json")
        gates = [each for each in json.loads(out)["stages"] if each["stage"] == "gate"]
        assert code == 0
        assert [(gate["model"], gate["status"]) for gate in gates] == [
            ("tiny", "passed"), ("new", "skipped"),
        ]  # fmt: skip
    new = Path("runs/head/new/onnx-fp32")
    assert find_baseline(Path("base.json"), "new", new, is_only_model=False) is None
    found = find_baseline(Path("base.json"), "tiny", new, is_only_model=False)
    assert found == Path("base.json")  # What it measured was called so.


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
