"""`--int8-policy`: what it changes in the artifact, its key and its manifest; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.contract import IoContract
from segdeploy.core.errors import ConfigError, UnsupportedTargetError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.target import ExportTarget, Precision
from segdeploy.export import Int8Options, export, graphs, stage
from segdeploy.export.plan import PLAIN, Step
from segdeploy.graph.calibrate import count_values
from segdeploy.graph.placement import place_qdq
from segdeploy.graph.policy import load_policy, shipped_policy
from segdeploy.graph.proto import load_graph

DATA = "synthetic"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


def _export(checkpoint: Checkpoint, run: Path, policy: str, name: str) -> tuple[Path, bool]:
    outcome = export(
        checkpoint.path, ["onnx-int8"], run,
        calibration=DATA, num_calibration_images=2, int8_policy=policy, name=name,
    )[0]  # fmt: skip
    return outcome.path, outcome.reused


def test_the_manifest_tells_the_policy_and_the_counts_and_a_file_every_node(
    checkpoint: Checkpoint, run: Path
) -> None:
    folder, _ = _export(checkpoint, run, "all", "everything")
    artifact = load_artifact(folder)
    plain = load_graph(run / "onnx-fp32" / "model.onnx")
    wanted = place_qdq(plain, load_policy("all", "onnx"))
    told = artifact.manifest.options["int8"]
    assert told == {"policy": "all", "digest": shipped_policy("all").digest, **wanted.summary()}
    assert told["groups"]["hard_swish"] == {"int8": 1}
    nodes = json.loads((folder / "placement.json").read_text())["nodes"]
    assert {node["group"] for node in nodes} == set(told["groups"])
    assert all(set(n) == {"node", "operator", "group", "choice", "reason"} for n in nodes)
    assert "placement.json" in artifact.manifest.companions


def test_the_content_of_a_policy_decides_whether_an_artifact_is_reused(
    checkpoint: Checkpoint, run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[groups]\nclassifier = 'float'\n")
    first, _ = _export(checkpoint, run, str(file), "mine")
    graph = (first / "model.onnx").read_bytes()
    file.write_text("description = 'in other words'\n[groups]\nclassifier = 'float'\n")
    assert _export(checkpoint, run, str(file), "mine") == (first, True)
    file.write_text("[groups]\nclassifier = 'int8'\n")
    assert _export(checkpoint, run, str(file), "mine") == (first, False)
    assert (first / "model.onnx").read_bytes() != graph


def test_the_default_is_the_shipped_policy_of_the_backend(
    checkpoint: Checkpoint, run: Path
) -> None:
    folder, _ = _export(checkpoint, run, "default", "usual")
    told = load_artifact(folder).manifest.options["int8"]
    assert (told["policy"], told["digest"]) == (
        shipped_policy("onnx").name, shipped_policy("onnx").digest,
    )  # fmt: skip


def test_artifacts_without_int8_say_nothing_of_a_policy(checkpoint: Checkpoint, run: Path) -> None:
    _export(checkpoint, run, "default", "usual")
    assert "int8" not in load_artifact(run / "onnx-fp32").manifest.options
    assert not (run / "onnx-fp32" / "placement.json").exists()


@pytest.mark.parametrize(
    ("targets", "policy", "said"),
    [
        (["onnx-fp32"], "all", "not onnx-fp32"),
        (["onnx-int8", "executorch-int8"], "all", "not executorch-int8"),
        (["onnx-int8"], "none.toml", "none.toml"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused_before_any_work(
    targets: list[str], policy: str, said: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if "executorch-int8" in targets:
        pytest.importorskip("executorch")
    with pytest.raises(ConfigError, match=said):
        export(
            checkpoint.path, targets, tmp_path / "run",
            calibration=DATA, int8_policy=policy, size=(64, 96),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("targets", [["onnx-fp32"], ["onnx-int8", "executorch-int8"]])
def test_options_that_would_change_nothing_of_a_target_are_refused(
    targets: list[str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if "executorch-int8" in targets:
        pytest.importorskip("executorch")
    with pytest.raises(ConfigError, match=f"change nothing for {targets[-1]}"):
        export(
            checkpoint.path, targets, tmp_path / "run",
            calibration=DATA, int8_options=Int8Options(correct_bias=True), size=(64, 96),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_a_policy(checkpoint: Checkpoint, run: Path, cli: Cli) -> None:
    code, out, err = cli(
        "export", str(checkpoint.path), "--target", "onnx-int8", "--out", str(run),
        "--calibration", DATA, "--calibration-images", "2", "--int8-policy", "all",
        "--name", "everything", "--no-verify", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert {each["target"] for each in json.loads(out)} == {"onnx-int8", "onnx-fp32"}
    assert load_artifact(run / "everything").manifest.options["int8"]["policy"] == "all"


def test_show_prints_what_became_of_every_node(checkpoint: Checkpoint, run: Path, cli: Cli) -> None:
    folder, _ = _export(checkpoint, run, "default", "usual")
    code, out, err = cli("show", str(folder))
    assert code == 0, err
    told = load_artifact(folder).manifest.options["int8"]
    nodes = json.loads((folder / "placement.json").read_text())["nodes"]
    assert all(node["node"] in out for node in nodes)
    assert f"{told['borders']} Q or DQ" in out
    code, out, err = cli("show", str(folder), "--json")
    assert code == 0, err
    assert json.loads(out) == {**told, "nodes": nodes}
    (folder / "placement.json").write_text('{"nodes": []}')
    code, out, err = cli("show", str(folder))
    assert code == 2
    assert "damaged" in err


def test_another_policy_calibrates_only_what_is_not_known_yet(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    original = count_values

    def counted(model: Any, tensors: Sequence[str], *rest: Any) -> Any:
        asked.append(set(tensors))
        return original(model, tensors, *rest)

    few = tmp_path / "few.toml"
    few.write_text("[groups]\nhard_swish = 'fused'\n")
    monkeypatch.setattr(f"{graphs.__name__}.count_values", counted)
    monkeypatch.setattr(graphs, "_known", {})
    for policy in (str(few), "all", str(few)):
        _export(checkpoint, tmp_path, policy, Path(policy).stem)
    again = tmp_path / "again"
    graphs._known.clear()
    fresh, _ = _export(checkpoint, again, "all", "all")
    plain = load_graph(tmp_path / "onnx-fp32" / "model.onnx")
    first, everything = (
        set(place_qdq(plain, load_policy(text, "onnx")).observed) for text in (str(few), "all")
    )
    assert asked == [first, everything - first, everything]
    for name in ("model.onnx", "calibration.json"):
        assert (fresh / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


@pytest.mark.parametrize("options", [Int8Options(), Int8Options(correct_bias=True)])
def test_int8_that_would_quantise_nothing_is_refused(
    options: Int8Options, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    file = tmp_path / "nothing.toml"
    file.write_text("[[overrides]]\nnodes = '*'\nchoice = 'float'\n")
    with pytest.raises(UnsupportedTargetError, match="'nothing' leaves every node") as caught:
        export(
            checkpoint.path, ["onnx-int8"], tmp_path, calibration=DATA, num_calibration_images=2,
            int8_policy=str(file), int8_options=options,
        )  # fmt: skip
    assert "--int8-policy" in caught.value.hint
    assert not (tmp_path / "onnx-int8").exists()


def test_a_runtime_that_takes_symmetric_int8_only_refuses_another_grid(
    tmp_path: Path,
) -> None:
    steps = [
        Step(
            ExportTarget("tensorrt", Precision.INT8), IoContract(), None, tmp_path / "a",
            parent=Step(PLAIN, IoContract(), None, tmp_path / "b"),
        )
    ]  # fmt: skip
    file = tmp_path / "bytes.toml"
    file.write_text('activations = "asymmetric"\n')
    with pytest.raises(ConfigError, match="symmetric int8 only"):
        stage._load_policies(steps, str(file))
    file.write_text('activations = "symmetric"\n')
    assert stage._load_policies(steps, str(file))["tensorrt"].activations == "symmetric"
    assert shipped_policy("tensorrt").activations == "symmetric"
