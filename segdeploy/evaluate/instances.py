"""COCO's AP and AR of a semantic model: connected parts of each class stand for its instances.

Every process turns its own predictions into run lengths; the main one scores all of them against
the instances of the data set, by pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segdeploy.backends.predictor import Prediction, Predictor
from segdeploy.core.errors import ConfigError
from segdeploy.data.instances import InstanceDataset
from segdeploy.data.sample import Dataset
from segdeploy.frameworks.coco import find_coco
from segdeploy.metrics.coco import CocoEvaluator, Found, check_types, encode_instances
from segdeploy.metrics.instances import find_instances


def check_instances(predictor: Predictor, dataset: Dataset, iou_types: Sequence[str]) -> None:
    """Check that instances can be scored at all.

    Raises:
        BackendUnavailableError: If pycocotools or SciPy is not installed.
        ConfigError: If an IoU type is unknown, the data have no instances, or the payload gives no
            probabilities.
    """
    check_types(iou_types)
    find_coco("scipy")
    _require_truth(dataset)
    if not predictor.has_confidence:
        raise ConfigError(
            "Instances are ranked by their probability, but this artifact gives labels only.",
            hint="Export it with --output labels+confidence, or with logits.",
        )


def _require_truth(dataset: Dataset) -> InstanceDataset:
    if isinstance(dataset, InstanceDataset):
        return dataset
    raise ConfigError(
        f"{dataset.name} has no annotated instances to score against.",
        hint="Use coco or coco_voc, or leave --instances out.",
    )


def encode_prediction(dataset: Dataset, index: int, found: Prediction) -> Found:
    """Return the predicted instances of one image; class by class, as masks are large."""
    truth = _require_truth(dataset)
    if found.confidence is None:
        raise ValueError("instances are ranked by their confidence")
    image_id, rows = truth.photos[index].image_id, []
    for category, label in truth.labels.items():
        instances = find_instances(found.labels, found.confidence, {label: category})
        rows += encode_instances(image_id, instances)
    return {image_id: rows}


def score_instances(
    dataset: Dataset, found: Found, iou_types: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return COCO's twelve numbers and each class's AP by IoU type, as plain values."""
    truth = _require_truth(dataset)
    evaluator = CocoEvaluator(truth.truth, iou_types, categories=truth.labels)
    evaluator.add(found)
    scores = evaluator.summarize()
    return {name: asdict(of_type) for name, of_type in scores.items()}
