"""What an OpenVINO session is fed: any memory, and in int8 the bytes of an image themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segdeploy.backends import open_session
from segdeploy.backends.openvino import OpenVinoSession
from segdeploy.core.contract import InputKind, IoContract
from segdeploy.core.errors import DataError
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.core.preprocess import normalize_image
from segdeploy.export import export

openvino = pytest.importorskip("openvino")

SmallNet = Callable[[Path, int], Checkpoint]


@pytest.fixture(scope="module")
def checkpoint(small_net: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return small_net(tmp_path_factory.mktemp("small") / "checkpoint", 5)


def test_each_batch_gets_its_own_answer_wherever_it_lies(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """An input tensor that is the same memory is not set again; all others are."""
    outcomes = export(checkpoint.path, ["openvino-fp32"], tmp_path)
    (made,) = (load_artifact(outcome.path) for outcome in outcomes if outcome.requested)
    session, reference = open_session(made), open_session(made)

    def check(batch: np.ndarray) -> None:
        exact = reference.run(batch.copy())["logits"]
        assert np.array_equal(session.run(batch)["logits"], exact)

    batches = np.random.default_rng(0).normal(size=(4, 3, 48, 64)).astype(np.float32)
    for index in (0, 1, 0, 2):
        check(batches[index : index + 1])  # Views of one array, at other addresses.
    buffer = batches[:1].copy()
    for index in (1, 3, 3):
        buffer[:] = batches[index]  # The same memory, other numbers.
        check(buffer)
    frozen = buffer.view()
    frozen.setflags(write=False)
    check(frozen)
    batches.setflags(write=False)
    for index in (2, 0, 0, 3):
        check(batches[index : index + 1])  # They share one copy's memory.
        check(batches[index : index + 1, :, ::2])  # Of another shape.
        check(buffer)
    assert np.array_equal(buffer[0], batches[3])  # Nobody wrote into it.
    check(buffer[:, ::-1])
    check(buffer[:, :, :, ::-1])
    check(buffer.transpose(0, 1, 3, 2))
    check(buffer.reshape(1, 3, 64, 48))
    for index in range(4):
        check(batches[index : index + 1].copy())  # Freed at once: the next may lie in its place.


def test_int8_reads_the_bytes_of_an_image(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The first convolution is int8 though its policy quantises its weights alone."""
    outcomes = export(
        checkpoint.path, ["openvino-int8"], tmp_path, io=IoContract(InputKind.IMAGE), size=(48, 64),
        calibration="synthetic:48x64", num_calibration_images=4,
    )  # fmt: skip
    (made,) = (outcome for outcome in outcomes if outcome.requested)
    artifact = load_artifact(made.path)
    session, reference = open_session(artifact), open_session(checkpoint)
    assert isinstance(session, OpenVinoSession)
    layers = session._request(1).compiled.get_runtime_model().get_ordered_ops()
    facts = [node.get_rt_info() for node in layers]
    kinds = [
        each["runtimePrecision"].astype(str)
        for each in facts
        if each["layerType"].astype(str) == "Convolution"
    ]
    assert kinds[0] in {"u8", "i8"}
    coarse = np.random.default_rng(1).integers(0, 256, (3, 6, 8, 3), np.uint8)
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)
    batch = np.stack([normalize_image(image, artifact.manifest.preprocess) for image in images])
    exact = reference.run(batch)["logits"]
    found = session.run(images)["logits"]
    assert float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std()) < 0.15  # Untrained.


def test_numbers_of_another_byte_order_are_refused(checkpoint: Checkpoint) -> None:
    batch = np.zeros((1, 3, 48, 64), np.float32)
    with pytest.raises(DataError, match="found >f4 of shape"):
        open_session(checkpoint).run(batch.astype(">f4"))


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_a_cpu_without_vnni_decides_the_same(
    checkpoint: Checkpoint, tmp_path: Path, isa: str
) -> None:
    """Its kernels add two products of bytes in int16: pixels of 255 must not saturate."""
    outcomes = export(
        checkpoint.path, ["openvino-int8"], tmp_path, io=IoContract(InputKind.IMAGE), size=(48, 64),
        calibration="synthetic:48x64", num_calibration_images=4,
    )  # fmt: skip
    (made,) = (outcome for outcome in outcomes if outcome.requested)
    image = np.full((1, 48, 64, 3), 255, np.uint8)
    image[:, :24] = 250
    image[:, :, 32:] = 240
    np.save(tmp_path / "image.npy", image)
    code = f"""
from pathlib import Path
import numpy as np
from segdeploy.backends import open_session
from segdeploy.core.folder import load_artifact
folder = Path({str(tmp_path)!r})
session = open_session(load_artifact(Path({str(made.path)!r})))
np.save(folder / "logits.npy", session.run(np.load(folder / "image.npy"))["logits"])
"""
    found = {}
    for name, variables in (("here", {}), ("there", {"ONEDNN_MAX_CPU_ISA": isa})):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, **variables})
        found[name] = np.load(tmp_path / "logits.npy")
    distance = np.sqrt(np.mean((found["there"] - found["here"]) ** 2)) / found["here"].std()
    assert float(distance) < 0.02
