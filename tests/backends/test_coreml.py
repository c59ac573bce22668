"""Core ML packages: what can be known of them off Apple's systems, and a session's own part.

Apple's runtime is absent here; where a session needs one, the written program stands for it, as
evaluated by `coreml_program`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segdeploy.backends import open_session
from segdeploy.backends.coreml import COREML, PACKAGE, CoreMlSession, unpack
from segdeploy.core.contract import InputKind, IoContract, OutputKind, SizeBounds
from segdeploy.core.errors import (
    ArtifactError,
    BackendUnavailableError,
    BuildError,
    DataError,
    UnsupportedTargetError,
)
from segdeploy.core.folder import Artifact, Checkpoint, load_artifact
from segdeploy.core.preprocess import PreprocessSpec, normalize_image
from segdeploy.core.session import BuildRequest
from segdeploy.core.target import Precision
from segdeploy.data import open_dataset
from segdeploy.export import Size, export
from segdeploy.frameworks.quiet import captured_log
from segdeploy.verify import verify
from segdeploy.workflows.export_verified import export_and_verify
from segdeploy.zoo import load_module

tools = pytest.importorskip("coremltools")

from segdeploy.backends import coreml_build  # noqa: E402  It needs torch and coremltools.
from segdeploy.backends.coreml_check import check_ends, check_package, check_types  # noqa: E402
from segdeploy.backends.coreml_program import UnknownOperatorError, evaluate  # noqa: E402

SmallNet = Callable[[Path, int], Checkpoint]
SIZE = (49, 67)
BOTH = IoContract(InputKind.IMAGE, OutputKind.LABELS_CONFIDENCE)
elsewhere = pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML runs here")


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


def _export(checkpoint: Checkpoint, out: Path, io: IoContract | None = None) -> Artifact:
    found = export(checkpoint.path, ["coreml-fp16"], out, size=SIZE, io=io)[0].artifact
    assert found is not None
    return found


@pytest.fixture(scope="module")
def artifact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return _export(checkpoint, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def both(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that takes images and gives labels and confidence."""
    return _export(checkpoint, tmp_path_factory.mktemp("run"), BOTH)


def _spec(artifact: Artifact) -> Any:
    with unpack(artifact.payload) as folder:
        return tools.utils.load_spec(str(Path(folder) / PACKAGE))


def _main(artifact: Artifact) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    with unpack(artifact.payload) as folder:
        weights = Path(folder) / PACKAGE / "Data/com.apple.CoreML/weights"
        return load(_spec(artifact), 9, str(weights)).functions["main"]


def _image() -> np.ndarray:
    image: np.ndarray = open_dataset("synthetic:96x128:16", "val")[0].image[: SIZE[0], : SIZE[1]]
    return image


def _tensor() -> np.ndarray:
    return normalize_image(_image(), PreprocessSpec())[None]


class _Program:
    """Stands for MLModel: takes what it takes, and evaluates the program."""

    def __init__(self, artifact: Artifact) -> None:
        self._main = _main(artifact)

    def predict(self, inputs: dict[str, Any]) -> dict[str, np.ndarray]:
        given = {}
        for name, value in inputs.items():
            array = np.asarray(value, np.float32)
            image = array.transpose(2, 0, 1)[None] if array.ndim == 3 else array
            given[name] = torch.from_numpy(np.ascontiguousarray(image))
        return {name: value.numpy() for name, value in evaluate(self._main, given).items()}


def _session(artifact: Artifact) -> CoreMlSession:
    manifest = artifact.manifest
    scratch = tempfile.TemporaryDirectory()
    return CoreMlSession(_Program(artifact), manifest.inputs, manifest.outputs, scratch)


def test_the_program_computes_what_eager_computes(
    artifact: Artifact, checkpoint: Checkpoint
) -> None:
    exact = open_session(checkpoint).run(_tensor())["logits"]
    session = _session(artifact)
    found = session.run(_tensor())["logits"]
    session.close()
    assert found.dtype == np.float32
    error = np.abs(found - exact).max() / exact.std()
    assert 1e-6 < error < 5e-3  # Weights are fp16, so it cannot be nothing.
    told = json.loads((artifact.path / "check.json").read_text())
    assert told["numbers"] == "checked"
    assert told["operators"]["conv"] >= 3


def test_images_become_labels_in_the_types_of_the_contract(
    both: Artifact, checkpoint: Checkpoint
) -> None:
    logits = open_session(checkpoint).run(_tensor())["logits"]
    session = _session(both)
    found = session.run(_image()[None])
    assert found["labels"].dtype == np.uint8
    assert found["labels"].shape == (1, *SIZE)
    assert np.mean(found["labels"] != logits.argmax(1)) < 0.01
    odds = np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    np.testing.assert_allclose(found["confidence"], 1 / odds, atol=2e-3)
    with pytest.raises(DataError):
        session.run(np.repeat(_image()[None], 2, 0))
    call = session.bind(_image()[None])
    call()
    session.close()
    for use in (call, lambda: session.run(_image()[None])):
        with pytest.raises(ArtifactError, match="closed"):
            use()


def test_ends_are_declared_as_documented(artifact: Artifact, both: Artifact) -> None:
    kinds = tools.proto.FeatureTypes_pb2
    plain = _spec(artifact).description
    assert [end.name for end in (*plain.input, *plain.output)] == ["input_tensor", "logits"]
    assert plain.input[0].type.multiArrayType.dataType == kinds.ArrayFeatureType.FLOAT32
    other = _spec(both).description
    image = other.input[0].type.imageType
    assert (image.height, image.width) == SIZE
    assert image.colorSpace == kinds.ImageFeatureType.ColorSpace.RGB
    assert [end.name for end in other.output] == ["labels", "confidence"]
    assert other.output[0].type.multiArrayType.dataType == kinds.ArrayFeatureType.INT32


def test_the_package_tells_what_it_is_and_not_when_it_was_made(artifact: Artifact) -> None:
    told = dict(_spec(artifact).description.metadata.userDefined)
    assert told["segdeploy.target"] == "coreml-fp16"
    assert json.loads(told["segdeploy.classes"]) == [f"c{i}" for i in range(5)]
    assert not any("date" in key for key in told)
    with zipfile.ZipFile(artifact.payload) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())


def test_coremltools_reads_the_unpacked_package(artifact: Artifact) -> None:
    """Its own reader of Manifest.json finds specification and weights under our identifiers."""
    from coremltools.libmodelpackage import ModelPackage

    with unpack(artifact.payload) as folder:
        package = ModelPackage(str(Path(folder) / PACKAGE))
        assert Path(package.getRootModel().path()).name == "model.mlmodel"
        weights = package.findItemByNameAuthor("weights", "com.apple.CoreML")
        assert (Path(weights.path()) / "weight.bin").is_file()


_AGAIN = """
import sys
from pathlib import Path
from segdeploy.export import export
export(Path(sys.argv[1]), ["coreml-fp16"], Path(sys.argv[2]), size=(49, 67))
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-c", _AGAIN, str(checkpoint.path), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
    )
    again = next(tmp_path.glob("coreml*/model.mlpackage.zip"))
    assert again.read_bytes() == artifact.payload.read_bytes()


def _request(checkpoint: Checkpoint, folder: Path, io: IoContract | None = None) -> BuildRequest:
    return BuildRequest(
        checkpoint=checkpoint,
        payload=folder / COREML.payload_name,
        precision=Precision.FP16,
        io=io or IoContract(),
        size=SIZE,
    )


@pytest.mark.parametrize(
    ("io", "says"),
    [
        (IoContract(), "differs from the model"),
        (IoContract(output=OutputKind.LABELS), "where the model is clear"),
    ],
)
def test_a_package_with_a_wrong_weight_is_not_kept(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    io: IoContract,
    says: str,
) -> None:
    """The check is given the right module, the converter one with a changed channel."""

    def damaged(folder: Any) -> torch.nn.Module:
        module: torch.nn.Module = load_module(folder)
        with torch.no_grad():
            next(p for p in module.parameters() if p.ndim == 4)[3:9] *= -1
        return module

    monkeypatch.setattr(coreml_build, "load_module", damaged)
    request = _request(checkpoint, tmp_path, io)
    with captured_log():
        _, sample = coreml_build.build_package(request)
    right = coreml_build.CoreMlModule(load_module(checkpoint), request)
    right.eval()
    with pytest.raises(BuildError, match=says):
        check_package(request, right, sample)


@pytest.mark.parametrize("io", [IoContract(InputKind.IMAGE), IoContract(output=OutputKind.LABELS)])
def test_a_package_of_another_contract_is_found(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path, io: IoContract
) -> None:
    check_ends(_spec(artifact), _request(checkpoint, tmp_path))
    with pytest.raises(BuildError, match="takes and gives"):
        check_ends(_spec(artifact), _request(checkpoint, tmp_path, io))


def test_a_layer_in_float32_is_found(artifact: Artifact, checkpoint: Checkpoint) -> None:
    check_types(_main(artifact))
    with captured_log():
        program = torch.export.export(load_module(checkpoint), (torch.zeros(1, 3, *SIZE),))
        model = tools.convert(
            program.run_decompositions({}),
            inputs=[tools.TensorType(name="x", shape=(1, 3, *SIZE))],
            compute_precision=tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS16,
            skip_model_load=True,
        )
    with pytest.raises(BuildError, match="in float32, not fp16"):
        check_types(model._mil_program.functions["main"])


def test_an_unknown_operator_is_named() -> None:
    from coremltools.converters.mil import Builder

    def summed(x: Any) -> Any:
        return Builder.cumsum(x=x, axis=1)

    program = Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 3, 4, 4))])(summed)
    with pytest.raises(UnknownOperatorError, match="cumsum"):
        evaluate(program.functions["main"], {"x": torch.zeros(1, 3, 4, 4)})


@elsewhere
def test_off_apples_systems_it_is_built_but_not_run(
    artifact: Artifact, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailableError, match="macOS"):
        open_session(artifact)
    with pytest.raises(BackendUnavailableError, match="macOS") as caught:
        verify(artifact.path)
    assert caught.value.exit_code == 4
    said: list[str] = []
    found = export_and_verify(
        checkpoint.path, ["coreml-fp16"], tmp_path, size=SIZE, report=said.append
    )
    assert [(each.passed, each.outcome.error) for each in found] == [(None, None)]
    assert any("not verified: Core ML runs on macOS" in line for line in said)
    assert load_artifact(found[0].outcome.path).manifest.passed is None


@pytest.mark.parametrize("size", [None, SizeBounds((32, 32), SIZE, (96, 96))])
def test_a_range_of_sizes_is_refused_before_anything_is_built(
    checkpoint: Checkpoint, tmp_path: Path, size: Size
) -> None:
    with pytest.raises(UnsupportedTargetError, match="one size"):
        export(checkpoint.path, ["coreml-fp16"], tmp_path / "run", size=size)
    assert not (tmp_path / "run").exists()


def test_what_is_no_package_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="cuda"):
        open_session(artifact, "cuda")
    (tmp_path / "a.zip").write_bytes(artifact.payload.read_bytes()[:3000])
    with pytest.raises(ArtifactError, match="Cannot unpack"):
        unpack(tmp_path / "a.zip")
