"""What every data set that needs no files must do; a new entry of this kind is tested as it is."""

from __future__ import annotations

import numpy as np
import pytest

from segdeploy.core.errors import DataError
from segdeploy.core.task import Task, ignore_value
from segdeploy.data import DATASETS, open_dataset

NAMES = DATASETS.names()
FREE = [name for name in NAMES if name.startswith("synthetic")]
NEED_A_ROOT = set(NAMES) - set(FREE)


@pytest.mark.parametrize("name", sorted(NEED_A_ROOT))
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_or_wrong_root_is_a_data_error_with_a_hint(name: str, split: str) -> None:
    for spec in (name, f"{name}:", f"{name}:/no/such/place"):
        with pytest.raises(DataError) as caught:
            open_dataset(spec, split)
        assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_is_a_data_error(name: str) -> None:
    with pytest.raises(DataError):
        open_dataset(name, "no such split")


@pytest.mark.parametrize("name", FREE)
def test_samples_have_the_types_shapes_and_ids_that_are_promised(name: str) -> None:
    for split in ("train", "val"):
        dataset = open_dataset(name, split)
        assert len(dataset) > 0
        assert split in dataset.name
        assert len(set(dataset.classes)) == len(dataset.classes) >= 1
        num_ids = len(dataset.classes) if dataset.task is Task.MULTICLASS else 2
        planes = (len(dataset.classes),) if dataset.task is Task.MULTILABEL else ()
        names = set()
        for index in range(min(4, len(dataset))):
            sample = dataset[index]
            names.add(sample.name)
            assert sample.image.dtype == np.uint8
            assert sample.image.ndim == 3
            assert sample.label.shape == (*planes, *sample.image.shape[:2])
            assert sample.image.shape[2:] == (3,)
            assert np.issubdtype(sample.label.dtype, np.unsignedinteger)
            counted = sample.label[sample.label != ignore_value(num_ids)]
            assert counted.size
            assert counted.max() < num_ids
        assert len(names) == min(4, len(dataset))
        with pytest.raises(IndexError):
            dataset[len(dataset)]


@pytest.mark.parametrize("name", FREE)
def test_a_sample_reads_the_same_every_time_and_splits_differ(name: str) -> None:
    train, val = open_dataset(name, "train"), open_dataset(name, "val")
    first, again = train[0], train[0]
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    first.image[:] = 0  # A caller may draw into its copy.
    np.testing.assert_array_equal(train[0].image, again.image)
    assert not np.array_equal(again.image, val[0].image)
