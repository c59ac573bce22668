"""OpenVINO compiles for a batch size when it is bound: with the threads that a stream may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segdeploy.backends import open_session
from segdeploy.backends.openvino import OpenVinoSession
from segdeploy.bench.call import bind_call
from segdeploy.bench.inputs import make_batch
from segdeploy.bench.streams import THREADS, limited_threads
from segdeploy.core.contract import IoContract, OutputKind
from segdeploy.core.folder import Checkpoint, load_artifact
from segdeploy.export import export

pytest.importorskip("openvino")

SmallNet = Callable[[Path, int], Checkpoint]


@pytest.mark.parametrize("output", [OutputKind.LOGITS, OutputKind.LOW_LOGITS])
def test_a_bound_call_keeps_the_threads_of_its_stream(
    output: OutputKind, small_net: SmallNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = small_net(tmp_path / "checkpoint", 5)
    made = export(
        checkpoint.path, ["openvino-fp32"], tmp_path,
        io=IoContract(output=output), size=(32, 48),
    )  # fmt: skip
    artifact = next(load_artifact(each.path) for each in made if each.requested)
    monkeypatch.setenv(THREADS, "2")
    with limited_threads(1):
        session = open_session(artifact, isolated=False)
        assert isinstance(session, OpenVinoSession)
        call = bind_call(session, artifact.manifest, make_batch(artifact.manifest, (32, 48), 4))
    call()
    used = [request.compiled for request in session._requests.values()]
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in used] == [1]
    session.close()
