"""COCO's average precision and recall of instance masks, and of the boxes around them.

The numbers are pycocotools'. Around them: predictions are kept as run lengths, an image that is
seen twice counts once (samplers repeat images to fill up their last batch), and images are judged
in the order of their ids, so that any split over processes gives the same bits.

    evaluator = CocoEvaluator(Path("instances_val2017.json"))
    evaluator.update({image_id: Instances(masks, categories, scores)})
    evaluator.synchronize(all_gather)      # Only where several processes share the images.
    evaluator.summarize()["segm"].ap

Where the truth is not at hand, `encode_instances` makes what `add` takes later.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from segdeploy.core.errors import ConfigError, DataError
from segdeploy.frameworks.coco import find_coco
from segdeploy.metrics.instances import Instances

IOU_TYPES = ("segm", "bbox")
_NEEDED = ("image_id", "category_id", "segmentation", "bbox", "area")

Plain = dict[str, Any]
Found = dict[int, list[Plain]]
"""Predicted instances by the id of their image, as run lengths."""

Gather = Callable[[Any], Sequence[Any]]
"""Returns the objects of all processes in the order of their ranks, the same in each of them."""


@dataclass(frozen=True)
class CocoScores:
    """The twelve numbers in COCO's order, in [0, 1]; None where the truth has no such object.

    AP is averaged over IoU 0.50 to 0.95 and over the classes present; sizes are mask areas below
    32^2, up to 96^2 and above; AR is the recall with at most 1, 10, 100 instances an image.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    class_ap: dict[str, float | None]


_NUMBERS = tuple(f.name for f in fields(CocoScores) if f.name != "class_ap")


class CocoEvaluator:
    """Collects predicted instances and scores them against COCO annotations.

    Only images that were updated are judged; one without any instance needs an empty update.

    Args:
        truth: A COCO annotation file, or what it holds; left unchanged.
        iou_types: `segm`, `bbox`, or both.
        categories: Ids of those that are judged; by default all of the truth.

    Raises:
        BackendUnavailableError: If pycocotools is not installed.
        ConfigError: If an IoU type is unknown; `keypoints` is not supported.
        DataError: If the truth is no such annotation.
    """

    def __init__(
        self,
        truth: Mapping[str, Any] | Path,
        iou_types: Sequence[str] = IOU_TYPES,
        categories: Collection[int] | None = None,
    ) -> None:
        find_coco()
        check_types(iou_types)
        self.iou_types = tuple(iou_types)
        self._judged = None if categories is None else sorted(categories)
        self._truth = _read_truth(truth)
        self._sizes = {i["id"]: (i["height"], i["width"]) for i in self._truth["images"]}
        self._categories = {c["id"]: str(c["name"]) for c in self._truth["categories"]}
        self._found: Found = {}

    @property
    def image_ids(self) -> list[int]:
        """The images that were updated, sorted."""
        return sorted(self._found)

    def update(self, predictions: Mapping[int, Instances]) -> None:
        """Add the instances of some images; an image that is known already is passed over.

        Raises:
            DataError: If the truth has no such image or category, or the masks have another size.
        """
        for image_id, instances in predictions.items():
            self._check(image_id, instances)
            if image_id not in self._found:
                self._found[image_id] = encode_instances(image_id, instances)

    def add(self, found: Found) -> None:
        """Add instances that `encode_instances` gave; known images are passed over here as well."""
        self._found = found | self._found

    def synchronize(self, gather: Gather) -> None:
        """Take over what the other processes found; of a repeated image the lowest rank's counts.

        Args:
            gather: E.g. around `torch.distributed.all_gather_object`.
        """
        everything = gather(self._found)
        self._found = {}
        for found in everything:
            self.add(found)

    def summarize(self) -> dict[str, CocoScores]:
        """Return the scores by IoU type; prints nothing."""
        return {name: self._score(name) for name in self.iou_types}

    def _check(self, image_id: int, instances: Instances) -> None:
        if image_id not in self._sizes:
            raise DataError(f"The annotations have no image {image_id}.")
        if instances.masks.shape[1:] != self._sizes[image_id]:
            raise DataError(
                f"The masks of image {image_id} have size {instances.masks.shape[1:]}, the image "
                f"{self._sizes[image_id]} (H, W)."
            )
        for category in instances.categories.tolist():
            if category not in self._categories:
                raise DataError(
                    f"The annotations have no category {category}.",
                    hint="Map class ids to COCO's category ids, which have gaps.",
                )

    def _score(self, iou_type: str) -> CocoScores:
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(io.StringIO()):
            judge = COCOeval(_index(self._truth), self._index_found(iou_type), iou_type)
            judge.params.imgIds = self.image_ids
            if self._judged is not None:
                judge.params.catIds = self._judged
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        precision = judge.eval["precision"][..., 0, -1]  # All sizes, 100 instances: (T, R, K).
        class_ap = {
            self._categories[category]: _mean(precision[..., k])
            for k, category in enumerate(judge.params.catIds)
        }
        numbers = [None if value < 0 else float(value) for value in judge.stats]
        return CocoScores(class_ap=class_ap, **dict(zip(_NUMBERS, numbers, strict=True)))

    def _index_found(self, iou_type: str) -> Any:
        """Index detections as COCO's own loader does: an area is that of the shape compared."""
        annotations: list[Plain] = []
        for image_id in self.image_ids:
            for plain in self._found[image_id]:
                width, height = plain["bbox"][2:]
                area = plain["area"] if iou_type == "segm" else width * height
                annotations.append(plain | {"id": len(annotations) + 1, "area": area})
        return _index(self._truth | {"annotations": annotations})


def check_types(iou_types: Sequence[str]) -> None:
    """Check names of IoU types.

    Raises:
        ConfigError: If one is unknown, or `keypoints`.
    """
    hint = f"Use {' or '.join(IOU_TYPES)}."
    for name in iou_types:
        if name == "keypoints":
            raise ConfigError(
                "COCO evaluation of 'keypoints' is not supported: segmentation models predict "
                "masks.",
                hint=hint,
            )
        if name not in IOU_TYPES:
            raise ConfigError(f"Unknown IoU type '{name}'.", hint=hint)


def _read_truth(truth: Mapping[str, Any] | Path) -> Plain:
    """Return the truth with annotations of our own; their ids start at 1: 0 reads as no match."""
    where = str(truth) if isinstance(truth, Path) else "The annotations"
    try:
        plain = msgspec.json.decode(truth.read_bytes()) if isinstance(truth, Path) else dict(truth)
        broken = [a for a in plain["annotations"] if not _is_whole(a)]
        if broken:
            raise DataError(
                f"{where}: an annotation of image {broken[0]['image_id']} has no shape or no box.",
                hint="A shape is run lengths, or polygons of at least three points.",
            )
        return {
            "images": [{k: i[k] for k in ("id", "height", "width")} for i in plain["images"]],
            "categories": [{k: c[k] for k in ("id", "name")} for c in plain["categories"]],
            "annotations": [
                {"iscrowd": a.get("iscrowd", 0), "id": number, **{k: a[k] for k in _NEEDED}}
                for number, a in enumerate(plain["annotations"], 1)
            ],
        }
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where} cannot be read: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where} is no COCO annotation: {type(error).__name__} {error}.",
            hint="It needs images, categories and annotations, e.g. instances_val2017.json.",
        ) from error


def _is_whole(annotation: Plain) -> bool:
    """Return False for what pycocotools would stumble over while it judges."""
    shape = annotation["segmentation"]
    is_drawn = "counts" in shape
    if not isinstance(shape, Mapping):
        is_drawn = len(shape) > 0 and all(len(polygon) >= 6 for polygon in shape)
    return is_drawn and len(annotation["bbox"]) == 4


def _index(plain: Plain) -> Any:
    from pycocotools.coco import COCO

    indexed = COCO()
    indexed.dataset = plain | {"annotations": [dict(a) for a in plain["annotations"]]}
    indexed.createIndex()
    return indexed


def encode_instances(image_id: int, instances: Instances) -> list[Plain]:
    """Return the instances of one image as COCO's result files hold them, with run lengths."""
    from pycocotools import mask

    runs = mask.encode(np.asfortranarray(instances.masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {
            "image_id": image_id,
            "category_id": int(category),
            "score": float(score),
            "segmentation": run,
            "bbox": mask.toBbox(run).tolist(),
            "area": float(mask.area(run)),
            "iscrowd": 0,
        }
        for run, category, score in zip(runs, instances.categories, instances.scores, strict=True)
    ]


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None
