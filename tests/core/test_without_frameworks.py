"""Where torch is absent, everything that needs no framework works; the rest says what to install.

A child process in which torch, torchvision, onnx, onnxruntime and safetensors cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

from segdeploy.core.folder import Checkpoint

_ABSENT = ("torch", "torchvision", "onnx", "onnxruntime", "safetensors", "tensorrt")


def _run(code: str, *arguments: str) -> str:
    block = f"import sys\nfor name in {_ABSENT!r}:\n    sys.modules[name] = None\n"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", block + textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_core_data_zoo_and_metrics_import() -> None:
    _run("""
        import importlib, pkgutil
        import segdeploy, segdeploy.core, segdeploy.data, segdeploy.zoo, segdeploy.metrics
        for module in pkgutil.iter_modules(segdeploy.core.__path__, "segdeploy.core."):
            importlib.import_module(module.name)
        from segdeploy.data import images, pictures, camvid, folder, synthetic
    """)


def test_listing_models_and_data_sets_works() -> None:
    said = _run("""
        from segdeploy.zoo import MODELS, describe_models
        from segdeploy.data import DATASETS
        print(len(MODELS.names()) >= 40, len(DATASETS.names()) >= 4)
        print(sorted(row["name"] for row in describe_models()) == MODELS.names())
        print(all(row["num_parameters"] for row in describe_models()))
    """)
    assert said.split() == ["True"] * 4


def test_data_preprocessing_and_scores_work() -> None:
    _run("""
        import numpy as np
        from segdeploy.core.preprocess import PreprocessSpec, preprocess_image
        from segdeploy.data import open_dataset
        from segdeploy.metrics import ConfusionMatrix
        sample = open_dataset("synthetic:32x48:8", "val")[0]
        assert preprocess_image(sample.image, PreprocessSpec()).shape == (3, 32, 48)
        confusion = ConfusionMatrix(5)
        confusion.update(sample.label, np.where(sample.label == 255, 0, sample.label))
        assert confusion.matrix.trace() == confusion.matrix.sum() > 0
    """)


def test_a_checkpoint_folder_is_opened_and_checked(tiny_checkpoint: Checkpoint) -> None:
    said = _run(
        """
        import sys
        from pathlib import Path
        from segdeploy.core.folder import load_folder
        print(load_folder(Path(sys.argv[1])).manifest.digest)
        """,
        str(tiny_checkpoint.path),
    )
    assert said.strip() == tiny_checkpoint.manifest.digest


def test_what_needs_torch_says_how_to_install_it() -> None:
    _run("""
        from segdeploy import zoo
        from segdeploy.core.errors import BackendUnavailableError, UnknownNameError
        attempts = [
            lambda: zoo.create_model("unet", 2),
            lambda: zoo.load_module,
            lambda: zoo.save_checkpoint,
        ]
        for attempt in attempts:
            try:
                attempt()
            except BackendUnavailableError as error:
                assert "pip install 'segdeploy[torch]'" in error.hint and error.exit_code == 4
            else:
                raise AssertionError("torch is absent")
        try:
            zoo.create_model("unett", 2)
        except UnknownNameError as error:
            assert "unet" in error.hint
    """)
