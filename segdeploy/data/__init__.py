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
        "camvid": "segdeploy.data.camvid:open_camvid",
        "folder": "segdeploy.data.folder:open_folder",
        "synthetic": "segdeploy.data.synthetic:open_synthetic",
        "synthetic_binary": "segdeploy.data.synthetic:open_synthetic_binary",
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
