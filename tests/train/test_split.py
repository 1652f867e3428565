"""Splits that are not laid out as one: images beside the parts, parts inside the classes."""

import pytest

from tests.support.folders import AB, check_layout
from tests.support.training import needs_train

pytestmark = needs_train
SPLITS = {  # as LAYOUTS
    "images beside a split": (
        {"train/a/": 4, "train/b/": 5, "test/a/": 2, "test/b/": 1, "x.png": 1, "y.JPG": 1, "labels.npy": 1},
        AB,
        {"a": 2, "b": 1},
        ["split of train and test"],
        ["2 images lie beside train of {} and are left out: x.png, y.JPG"],
    ),
    "an image beside train alone": (
        {"images/train/a/": 5, "images/train/b/": 6, "images/cover.png": 1},
        AB,
        {"a": 1, "b": 1},
        ["every 5th image of train"],
        ["1 image lies beside train of {}/images and is left out: cover.png"],
    ),
    "arrays beside arrays": (
        {f"train/a/{i}.npy": 1 for i in range(4)} | {f"test/a/{i}.npy": 1 for i in range(2)} | {"mean.npy": 1},
        {"a": 4},
        {"a": 2},
        [],
        ["1 image lies beside train"],
    ),
    "parts with names of their own": (
        {"training_set/a/": 5, "training_set/b/": 5, "test_set/a/": 3, "test_set/b/": 2},
        {"test_set": 4, "training_set": 8},
        {"test_set": 1, "training_set": 2},
        ["every 5th image of root"],
        ["test_set, training_set of {} are taken for classes; parts of a split are found under the names train and test"],
    ),
    "folds": (
        {"fold1/a/": 5, "fold2/a/": 5, "extra/a/": 5},
        {"extra": 4, "fold1": 4, "fold2": 4},
        {"extra": 1, "fold1": 1, "fold2": 1},
        ["every 5th image of root"],
        ["fold1, fold2 of {} are taken for classes"],
    ),
    "images and masks in each class": (
        {"a/images/": 4, "a/masks/": 4, "b/images/": 4, "b/masks/": 4, "b/more/": 1},
        {"a": 7, "b": 8},
        {"a": 1, "b": 1},
        ["every 5th image of root"],
        ["all 2 class folders of {} hold the folders images, masks; their images count for the class that holds them"],
    ),
    "a class that is called as a part is": (
        {"a/x/": 5, "b/x/": 5, "train_station/x/": 5},
        {"a": 4, "b": 4, "train_station": 4},
        {"a": 1, "b": 1, "train_station": 1},
        ["every 5th image of root"],
        [],
    ),
    "a split inside the classes": (
        {"a/train/": 4, "a/Val/": 1, "b/train/": 5, "b/Val/": 1},
        {"a": 4, "b": 5},
        {"a": 1, "b": 1},
        ["every 5th image of root"],
        ["a, b of {} hold train and Val in the class, and both are read as one; train/a/... and Val/a/... would be read as a"],
    ),
    "a split inside one class": (
        {"a/train/": 4, "a/test/": 1, "b/train/": 3, "b/more/": 3, "train.png/": 0},
        AB,
        {"a": 1, "b": 1},
        [],
        ["no images in train.png", "a of {} holds train and test in the class"],
    ),
    "a split one folder too high": (
        {"set/train/a/": 4, "set/test/a/": 1},
        {"set": 4},
        {"set": 1},
        [],
        ["all images are of one class, set: it holds train and test; folder:{}/set would read that split"],
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_is_laid_out_in_another_way(name, tmp_path):
    check_layout(tmp_path / "root", *SPLITS[name])
