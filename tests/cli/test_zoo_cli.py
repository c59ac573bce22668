"""`segdeploy zoo`: a store of one's own from the command line, exit codes and JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.core.folder import Checkpoint, load_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(
    cli: Run, tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A store with one entry, chosen by the environment, and an empty cache."""
    store = tmp_path / "zoo"
    monkeypatch.setenv("SEGDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEGDEPLOY_ZOO", str(store / "index.toml"))
    code, out, err = cli(
        "zoo", "push", str(tiny_checkpoint.path), "--name", "tiny", "--url", f"{store}/",
        "--licence", "CC0-1.0", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    pushed = json.loads(out)
    assert pushed["digest"] == tiny_checkpoint.manifest.digest
    assert pushed["size_bytes"] == Path(pushed["url"]).stat().st_size
    return store


@pytest.mark.usefixtures("store")
def test_list_tells_what_the_index_says(cli: Run) -> None:
    code, out, _ = cli("zoo", "list", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["name"], row["num_classes"], row["licence"]) == ("tiny", 5, "CC0-1.0")
    code, out, _ = cli("zoo", "list")
    assert code == 0
    assert "lraspp_mobilenet_v3_small" in out


@pytest.mark.usefixtures("store")
def test_pull_makes_the_checkpoint_and_shows_the_licence(
    cli: Run, tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    out_folder = tmp_path / "run" / "checkpoint"
    code, out, err = cli("zoo", "pull", "tiny", "--out", str(out_folder))
    assert code == 0, err
    assert out.strip() == str(out_folder)
    assert "licence: CC0-1.0" in err
    assert load_checkpoint(out_folder).manifest == tiny_checkpoint.manifest
    code, out, err = cli("zoo", "pull", "tiny", "--offline", "--json")
    assert code == 0, err
    assert json.loads(out)["checkpoint"] is None
    code, _, err = cli("zoo", "pull", "tiny", "--out", str(out_folder))
    assert code == 2
    assert "--force" in err


@pytest.mark.usefixtures("store")
def test_verify_is_exit_1_only_where_a_file_is_damaged(cli: Run) -> None:
    assert [row["state"] for row in json.loads(cli("zoo", "verify", "--json")[1])] == ["missing"]
    file = Path(json.loads(cli("zoo", "pull", "tiny", "--json")[1])["file"])
    code, out, _ = cli("zoo", "verify", "tiny")
    assert code == 0
    assert out.startswith("ok ")
    file.write_bytes(file.read_bytes()[:-1])
    code, out, err = cli("zoo", "verify", "--json")
    assert code == 1
    assert json.loads(out)[0]["state"] == "damaged"
    assert "error: damaged: tiny" in err


def test_errors_are_exit_2_without_a_traceback(cli: Run, store: Path, tmp_path: Path) -> None:
    for line, said in (
        (["pull", "tinny"], "Did you mean tiny?"),
        (["verify", "tinny"], "Did you mean tiny?"),
        (["list", "--index", str(tmp_path / "none.toml")], "none.toml"),
        (["push", str(tmp_path), "--name", "x", "--url", f"{store}/"], "manifest.json"),
    ):
        code, out, err = cli("zoo", *line)
        assert (code, out) == (2, ""), line
        assert said in err
        assert "Traceback" not in err


def test_listing_loads_no_framework_and_none_of_the_extra() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'fsspec', 'platformdirs', 'tomli_w'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['segdeploy', 'zoo', 'list', '--json']\n"
        "from segdeploy.cli import main\n"
        "main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60,
        env={"PATH": ""},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len(json.loads(ended.stdout)) == 6
