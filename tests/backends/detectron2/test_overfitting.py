"""That training learns at all: a small model on a few real images, of which it shall know everything."""

from overfitting import overfit


def test_eight_images_are_learned_by_heart(coco_mini, tmp_path):
    """Two seeds of 60 iterations of Mask^X as in the paper ended with a mask AP on A of 20 and 30."""
    paper = [
        *("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "cls+box"),
        *("MODEL.ROI_MASK_HEAD.TRANSFER.EMBEDDING_DROPOUT", 0.0),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96),
        *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
    ]
    losses, by_group = overfit(coco_mini, tmp_path / "run", seed=0, iterations=60, overrides=paper)
    assert losses[-1] < 0.7 * losses[0]
    assert by_group["segm"]["A"]["AP"] > 10
