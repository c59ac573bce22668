"""Data sets: one file each, opened by `name` or `name:root`.

from segdeploy.data import open_dataset
dataset = open_dataset("camvid:data/camvid", "val")
dataset[0].image.shape, dataset.classes
"""

from __future__ import annotations

from segdeploy.core.registry import Registry
from segdeploy.data.sample import Dataset, OpenDataset, Sample

DATASETS: Registry[OpenDataset] = Registry(
    "dataset",
    {
        "ade20k": "segdeploy.data.ade20k:open_ade20k",
        "camvid": "segdeploy.data.camvid:open_camvid",
        "cityscapes": "segdeploy.data.cityscapes:open_cityscapes",
        "coco": "segdeploy.data.coco:open_coco",
        "coco_stuff": "segdeploy.data.coco_stuff:open_coco_stuff",
        "coco_voc": "segdeploy.data.coco_voc:open_coco_voc",
        "drive": "segdeploy.data.drive:open_drive",
        "duts": "segdeploy.data.duts:open_duts",
        "folder": "segdeploy.data.folder:open_folder",
        "folder_multilabel": "segdeploy.data.folder_multilabel:open_folder_multilabel",
        "isbi2012": "segdeploy.data.isbi2012:open_isbi2012",
        "pascal_context": "segdeploy.data.pascal_context:open_pascal_context",
        "pet": "segdeploy.data.pet:open_pet",
        "synthetic": "segdeploy.data.synthetic:open_synthetic",
        "synthetic_binary": "segdeploy.data.synthetic:open_synthetic_binary",
        "synthetic_multilabel": "segdeploy.data.synthetic:open_synthetic_multilabel",
        "voc": "segdeploy.data.voc:open_voc",
        "voc_aug": "segdeploy.data.voc_aug:open_voc_aug",
    },
    entry_point_group="segdeploy.datasets",
)

TRAIN, VAL = "train", "val"


def open_dataset(spec: str, split: str = VAL) -> Dataset:
    """Open one split of `name` or `name:root`, e.g. `camvid:../shared/data/camvid`.

    Raises:
        UnknownNameError: If no data set has this name.
        DataError: If the layout below root is not the data set's, or the split is empty.
    """
    name, _, root = spec.partition(":")
    return DATASETS.get(name)(root or None, split)


__all__ = ["DATASETS", "TRAIN", "VAL", "Dataset", "Sample", "open_dataset"]
