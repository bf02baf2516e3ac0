from maskx_d2.data.training_data import TrainingData


def test_what_there_is_to_train_on_is_counted_on_each_side():
    objects = [(0, True), (0, False), (1, False), (2, True), (2, True), (1, True)]
    data = TrainingData.count(4000, objects, [True, False, True])
    # A mask of a class of B is none to train with.
    assert data == TrainingData(
        num_images=4000, num_classes=(2, 1), num_objects=(4, 2), num_masks=3, trained_with_masks=(0, 2)
    )
    assert TrainingData.count(2, [(0, True), (1, False)], [True, True]).trained_with_masks == (0,)
    assert str(data) == (
        "4,000 images; A: 2 classes, 4 objects, 3 with a mask; B, boxes only: 1 classes, 2 objects"
    )
    assert str(TrainingData.count(2, objects, [True] * 3)) == (
        "2 images; A: 3 classes, 6 objects, 4 with a mask"
    )
