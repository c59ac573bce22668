"""`--output auto`: the forms are built and timed, the fastest stays, and the choice is kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import segdeploy
from segdeploy.backends.predictor import open_predictor
from segdeploy.cli import commands  # noqa: F401  registers every command
from segdeploy.core.contract import InputKind, IoContract, OutputKind
from segdeploy.core.errors import ArtifactError, SegDeployError, UnsupportedTargetError
from segdeploy.core.folder import Checkpoint, load_artifact, load_checkpoint
from segdeploy.core.manifest import encode_manifest
from segdeploy.core.results import BenchResult
from segdeploy.export import Int8Options, export
from segdeploy.workflows.choose_output import (
    CHOICE,
    Measuring,
    _Maker,
    describe,
    describe_choice,
    export_fastest,
)
from segdeploy.workflows.form_folders import own_names

SIZE = (64, 96)
BRIEF = Measuring(threads=1, seconds=0.2, warmup_s=0.1)


def _result(form: str, ms: float, samples: list[float] | None = None) -> BenchResult:
    return BenchResult(
        target="onnx-fp32", path=form, samples_ms=samples or [ms, ms, 2 * ms], batch_size=1,
        input_shape=(1, 64, 96, 3), peak_memory_mib=None, environment={"cpu": "c"},
    )  # fmt: skip


def test_the_fastest_form_is_chosen_and_the_others_are_told() -> None:
    results = {
        OutputKind.LOGITS: _result("a", 3.0),
        OutputKind.LABELS: _result("b", 2.5),
        OutputKind.LOW_LOGITS: _result("c", 2.0),
    }
    choice = describe_choice(results, {}, BRIEF)
    assert choice["chosen"] == "low-logits"
    assert choice["p50_ms"] == {"low-logits": 2.0, "labels": 2.5, "logits": 3.0}
    assert choice["ratio_to_next"] == 1.25
    assert describe(choice) == (
        "low-logits is the fastest way to a label map here "
        "(low-logits 2.0 ms, labels 2.5 ms, logits 3.0 ms)"
    )


def test_a_winner_within_noise_says_so_and_what_it_was_judged_by() -> None:
    results = {
        OutputKind.LOGITS: _result("a", 0, [4.0 + 0.01 * i for i in range(7)]),
        OutputKind.LABELS: _result("b", 0, [2.0 + 0.1 * i for i in range(7)]),
        OutputKind.LOW_LOGITS: _result("c", 0, [2.05 + 0.1 * i for i in range(6)]),
    }
    choice = describe_choice(results, {}, BRIEF)
    assert choice["num_samples"] == {"labels": 7, "low-logits": 6, "logits": 7}
    # All of six or seven: between the least and the largest lies the median in 97 % and 98 %.
    ends = {"labels": [2.0, 2.6], "low-logits": [2.05, 2.55], "logits": [4.0, 4.06]}
    assert choice["interval_ms"] == ends
    said = "labels is the fastest way to a label map here, within noise as fast as low-logits ("
    assert describe(choice).startswith(said)
    del choice["interval_ms"]  # As in an older manifest.
    assert describe(choice).startswith("labels is the fastest way to a label map here (")


@pytest.mark.serial
def test_one_artifact_stays_and_is_taken_again_as_it_was_chosen(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    said: list[str] = []
    done = export_fastest(
        checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, measuring=BRIEF, report=said.append
    )
    folder = tmp_path / "onnx-fp32+64x96+auto"
    assert done[0].passed
    assert done[0].outcome.path == folder
    choice = load_artifact(folder).manifest.options[CHOICE]
    assert set(choice["p50_ms"]) == {"logits", "labels", "low-logits"}
    assert choice["chosen"] == min(choice["p50_ms"], key=choice["p50_ms"].get)
    assert any("is the fastest way" in line for line in said)
    kept = {path.name for path in tmp_path.iterdir()} - {"onnx-fp32+64x96"}  # The parent.
    assert kept == {folder.name}
    stamp = (folder / "model.onnx").stat().st_mtime_ns
    again = export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, measuring=BRIEF)
    assert again[0].outcome.reused
    assert (folder / "model.onnx").stat().st_mtime_ns == stamp
    assert load_artifact(folder).manifest.options[CHOICE] == choice


@pytest.mark.serial
def test_a_stored_choice_is_not_measured_again(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, measuring=BRIEF)
    folder = tmp_path / "onnx-fp32+64x96+auto"
    before = load_artifact(folder).manifest
    monkeypatch.setattr(
        "segdeploy.workflows.choose_output.measure_interleaved",
        lambda *_, **__: pytest.fail("timed"),
    )
    (folder / "model.onnx").write_bytes(b"damaged")
    export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, measuring=BRIEF)
    after = load_artifact(folder).manifest
    assert after.options[CHOICE] == before.options[CHOICE]
    assert after.digest == before.digest


def test_bind_is_the_whole_way_to_the_label_map(checkpoint: Checkpoint, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    maps = []
    for form in (OutputKind.LOGITS, OutputKind.LABELS, OutputKind.LOW_LOGITS):
        io = IoContract(InputKind.IMAGE, form)
        made = export(checkpoint.path, ["onnx-fp32"], tmp_path, io=io, size=SIZE)[0]
        with segdeploy.open(made.path) as predictor:
            call = predictor.bind(image)
            maps.append(call())
            np.testing.assert_array_equal(maps[-1], predictor.predict(image).labels)
    np.testing.assert_array_equal(maps[1], maps[0])
    np.testing.assert_array_equal(maps[2], maps[0])


MODULE = "segdeploy.workflows.choose_output"
PARENT, LABELS = "onnx-fp32+64x96", "onnx-fp32+labels+64x96"


def _measured(
    monkeypatch: pytest.MonkeyPatch,
    fastest: OutputKind,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """Let one form be the fastest; something else happens while it is measured."""

    def measure(paths: list[Path], *_: Any, **__: Any) -> SimpleNamespace:
        meanwhile()
        forms = {path: load_artifact(path).manifest.io.output for path in paths}
        results = [_result(str(p), 1.0 if forms[p] is fastest else 2.0) for p in paths]
        return SimpleNamespace(results=results, failures=[])

    monkeypatch.setattr(f"{MODULE}.measure_interleaved", measure)


def _snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _user_file(run: Path) -> None:
    (run / "mine").mkdir()
    (run / "mine" / "notes.txt").write_text("mine", encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["checkpoint", "../outside", "sub/folder", "mine", "link", PARENT, ""]
)
def test_a_name_that_is_refused_is_refused_before_anything_is_built(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(checkpoint.path, run / "checkpoint")
    shutil.copytree(checkpoint.path, tmp_path / "outside")
    _user_file(run)
    (run / "link").symlink_to(tmp_path / "outside")
    export(run / "checkpoint", ["onnx-fp32"], run, size=SIZE)
    before = _snapshot(tmp_path)
    io = IoContract(output=OutputKind.LABELS)
    with pytest.raises(SegDeployError) as usual:
        export(run / "checkpoint", ["onnx-fp32"], run, io=io, size=SIZE, name=name)
    _measured(monkeypatch, OutputKind.LABELS)
    with pytest.raises(type(usual.value)) as found:
        export_fastest(run / "checkpoint", ["onnx-fp32"], run, size=SIZE, name=name, force=True)
    assert str(found.value) == str(usual.value)
    assert _snapshot(tmp_path) == before


def test_a_name_fits_one_target(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SegDeployError, match="fits one target"):
        export_fastest(checkpoint.path, ["onnx-fp32", "torchscript-fp32"], tmp_path, name="x")
    assert not any(tmp_path.iterdir())


def test_the_parent_is_built_once_and_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _measured(monkeypatch, OutputKind.LOGITS)
    said: list[str] = []
    export_fastest(
        checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name="x", report=said.append
    )
    assert sum(line.startswith(f"{PARENT}: building") for line in said) == 1
    assert {path.name for path in tmp_path.iterdir()} == {PARENT, "x"}
    assert load_artifact(tmp_path / "x").manifest.io == IoContract()


def test_what_another_export_takes_meanwhile_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile() -> None:
        io = IoContract(output=OutputKind.LABELS)
        export(checkpoint.path, ["onnx-fp32"], tmp_path, io=io, size=SIZE)

    _measured(monkeypatch, OutputKind.LOW_LOGITS, meanwhile)
    export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name="x")
    assert {path.name for path in tmp_path.iterdir()} == {PARENT, LABELS, "x"}
    assert load_artifact(tmp_path / LABELS).manifest.io.output is OutputKind.LABELS


@pytest.mark.parametrize("name", [LABELS, "x"])
def test_a_winner_that_was_there_before_stays_there(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    io = IoContract(output=OutputKind.LABELS)
    export(checkpoint.path, ["onnx-fp32"], tmp_path, io=io, size=SIZE)
    stamp = (tmp_path / LABELS / "model.onnx").stat().st_mtime_ns
    _measured(monkeypatch, OutputKind.LABELS)
    export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name=name)
    assert (tmp_path / LABELS / "model.onnx").stat().st_mtime_ns == stamp
    assert load_artifact(tmp_path / name).manifest.options[CHOICE]["chosen"] == "labels"
    assert {path.name for path in tmp_path.iterdir()} == {PARENT, LABELS, name}


def test_a_choice_is_made_again_where_what_it_depends_on_is_another(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = tmp_path / "checkpoint", tmp_path / "run"
    shutil.copytree(checkpoint.path, source)
    asked: dict[str, Any] = {"size": SIZE, "name": "x", "verify": False, "measuring": BRIEF}
    targets = ["onnx-fp32"]

    def choose(fastest: OutputKind) -> str:
        _measured(monkeypatch, fastest)
        export_fastest(source, targets, run, **asked)
        chosen: str = load_artifact(run / "x").manifest.options[CHOICE]["chosen"]
        return chosen

    forms = cycle([OutputKind.LOW_LOGITS, OutputKind.LABELS])
    assert choose(OutputKind.LABELS) == "labels"
    assert choose(OutputKind.LOW_LOGITS) == "labels"  # Nothing has changed.
    monkeypatch.setattr(f"{MODULE}.machine_key", lambda: "another machine")
    assert choose(fastest := next(forms)) == fastest
    monkeypatch.setattr("segdeploy.workflows.run_keys.runtime_versions", lambda: {"numpy": "9"})
    assert choose(fastest := next(forms)) == fastest
    asked["measuring"] = replace(BRIEF, threads=2)
    assert choose(fastest := next(forms)) == fastest
    manifest = load_checkpoint(source).manifest
    renamed = manifest.replace(classes=("nothing", *manifest.classes[1:]))
    (source / "manifest.json").write_bytes(encode_manifest(renamed))
    assert choose(fastest := next(forms)) == fastest
    assert choose(next(forms)) == fastest  # Nothing has changed again.


def test_an_int8_choice_depends_on_policy_and_options(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def key(target: str = "onnx-int8", **options: Any) -> str:
        shared = {"size": SIZE, "max_batch": 1, **options}
        maker = _Maker(checkpoint, checkpoint.path, target, tmp_path, InputKind.TENSOR, shared)
        return maker.key(BRIEF)

    assert key() == key(int8_options=Int8Options(), int8_policy="default")
    changes: list[dict[str, Any]] = [
        {"int8_policy": "all"}, {"int8_options": Int8Options(equalize=True)},
        {"size": (96, 96)}, {"max_batch": 2}, {"target": "onnx-fp32"},
        {"calibration": "synthetic:64x64"}, {"num_calibration_images": 7},
    ]  # fmt: skip
    assert len({key(), *(key(**change) for change in changes)}) == 1 + len(changes)
    assert key("onnx-fp32", int8_policy="all") == key("onnx-fp32")


def test_forms_that_a_killed_export_left_go_with_the_next_one(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE)  # The fork only edits its graph.
    mine = {"x-labels-0a1b2c3d", ".x.0123abcd.auto", ".x.auto"}  # Tokens that nobody was given.
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine", encoding="utf-8")
    child = os.fork()
    if child == 0:
        try:
            _measured(monkeypatch, OutputKind.LABELS, lambda: os.kill(os.getpid(), signal.SIGKILL))
            export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name="x")
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()} - {PARENT} - mine
    assert sorted(re.sub("[0-9a-f]{8}", "TOKEN", name) for name in left) == [
        ".x.TOKEN.auto", "x-labels-TOKEN", "x-low-logits-TOKEN",
    ]  # fmt: skip

    _measured(monkeypatch, OutputKind.LABELS)
    with own_names(tmp_path / "x") as living:
        (tmp_path / living[OutputKind.LABELS]).mkdir()
        export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name="x")
        assert (tmp_path / living[OutputKind.LABELS]).is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {PARENT, "x"} | mine
    assert all((tmp_path / name / "notes.txt").is_file() for name in mine)


def test_a_file_that_came_meanwhile_is_not_replaced(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _measured(monkeypatch, OutputKind.LABELS, lambda: _user_file(tmp_path))
    with pytest.raises(ArtifactError, match="will not be replaced"):
        export_fastest(checkpoint.path, ["onnx-fp32"], tmp_path, size=SIZE, name="mine")
    assert (tmp_path / "mine" / "notes.txt").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {PARENT, "mine"}


def test_broken_output_word(
    cli: Callable[..., tuple[int, str, str]], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    code, _, err = cli(
        "export", str(checkpoint.path), "--target", "onnx-fp32", "--out", str(tmp_path / "r"),
        "--output", "lowlogits",
    )  # fmt: skip
    assert code == 2
    assert "low-logits" in err


def test_a_binary_model(binary_checkpoint: Checkpoint, tmp_path: Path) -> None:
    from segdeploy.verify import verify

    io = IoContract(output=OutputKind.LOW_LOGITS)
    made, plain = export(binary_checkpoint.path, ["onnx-fp32"], tmp_path, io=io, size=SIZE)
    assert verify(made.path).passed
    image = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    with segdeploy.open(made.path) as low, segdeploy.open(plain.path) as full:
        found = low.predict(image)
        np.testing.assert_array_equal(found.labels, full.predict(image).labels)
        assert found.confidence is None
        one, other = (p.predict(image, with_confidence=True).confidence for p in (low, full))
        assert one is not None
        assert other is not None
        np.testing.assert_allclose(one, other, atol=1e-6)
    maps = []
    for path in (made.path, plain.path):
        with open_predictor(path, threshold=0.6) as predictor:
            maps += [predictor.predict(image).labels, predictor.bind(image)()]
    assert not np.array_equal(maps[0], found.labels)
    for each in maps[1:]:
        np.testing.assert_array_equal(each, maps[0])


def test_a_dry_run_writes_nothing(
    cli: Callable[..., tuple[int, str, str]], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    code, out, _ = cli(
        "export", str(checkpoint.path), "--target", "onnx-fp32", "--out", str(tmp_path / "r"),
        "--output", "auto", "--size", "64x96", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0
    assert not (tmp_path / "r").exists()
    assert any("low-logits" in row["path"] for row in json.loads(out))


def test_a_full_resolution_head_is_refused_before_anything_is_built() -> None:
    import torch

    from segdeploy.backends.contract_module import find_upsampling

    full = torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(UnsupportedTargetError, match="do not come out of"):
        find_upsampling(full, SIZE)


def test_of_several_targets_one_that_fails_does_not_stop_the_others(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fail_at_openvino(maker: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(maker.target)
        if maker.target == "openvino-fp32":
            raise ArtifactError("no form could be measured")
        return []

    monkeypatch.setattr("segdeploy.workflows.choose_output._export_one", fail_at_openvino)
    targets = ["openvino-fp32", "onnx-fp32"]
    (failed,) = export_fastest(checkpoint.path, targets, tmp_path, size=SIZE)
    assert asked == targets
    assert failed.outcome.error is not None
    assert failed.outcome.target == "openvino-fp32"
    with pytest.raises(ArtifactError, match="no form"):
        export_fastest(checkpoint.path, targets[:1], tmp_path, size=SIZE)
