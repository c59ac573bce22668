"""predict = masks and overlays of a user's own pictures, with any checkpoint or artifact.

from segdeploy.predict import predict
predict(Path("runs/demo/onnx-fp32"), ["street.jpg", "photos/", "more/*.png"], Path("masks"))
"""

from __future__ import annotations

from segdeploy.predict.files import PredictedFile, PredictOutcome, predict, predict_files

__all__ = ["PredictOutcome", "PredictedFile", "predict", "predict_files"]
