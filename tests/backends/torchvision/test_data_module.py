import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from maskx_d2.backends.torchvision import data_module as module_of_class
from maskx_d2.backends.torchvision.data_module import CocoDataModule, ShuffledStream
from maskx_d2.demo import shapes

from ... import ranks
from . import tiny


def data_module(dataset, **options):
    paths = (dataset.train_json, dataset.train_images, dataset.test_json, dataset.test_images)
    module = CocoDataModule(*paths, **{"num_workers": 0, "batch_size": 4, **options})
    module.trainer = SimpleNamespace(
        global_step=0, accumulate_grad_batches=1, max_steps=-1, world_size=1, global_rank=0
    )
    return module


# ---- The order of the images ----


def test_every_pass_has_each_image_once_in_an_order_of_its_own():
    indices = list(ShuffledStream(range(10), length=35, num_replicas=1, rank=0, seed=3))
    passes = [indices[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert indices == list(ShuffledStream(range(10), length=35, num_replicas=1, rank=0, seed=3))
    assert indices != list(ShuffledStream(range(10), length=35, num_replicas=1, rank=0, seed=4))


def test_ranks_share_a_pass():
    ranks = [list(ShuffledStream(range(10), length=5, num_replicas=2, rank=r, seed=0)) for r in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == list(range(10))


def test_a_run_that_goes_on_gets_what_it_has_not_had():
    """At any point, within an epoch or between two, and from the next epoch on as if nothing had been."""
    whole = ShuffledStream(range(7), length=12, num_replicas=1, rank=0, seed=1)
    through = [*whole, *whole, *whole]
    assert len(through) == 36
    for start in (0, 1, 11, 12, 13, 35):
        resumed = ShuffledStream(range(7), length=12, start=start, num_replicas=1, rank=0, seed=1)
        epochs = 3 - start // 12
        assert list(itertools.chain.from_iterable(resumed for _ in range(epochs))) == through[start:]


# ---- The data module ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=10, num_test=4, seed=0)


def test_an_epoch_is_the_data_or_the_steps_that_were_asked_for(dataset):
    module = data_module(dataset)
    assert len(module.train_dataloader()) == 3
    module.trainer.max_steps = 20
    assert len(module.train_dataloader()) == 20
    module.trainer.accumulate_grad_batches = 2
    assert len(module.train_dataloader()) == 40


def test_a_resumed_run_passes_over_the_images_that_it_has_had(dataset):
    module = data_module(dataset)
    module.trainer.max_steps = 6
    ids = [[int(t["image_id"]) for t in targets] for _, targets in module.train_dataloader()]
    module.trainer.global_step = 2
    resumed = [[int(t["image_id"]) for t in targets] for _, targets in module.train_dataloader()]
    assert resumed == ids[2:]


def test_the_split_acts_on_training_alone(dataset):
    module = data_module(dataset, classes_with_masks=str(dataset.split_file))
    boxes_only = {shapes.CLASS_NAMES.index(name) + 1 for name in shapes.BOXES_ONLY}
    seen = set()
    for _, targets in module.train_dataloader():
        for target in targets:
            for label, has_mask in zip(target["labels"].tolist(), target["has_mask"].tolist(), strict=True):
                assert has_mask is (label not in boxes_only)
                seen.add(has_mask)
    assert seen == {True, False}
    for _, targets in module.val_dataloader():
        assert all(target["has_mask"].all() for target in targets)


def test_evaluation_can_have_a_split_of_its_own(dataset, tmp_path):
    (tmp_path / "other.txt").write_text("red ring\nred square\n")
    module = data_module(dataset, classes_with_masks="all")
    assert module.evaluated_with_masks == list(range(32))
    assert data_module(dataset, class_split=str(tmp_path / "other.txt")).evaluated_with_masks == [0, 1]
    assert len(data_module(dataset, classes_with_masks=str(dataset.split_file)).evaluated_with_masks) == 24


def test_data_that_do_not_fit_are_errors(dataset, tmp_path):
    content = json.loads(dataset.test_json.read_text())
    content["categories"][3]["name"] = "purple ring"
    (tmp_path / "other.json").write_text(json.dumps(content))
    module = data_module(dataset)
    module.val_json = tmp_path / "other.json"
    with pytest.raises(
        ValueError, match=r"other.json has other classes .* lacks 'red cross' and has 'purple ring'"
    ):
        module.val_dataloader()
    content["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(content))
    module = data_module(dataset)
    module.train_json = tmp_path / "empty.json"
    with pytest.raises(ValueError, match=r"empty.json has no image with an object, expected at least one"):
        module.train_dataloader()
    with pytest.raises(ValueError, match=r"split 'voc' names"):
        data_module(dataset, classes_with_masks="voc").train_dataloader()


def test_it_says_whether_there_is_a_mask_to_train_with(dataset, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("\n".join(shapes.BOXES_ONLY))
    assert data_module(dataset).has_masks
    assert data_module(dataset, classes_with_masks=str(dataset.split_file)).has_masks
    assert not data_module(dataset, classes_with_masks=str(split)).has_masks


def _rank(rank, dataset, folder):
    """Of two processes of a machine: what it reads, and what it has then."""
    ranks.join(rank, folder)
    files_read = []
    read = module_of_class.read_coco_file
    module_of_class.read_coco_file = lambda path: files_read.append(path.name) or read(path)

    def data(**options):
        module = data_module(dataset, **options)
        module.trainer.world_size, module.trainer.global_rank, module.trainer.local_rank = 2, rank, rank
        return module

    module = data(classes_with_masks=str(dataset.split_file))
    module.setup("fit")
    trained_on = [int(t["image_id"]) for _, targets in module.train_dataloader() for t in targets]
    tested_on = [int(t["image_id"]) for _, targets in module.val_dataloader() for t in targets]
    errors = []
    for name, value in (("classes_with_masks", "voc"), ("val_images", folder / "absent")):
        broken = data()
        setattr(broken, "split" if name == "classes_with_masks" else name, value)
        try:
            broken.setup("fit")
        except (ValueError, FileNotFoundError) as error:
            errors.append(str(error))
    result = {"read": files_read, "trained_on": trained_on, "tested_on": tested_on, "errors": errors}
    (folder / f"{rank}.json").write_text(json.dumps({**result, "has_masks": module.has_masks}))
    ranks.leave()


def test_of_two_processes_one_reads_and_both_have_it(dataset, tmp_path):
    ranks.run(_rank, dataset, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["read"][:2] == ["train.json", "test.json"] and second["read"] == []
    assert sorted(first["trained_on"] + second["trained_on"]) == sorted([*range(1, 11)])
    assert first["tested_on"] == second["tested_on"] and len(first["tested_on"]) == 4  # Lightning deals out
    assert first["has_masks"] is second["has_masks"] is True
    split, images = first["errors"]
    assert "split 'voc' names" in split and "absent" in images and second["errors"] == first["errors"]


def test_a_run_that_resumes_by_epochs_skips_no_image(dataset, tmp_path):
    content = json.loads(dataset.train_json.read_text())
    of_image = {a["image_id"] for a in content["annotations"]}
    content["images"] = [image for image in content["images"] if image["id"] in of_image][:9]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "nine.json").write_text(json.dumps(content))

    def images(global_step, number):
        module = data_module(dataset, batch_size=2)
        module.train_json = tmp_path / "nine.json"
        module.trainer.global_step = global_step
        loader = module.train_dataloader()
        found = []
        while len(found) < number:
            found += [[int(t["image_id"]) for t in targets] for _, targets in loader]
        return found[:number]

    through = images(0, 15)  # three epochs of five steps
    assert [len(batch) for batch in through[:5]] == [2, 2, 2, 2, 1]
    for epoch in range(3):
        assert {i for batch in through[5 * epoch : 5 * epoch + 5] for i in batch} == kept
    for steps in (3, 5, 7, 10):
        assert images(steps, 15 - steps) == through[steps:]


def test_images_without_an_object_are_kept_on_request(dataset, tmp_path):
    content = json.loads(dataset.train_json.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    (tmp_path / "train.json").write_text(json.dumps(content))
    sizes, said = [], []
    for keep_empty in (False, True):
        module = data_module(dataset, keep_empty=keep_empty)
        module.train_json = tmp_path / "train.json"
        samples, training_data = module._training
        sizes.append(len(samples))
        said.append(str(training_data))
    assert sizes[1] == sizes[0] + 1
    assert "not used: 1 images without an object" in said[0] and "without an object" not in said[1]


def test_a_model_trains_on_an_image_without_an_object(dataset, tmp_path):
    content = json.loads(dataset.train_json.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    content["images"] = [image for image in content["images"] if image["id"] in (1, 2)]
    (tmp_path / "train.json").write_text(json.dumps(content))
    module = data_module(dataset, keep_empty=True, batch_size=2)
    module.train_json = tmp_path / "train.json"
    images, targets = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert sorted(len(target["boxes"]) > 0 for target in targets) == [False, True]
    model = tiny.build(num_classes=33)
    losses = model(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
