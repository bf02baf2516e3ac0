import random

import pytest

from maskx_d2.recipes.folds import ClassOfObjects, balanced_folds


def test_each_class_is_in_one_fold_and_folds_have_equally_many():
    classes = {index: ClassOfObjects(10 + index, 100.0 * index) for index in range(3, 25)}
    folds = balanced_folds(classes, 4)
    assert sorted(index for fold in folds for index in fold) == sorted(classes)
    assert {len(fold) for fold in folds} == {5, 6}


def test_folds_have_about_as_many_objects_of_each_size():
    generator = random.Random(0)
    classes = {i: ClassOfObjects(generator.randint(5, 60), generator.uniform(1e2, 1e5)) for i in range(40)}
    folds = balanced_folds(classes, 4)
    objects = [sum(classes[i].num_objects for i in fold) for fold in folds]
    by_chance = [sum(classes[i].num_objects for i in range(k, 40, 4)) for k in range(4)]
    assert max(objects) - min(objects) < max(by_chance) - min(by_chance)
    ranks = {
        index: rank for rank, index in enumerate(sorted(classes, key=lambda i: classes[i].median_area))
    }
    means = [sum(ranks[i] for i in fold) / len(fold) for fold in folds]
    assert max(means) - min(means) < 2  # of 39


@pytest.mark.parametrize(
    ("num_classes", "num_folds", "message"),
    [
        (0, 2, r"no class has masks to measure"),
        (1, 2, r"only one class has masks"),
        (3, 4, r"--folds is 4, expected 2 to 3"),
        (3, 1, r"--folds is 1, expected 2 to 3"),
    ],
)
def test_too_few_classes_are_refused(num_classes, num_folds, message):
    classes = {index: ClassOfObjects(5, 10.0) for index in range(num_classes)}
    with pytest.raises(ValueError, match=message):
        balanced_folds(classes, num_folds)
