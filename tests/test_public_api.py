"""What `import segdeploy` promises."""

from __future__ import annotations

import subprocess
import sys

import pytest

import segdeploy


def test_public_names_are_sorted_and_resolve() -> None:
    assert sorted(segdeploy.__all__) == sorted(set(segdeploy.__all__))
    for name in segdeploy.__all__:
        assert getattr(segdeploy, name) is not None
        assert name in dir(segdeploy)
    with pytest.raises(AttributeError):
        _ = segdeploy.no_such_name


@pytest.mark.parametrize(
    "stage", ["bench", "evaluate", "export", "predict", "report", "train", "verify"]
)
def test_each_stage_has_one_documented_function_of_its_name(stage: str) -> None:
    room = getattr(segdeploy, stage)
    function = getattr(room, stage)
    assert callable(function)
    assert "Raises:" in (function.__doc__ or "")
    assert stage in (room.__doc__ or "").lower()


def test_importing_segdeploy_loads_no_framework() -> None:
    code = (
        "import sys, segdeploy\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'rich', 'typer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert segdeploy.__version__ == version("segdeploy")
