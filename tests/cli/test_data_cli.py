"""`segdeploy data check`: exit codes, one JSON document, a table, pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Two training images, of which one is also for validation; a name with rich's marks."""
    (tmp_path / "classes.txt").write_text("road\n[red]car\n")
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / kind / split).mkdir(parents=True)
    for name in "ab":
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{name}.png")
        Image.fromarray(pixels[..., 0] % 2).save(tmp_path / "labels" / "train" / f"{name}.png")
    for kind in ("images", "labels"):
        shutil.copy(tmp_path / kind / "train" / "a.png", tmp_path / kind / "val" / "c.png")
    return tmp_path


def test_clean_data_ends_with_0_and_one_document(cli: Run) -> None:
    code, out, err = cli("data", "check", "synthetic:32x32:8", "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["passed"] is True
    assert [s["split"] for s in document["splits"]] == ["train", "val", "test"]
    fields = {"split", "num_images", "num_read", "heights", "widths", "mean", "std",
              "ignored_share", "class_share", "class_images"}  # fmt: skip
    assert set(document["splits"][0]) == fields


def test_a_leak_ends_with_1_and_is_said_in_both_forms(cli: Run, leaky: Path) -> None:
    code, out, _ = cli("data", "check", f"folder:{leaky}", "--json")
    problems = json.loads(out)["problems"]
    assert code == 1
    assert [(p["kind"], p["split"], p["index"]) for p in problems] == [("leak", "val", 0)]
    code, out, _ = cli("data", "check", f"folder:{leaky}")
    assert code == 1
    assert "val/c has the same pixels as train/a." in out
    assert "[red]car" in out
    assert "train: 2 images, 8x8" in out


def test_one_split_can_be_asked_for_and_pictures_are_written(
    cli: Run, leaky: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "sheets"
    code, out, err = cli(
        "data", "check", f"folder:{leaky}", "--split", "val", "--out", str(out_folder), "--json"
    )
    assert code == 0  # Without the training split there is nothing to leak from.
    assert [s["split"] for s in json.loads(out)["splits"]] == ["val"]
    assert [p.name for p in out_folder.iterdir()] == ["val.png"]
    assert "val.png" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("camvit",), "camvid"),
        (("voc",), "needs a root"),
        (("voc:/no/such/place",), "Found: no folder /no/such/place"),
        (("synthetic", "--split", "lost"), "no split 'lost'"),
    ],
)
def test_mistakes_end_with_2_and_a_hint(cli: Run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = cli("data", "check", *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_a_long_list_of_findings_is_cut_in_the_table_only(cli: Run, leaky: Path) -> None:
    for index in range(15):
        name = f"x{index:02d}.png"
        (leaky / "images" / "train" / name).write_bytes(b"")
        shutil.copy(leaky / "labels" / "train" / "a.png", leaky / "labels" / "train" / name)
    code, out, _ = cli("data", "check", f"folder:{leaky}", "--split", "train")
    assert code == 1
    assert out.count("is empty (0 bytes)") == 10
    assert "and 5 more of this kind" in out
    assert "2 of 17 images can be used" in out
    document = json.loads(cli("data", "check", f"folder:{leaky}", "--split", "train", "--json")[1])
    assert len(document["problems"]) == 15


def test_an_interrupt_ends_with_130_and_writes_nothing(
    cli: Run, leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("segdeploy.data.pairs.read_image", interrupt)
    code, out, err = cli("data", "check", f"folder:{leaky}", "--out", str(tmp_path / "sheets"))
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "sheets").exists()
