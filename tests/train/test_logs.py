"""What a run writes down: every line once whatever ends it, pictures, event files."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

import segdeploy.train.run as run_module
from segdeploy.core.errors import BackendUnavailableError, ConfigError
from segdeploy.data import open_dataset
from segdeploy.train import TrainConfig, train
from segdeploy.train.batches import create_loader, epoch_batches
from segdeploy.train.log import JsonLines
from segdeploy.train.pictures import draw_samples, picture_path, prune_pictures, spread

BASE = TrainConfig(
    model="tiny_nets:Net",
    data="synthetic:64x64:16",
    out="",
    epochs=3,
    batch_size=4,
    augment="none",
    warmup_steps=0,
    clip_norm=0.1,
    workers=0,
    device="cpu",
    log_every=1,
    val_pictures=2,
    tensorboard=True,
)
_STEPS = 12
_TIMES = {"data_s", "step_s", "images_s", "seconds"}


@pytest.fixture(scope="module", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a net of two layers, where Python finds it."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "tiny_nets.py").write_text(
        textwrap.dedent("""
        from torch import nn

        class Net(nn.Sequential):
            def __init__(self, num_classes):
                super().__init__(
                    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
                    nn.Conv2d(8, num_classes, 3, padding=1),
                )
    """)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield folder
    sys.modules.pop("tiny_nets", None)


def _config(out: Path, **changes: Any) -> TrainConfig:
    return dataclasses.replace(BASE, out=str(out), **changes)


@pytest.fixture(scope="module")
def whole(nets: Path) -> Path:
    """A run that nothing interrupted."""
    run = nets / "whole"
    train(_config(run))
    return run


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in _lines(path)]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "weights.safetensors")


def _stop_after(steps: int) -> Callable[..., contextlib.AbstractContextManager[Callable[[], bool]]]:
    """A stand-in for Ctrl-C at a chosen step."""

    @contextlib.contextmanager
    def flag(*_: object) -> Iterator[Callable[[], bool]]:
        calls = iter(range(10**9))
        yield lambda: next(calls) >= steps - 1

    return flag


def test_the_lines_of_steps_are_those_of_the_training(whole: Path) -> None:
    lines, epochs = _lines(whole / "steps.jsonl"), _lines(whole / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(_STEPS))
    assert [line["epoch"] for line in lines] == [0] * 4 + [1] * 4 + [2] * 4
    for line in lines:
        # Poly, power 0.9; no warm-up.
        assert line["lr"] == pytest.approx(BASE.lr * (1 - line["step"] / _STEPS) ** 0.9)
        assert line["images_s"] == pytest.approx(4 / (line["data_s"] + line["step_s"]))
        assert line["grad_norm"] > 0
    for epoch in epochs:  # Each image has the same number of valid pixels, so each batch weighs 1.
        mine = [line for line in lines if line["epoch"] == epoch["epoch"]]
        for key in ("loss", "data_s"):
            assert epoch[key] == pytest.approx(np.mean([line[key] for line in mine]), rel=1e-5)
        assert epoch["lr"] == mine[-1]["lr"]


def test_a_line_is_strict_json_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "x.jsonl", "step")
    assert lines.read() == []
    lines.append({"step": 0, "loss": float("nan"), "grad_norm": float("inf")})
    assert lines.path.read_text() == '{"step":0,"loss":null,"grad_norm":null}\n'
    with lines.path.open("ab") as file:
        file.write(b'[1]\n{"epoch": 1}\n\xff\n\n{"step": "2"}\n{"step": 3}\n{"step": 4, "lo')
    assert [line["step"] for line in lines.read()] == [0, 3]
    lines.truncate(1)
    assert lines.path.read_text() == '{"step":0,"loss":null,"grad_norm":null}\n'


def test_every_so_many_steps_a_line_counted_over_the_run(tmp_path: Path) -> None:
    train(_config(tmp_path, log_every=3, tensorboard=False))
    assert [line["step"] for line in _lines(tmp_path / "steps.jsonl")] == [0, 3, 6, 9]
    assert not (tmp_path / "tensorboard").exists()


def test_lines_for_people_come_where_there_is_no_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(_config(tmp_path, log_every=3, epochs=1, tensorboard=False))
    said = capsys.readouterr().err
    assert "epoch 1/1 [1/4]" in said
    assert "epoch 1/1 [4/4]" in said
    assert "images_s" in said


def test_logging_changes_nothing_of_the_training(tmp_path: Path, whole: Path) -> None:
    train(_config(tmp_path, log_every=50, val_pictures=0, tensorboard=False))
    for key, value in _weights(tmp_path).items():
        assert torch.equal(value, _weights(whole)[key])
    assert not (tmp_path / "val").exists()
    assert len(_lines(tmp_path / "steps.jsonl")) == 1


def _events(run: Path, part: str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard" / part))
    found.Reload()
    return found


def _series(run: Path, part: str, name: str) -> list[Any]:
    return [(event.step, event.value) for event in _events(run, part).Scalars(name)]


def _check_events(run: Path) -> None:
    """The event files hold what the lines hold."""
    steps, epochs = _lines(run / "steps.jsonl"), _lines(run / "log.jsonl")
    for name in ("loss", "lr", "grad_norm"):
        want = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in steps]
        assert _series(run, "steps", name) == want
    for name in ("loss", "mean_iou"):
        want = [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in epochs]
        assert _series(run, "epochs", name) == want
    pictures = _events(run, "epochs").Images("validation")
    assert [picture.step for picture in pictures] == [line["epoch"] for line in epochs]
    with Image.open(picture_path(run, 2)) as stored:
        assert (pictures[-1].width, pictures[-1].height) == stored.size


def test_event_files_hold_numbers_pictures_and_the_recipe(whole: Path) -> None:
    _check_events(whole)
    text = _events(whole, "epochs").Tensors("recipe/text_summary")
    assert 'model = "tiny_nets:Net"' in text[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_what_a_kill_left_after_the_checkpoint_is_neither_kept_nor_doubled(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Lines and events of steps that RUN/last does not have, the last line cut."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(steps))
        with pytest.raises(KeyboardInterrupt):
            train(_config(tmp_path))
    epoch = min(steps // 4, (steps - 1) // 4)  # After four steps the first epoch is not over.
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(f'{{"epoch":{epoch},"step":{steps},"loss":9.0}}\n{{"epoch":1,"step":7,"lo')
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(f'{{"epoch":{epoch},"loss":9.0,"mean_iou":0.9}}\n')
    time.sleep(1.1)  # Event files are in the order of the seconds in their names.
    for part, number in (("steps", steps), ("epochs", epoch)):
        with SummaryWriter(str(tmp_path / "tensorboard" / part)) as writer:
            writer.add_scalar("loss", 9.0, number)
    time.sleep(1.1)
    train(_config(tmp_path), resume=True)
    for name in ("steps.jsonl", "log.jsonl"):
        assert _untimed(tmp_path / name) == _untimed(whole / name)
    _check_events(tmp_path)


def test_a_killed_run_goes_on_with_every_line_once(tmp_path: Path, whole: Path, nets: Path) -> None:
    config = _config(tmp_path, tensorboard=False)
    code = f"from segdeploy.train import TrainConfig, train\ntrain({config!r})"
    env = os.environ | {"PYTHONPATH": str(nets), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        steps = tmp_path / "steps.jsonl"
        if (tmp_path / "last").exists() and steps.read_text().count("\n") >= 6:
            process.kill()
        time.sleep(0.001)
    assert process.wait() in (0, -9)
    train(config, resume=True)
    for name in ("steps.jsonl", "log.jsonl"):
        assert _untimed(tmp_path / name) == _untimed(whole / name)


def test_what_was_left_before_a_first_checkpoint_is_dropped(tmp_path: Path) -> None:
    for name in ("steps.jsonl", "log.jsonl"):
        (tmp_path / name).write_text('{"epoch":0,"step":0,"loss":9.0}\n')
    train(_config(tmp_path, epochs=1, tensorboard=False, val_pictures=0))
    for name, num in (("steps.jsonl", 4), ("log.jsonl", 1)):
        lines = _untimed(tmp_path / name)
        assert len(lines) == num
        assert all(line["loss"] < 9 for line in lines)


def test_a_finished_run_is_resumed_without_a_trace(whole: Path) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    train(_config(whole), resume=True)
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_without_the_package_event_files_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BackendUnavailableError, match="needs tensorboard") as caught:
        train(_config(tmp_path))
    assert "segdeploy[tensorboard]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_pictures_show_the_same_samples_each_time(whole: Path) -> None:
    """The panel `image` is in the upper left of each comparison, under its title."""
    sheets = [np.asarray(Image.open(picture_path(whole, epoch))) for epoch in range(3)]
    data = open_dataset(BASE.data, "val")
    for sheet in sheets:
        assert sheet.shape[0] == 2 * (sheet.shape[0] // 2)
        for row, index in enumerate((0, 3)):  # The first and the last of four.
            top = row * (sheet.shape[0] // 2) + 24
            shown = Image.fromarray(data[index].image).resize((200, 200))
            np.testing.assert_array_equal(sheet[top : top + 200, 8:208], np.asarray(shown))
    assert any(not np.array_equal(sheets[0], sheet) for sheet in sheets[1:])


@pytest.mark.parametrize("name", ["synthetic_binary", "synthetic_multilabel"])
def test_a_wrong_prediction_is_red_and_a_right_one_is_not(name: str) -> None:
    data = open_dataset(f"{name}:64x64", "val")
    labels = {data[i].image.tobytes(): data[i].label for i in range(2)}
    right = draw_samples(data, [0, 1], lambda image: labels[image.tobytes()])
    wrong = draw_samples(data, [0, 1], lambda image: 1 - labels[image.tobytes()] % 2)
    red = [(sheet == (255, 45, 85)).all(axis=2).sum() for sheet in (right, wrong)]
    assert red[0] == 0 < red[1]


@pytest.mark.parametrize(
    ("num", "count", "found"),
    [(4, 2, [0, 3]), (101, 4, [0, 33, 67, 100]), (2, 4, [0, 1]), (1, 4, [0]), (9, 1, [0])],
)
def test_samples_are_spread_over_the_split(num: int, count: int, found: list[int]) -> None:
    assert spread(num, count) == found


def test_the_newest_ten_pictures_and_the_best_are_kept(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    for epoch in range(15):
        picture_path(tmp_path, epoch).touch()
        prune_pictures(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "val").iterdir())
    assert left == [f"epoch_{n:04d}.png" for n in (2, *range(5, 15))]


def test_the_picture_of_the_best_epoch_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeploy.train.pictures._KEPT", 1)
    train(_config(tmp_path, epochs=4, tensorboard=False))
    scores = [line["mean_iou"] for line in _lines(tmp_path / "log.jsonl")]
    kept = {picture_path(tmp_path, int(np.argmax(scores))), picture_path(tmp_path, 3)}
    assert set((tmp_path / "val").iterdir()) == kept


_GROUPS = [0, 1, 1, 0, 2, 1, 0, 1, 1, 2, 1, 1, 0]


def test_grouped_batches_depend_on_seed_and_epoch_alone() -> None:
    first, again, later = (epoch_batches(13, 4, 5, epoch, _GROUPS) for epoch in (1, 1, 2))
    assert first == again != later
    assert len(first) == len(epoch_batches(13, 4, 5, 1)) == 3
    assert all(len({_GROUPS[i] for i in batch}) == 1 for batch in first + later)
    with pytest.raises(ConfigError, match="fewer than the batch size"):
        epoch_batches(13, 14, 5, 1, _GROUPS)


def _mixed_folder(root: Path) -> None:
    """Three upright images to each lying one."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "classes.txt").write_text("thing\nstuff\n")
    random = np.random.default_rng(0)
    for index in range(20):
        size = (48, 64) if index % 4 else (64, 48)
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8).swapaxes(0, 1)).save(
            root / "images" / f"{index:02d}.png"
        )
        label = random.integers(0, 2, size, np.uint8).swapaxes(0, 1)
        Image.fromarray(label).save(root / "labels" / f"{index:02d}.png")


def test_a_run_whose_batches_are_of_one_shape_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mixed_folder(tmp_path / "data")
    data = f"folder:{tmp_path / 'data'}"
    seen: list[list[int]] = []

    def spy(view: Any, batches: list[list[int]], *rest: int) -> Any:
        seen.extend(batches)
        return create_loader(view, batches, *rest)

    changes: dict[str, Any] = {
        "data": data, "group_by_aspect": 0, "tensorboard": False, "crop": (48, 48),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("segdeploy.train.loop.create_loader", spy)
        train(_config(tmp_path / "whole", **changes))
    images = open_dataset(data, "train")
    upright = [images[i].image.shape[0] > images[i].image.shape[1] for i in range(len(images))]
    assert 0 < sum(upright) < len(upright)
    assert len(seen) == 3 * (len(images) // 4)
    assert all(len({upright[i] for i in batch}) == 1 for batch in seen)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_stop_flag", _stop_after(5))
        with pytest.raises(KeyboardInterrupt):
            train(_config(tmp_path / "cut", **changes))
    train(_config(tmp_path / "cut", **changes), resume=True)
    for key, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, _weights(tmp_path / "cut")[key])
