"""Into a store and out again: on a disk, and in an object store (fsspec's memory and local)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import pytest
import torch

from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    DownloadError,
)
from segdeploy.core.files import write_json
from segdeploy.core.folder import Checkpoint
from segdeploy.core.results import EvalResult
from segdeploy.zoo.store import State, pull, push, read_index, verify


@pytest.fixture(params=["path", "file", "memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty folder, with a slash at its end."""
    if request.param == "memory":
        yield "memory://bucket/zoo/"
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
        return
    schemes = {"path": "", "file": "file://", "local": "local://"}
    (tmp_path / "zoo").mkdir()
    yield f"{schemes[request.param]}{tmp_path}/zoo/"


@pytest.fixture
def second(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    """A checkpoint of the same model with other weights."""
    from segdeploy.zoo.checkpoint import load_module, save_checkpoint

    module = load_module(tiny_checkpoint)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    manifest = tiny_checkpoint.manifest
    return save_checkpoint(
        tmp_path / "second", module, model=manifest.model, task=manifest.task,
        classes=manifest.classes, preprocess=manifest.preprocess,
    )  # fmt: skip


def test_a_pulled_checkpoint_is_the_pushed_one(
    tiny_checkpoint: Checkpoint, store: str, tmp_path: Path
) -> None:
    index = store + "index.toml"
    pushed = push(tiny_checkpoint.path, name="net", url=store, index=index, licence="CC0-1.0")
    pulled = pull("net", out=tmp_path / "run" / "checkpoint", index=index)
    assert pulled.checkpoint is not None
    assert pulled.checkpoint.manifest == tiny_checkpoint.manifest
    assert pushed.digest == tiny_checkpoint.manifest.digest
    assert pulled.entry == read_index(index).get("net")
    assert pulled.entry.licence == "CC0-1.0"
    assert pulled.entry.classes == tiny_checkpoint.manifest.classes
    assert pulled.entry.preprocess == tiny_checkpoint.manifest.preprocess
    assert [finding.state for finding in verify(index=index)] == [State.OK]


def test_a_store_may_move_as_a_whole(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    push(tiny_checkpoint.path, name="net", url=f"{tmp_path}/a/", index=f"{tmp_path}/a/index.toml")
    assert (
        "/"
        not in tomllib.loads((tmp_path / "a" / "index.toml").read_text())["weights"]["net"]["url"]
    )
    (tmp_path / "a").rename(tmp_path / "b")
    assert pull("net", index=f"{tmp_path}/b/index.toml").file.is_file()


def test_another_content_of_a_name_needs_force(
    tiny_checkpoint: Checkpoint, second: Checkpoint, store: str, tmp_path: Path
) -> None:
    index = store + "index.toml"
    push(tiny_checkpoint.path, name="net", url=store, index=index)
    with pytest.raises(ArtifactError, match="another content") as caught:
        push(second.path, name="net", url=store, index=index)
    assert "--force" in caught.value.hint
    out = tmp_path / "out"
    assert pull("net", out=out, index=index).to_dict()["digest"] == tiny_checkpoint.manifest.digest
    push(second.path, name="net", url=store, index=index, force=True)
    with pytest.raises(ConfigError, match="exists"):
        pull("net", out=out, index=index)
    found = pull("net", out=out, index=index, force=True)
    assert found.to_dict()["digest"] == second.manifest.digest


def test_another_file_at_the_address_needs_force(
    tiny_checkpoint: Checkpoint, second: Checkpoint, store: str
) -> None:
    index, url = store + "index.toml", store + "net.tar"
    push(tiny_checkpoint.path, name="net", url=url, index=index)
    before = read_index(index)
    with pytest.raises(ArtifactError, match="another file"):
        push(second.path, name="other", url=url, index=index)
    assert read_index(index) == before
    assert pull("net", index=index).entry.num_classes == 5


def test_the_index_is_not_overwritten_by_a_file(tiny_checkpoint: Checkpoint, store: str) -> None:
    index = store + "index.toml"
    push(tiny_checkpoint.path, name="net", url=store, index=index)
    before = read_index(index)
    with pytest.raises(ConfigError, match="the index itself"):
        push(tiny_checkpoint.path, name="other", url=index, index=index, force=True)
    assert read_index(index) == before


def test_the_same_content_again_renews_what_is_said_of_it(
    tiny_checkpoint: Checkpoint, store: str, tmp_path: Path
) -> None:
    index, evaluation = store + "index.toml", tmp_path / "eval.json"
    result = EvalResult(
        target="pytorch-fp32", data="synthetic/val", classes=("a", "b"),
        confusion=torch.tensor([[3, 1], [0, 4]]).numpy(), num_images=2,
    )  # fmt: skip
    write_json(evaluation, result.to_dict())
    first = push(tiny_checkpoint.path, name="net", url=store, index=index)
    again = push(tiny_checkpoint.path, name="net", url=store, index=index, metrics_from=evaluation)
    assert again.entry.sha256 == first.entry.sha256
    (metrics,) = read_index(index).get("net").metrics
    assert (metrics.data, metrics.num_images) == ("synthetic/val", 2)
    assert metrics.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert metrics.pixel_accuracy == pytest.approx(7 / 8)


def test_what_cannot_be_pushed_to_is_said_before_anything_is_written(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    place = tmp_path / "zoo"
    web = "https://a.example/zoo/"
    for url, index in ((web, f"{place}/index.toml"), (f"{place}/", web + "index.toml")):
        with pytest.raises(ConfigError, match="cannot be written to"):
            push(tiny_checkpoint.path, name="net", url=url, index=index)
    with pytest.raises(ConfigError, match="no index to push to"):
        push(tiny_checkpoint.path, name="net", url=f"{place}/")
    with pytest.raises(ConfigError, match="name is"):
        push(tiny_checkpoint.path, name="a/b", url=f"{place}/", index=f"{place}/index.toml")
    (tmp_path / "eval.json").write_text('{"data": "x"}')
    with pytest.raises(ArtifactError, match=r"eval\.json"):
        push(
            tiny_checkpoint.path, name="net", url=f"{place}/", index=f"{place}/index.toml",
            metrics_from=tmp_path / "eval.json",
        )  # fmt: skip
    assert not place.exists()


def test_unknown_schemes_and_absent_drivers_are_clear_errors() -> None:
    with pytest.raises(DownloadError, match="nonsense"):
        read_index("nonsense://bucket/index.toml")
    with pytest.raises(DownloadError, match=r"memory://bucket/none\.toml"):
        read_index("memory://bucket/none.toml")
    with pytest.raises(DownloadError, match=r"no/such/index\.toml"):
        read_index("no/such/index.toml")


def test_a_driver_that_is_not_installed_is_exit_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BackendUnavailableError, match="s3fs") as caught:
        read_index("s3://bucket/index.toml")
    assert caught.value.exit_code == 4


_PUSH = """
import sys
from pathlib import Path
from segdeploy.zoo.store import push
checkpoint, name, store = sys.argv[1:]
for i in range(8):
    push(Path(checkpoint), name=f"{name}{i}", url=store, index=store + "index.toml")
"""


def test_two_processes_that_push_at_once_lose_nothing(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store = f"{tmp_path}/zoo/"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _PUSH, str(tiny_checkpoint.path), name, store],
            text=True,
            stderr=subprocess.PIPE,
        )
        for name in "ab"
    ]
    for child in children:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
    assert sorted(read_index(store + "index.toml").entries) == [
        f"{n}{i}" for n in "ab" for i in range(8)
    ]


def test_an_index_that_names_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pth").write_bytes(b"weights")
    (tmp_path / "index.toml").write_text(
        'schema_version = 1\n[weights.net]\nmodel = "antigravity:open"\nformat = "state_dict"\n'
        f'classes = 2\nurl = "net.pth"\nsha256 = "{hashlib.sha256(b"weights").hexdigest()}"\n'
    )
    monkeypatch.delenv("SEGDEPLOY_ALLOW_CODE", raising=False)
    monkeypatch.setitem(sys.modules, "antigravity", None)
    with pytest.raises(CheckpointError, match="antigravity"):
        pull("net", out=tmp_path / "out", index=str(tmp_path / "index.toml"))
    assert not (tmp_path / "out").exists()


def test_weights_of_torchvision_become_a_checkpoint_that_computes_the_same(tmp_path: Path) -> None:
    """The packaged entry of LRASPP, served with random weights: the real ones are megabytes."""
    from segdeploy.frameworks.torchvision import prepare_torchvision

    prepare_torchvision()
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    from segdeploy.core.files import sha256_file
    from segdeploy.zoo import load_module

    torch.manual_seed(0)
    reference = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    torch.save(reference.state_dict(), tmp_path / "net.pth")
    entry = read_index().get("lraspp_mobilenet_v3_large-coco")
    (tmp_path / "index.toml").write_text(
        f'schema_version = 1\n[weights.net]\nmodel = "{entry.model}"\nformat = "state_dict"\n'
        f'classes = {list(entry.classes)}\nurl = "net.pth"\nlicence = "CC0-1.0"\n'  # type: ignore[arg-type]
        f'sha256 = "{sha256_file(tmp_path / "net.pth")}"\n'
        'preprocess = { size_rule = "shorter_side", size = [520, 520] }\n'
    )
    checkpoint = pull("net", out=tmp_path / "out", index=str(tmp_path / "index.toml")).checkpoint
    assert checkpoint is not None
    assert checkpoint.manifest.classes == entry.classes
    assert checkpoint.manifest.preprocess == entry.preprocess
    assert "CC0-1.0" in checkpoint.manifest.note
    image = torch.rand(2, 3, 65, 97)
    with torch.inference_mode():
        wanted = reference.eval()(image)["out"]
        found = load_module(checkpoint)(image)["out"]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
