import io
import json
import multiprocessing
import shutil
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import ray
import torch
from detectron2.checkpoint import DetectionCheckpointer
from PIL import Image

import maskx_d2
from maskx_d2.backends.detectron2 import Trainer
from maskx_d2.backends.detectron2.checkpoint import ClassList, classes_of_weights
from maskx_d2.backends.detectron2.class_split import evaluated_classes_with_masks
from maskx_d2.backends.detectron2.command_line import read_config
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.backends.detectron2.predict import Detectron2Detector
from maskx_d2.commands import main as cli
from maskx_d2.demo import shapes
from maskx_d2.demo.generated_dataset import GeneratedDataset
from maskx_d2.evaluation.pictures import BOXES_ONLY_COLOUR, WITH_MASKS_COLOUR, with_legend
from maskx_d2.inference.detector import KnownObjects

from ...inference.precision import assert_nearly_the_same_in_half_precision
from . import tiny


def maskx(*arguments):
    """The command, in this process: a new one would import Detectron2 each time."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            code = cli.main(list(map(str, arguments)))
        except SystemExit as stopped:
            code = stopped.code
    return SimpleNamespace(returncode=code or 0, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def model(shapes_dataset, tmp_path_factory):
    """Arguments that name an untrained model of the demo's 32 classes."""
    config, weights = tiny.save_untrained(shapes_dataset, tmp_path_factory.mktemp("model"))
    return ["--config-file", config, "--weights", weights]


def test_masks_in_the_boxes_of_detections_are_those_of_the_detections(model, shapes_dataset):
    detector = Detectron2Detector.from_config(read_config(str(model[1]), ["MODEL.WEIGHTS", str(model[3])]))
    images = [Image.open(path) for path in sorted(shapes_dataset.test_images.iterdir())[:2]]
    images[1] = images[1].crop((0, 0, 90, 110))
    for image in images:
        detections = detector.coco_results([image], [1])[0]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (d["bbox"] for d in detections)]
        known = KnownObjects(boxes, [d["category_id"] for d in detections])
        (masks,) = detector.masks_in_boxes([image], [known])
        assert len(masks) == len(detections) > 5
        for mask, detection in zip(masks, detections, strict=True):
            areas = mask_util.area(mask.rle), mask_util.area(detection["segmentation"])
            assert mask_util.iou([mask.rle], [detection["segmentation"]], [0]) > 0.97 or max(areas) == 0
            assert 0 <= mask.score <= 1
    inside, outside = [10.0, 10.0, 40.0, 40.0], [500.0, 10.0, 540.0, 40.0]
    (masks,) = detector.masks_in_boxes([images[0]], [KnownObjects([inside, outside, inside], [1, 1, 1])])
    assert masks[1] is None and masks[0] == masks[2]


def test_in_half_precision_masks_are_nearly_those_of_full_precision(model):
    detector = Detectron2Detector.from_config(read_config(str(model[1]), ["MODEL.WEIGHTS", str(model[3])]))
    assert_nearly_the_same_in_half_precision(detector, category_id=1)


@pytest.mark.parametrize("device", ["cpu", "nowhere"])
def test_half_precision_on_a_cpu_and_devices_that_are_not_there_are_one_sentence(model, tmp_path, device):
    image = tmp_path / "1.png"
    Image.new("RGB", (64, 64)).save(image)
    done = maskx(
        *("predict", image, *model, "--output", tmp_path / "out"),
        *("--device", device, "--precision", "bf16"),
    )
    assert done.returncode == 2
    expected = {"cpu": "--precision is bf16 on a CPU, expected fp32", "nowhere": "--device is 'nowhere'"}
    assert expected[device] in done.stderr and not list(tmp_path.glob("out/*.json"))


def test_the_command_fills_masks(model, shapes_dataset, tmp_path):
    words = ["fill-masks", shapes_dataset.train_json, shapes_dataset.train_images, *model]
    done = maskx(*words, "--output", tmp_path / "filled.json")
    assert done.returncode == 0, done.stderr
    before = json.loads(shapes_dataset.train_json.read_text())["annotations"]
    after = json.loads((tmp_path / "filled.json").read_text())["annotations"]
    for old, now in zip(before, after, strict=True):
        assert now == old if "segmentation" in old else {k: now[k] for k in old} == old
    without = [o["id"] for o in before if "segmentation" not in o]
    filled = [a["id"] for a in after if a.get("segmentation_source") == "predicted"]
    assert set(filled) <= set(without) and len(filled) > 0
    done = maskx(*words, "--output", tmp_path / "no.json", "--opts", "MODEL.MASK_ON", "False")
    assert done.returncode == 2 and "without a mask head, expected" in done.stderr
    assert not (tmp_path / "no.json").exists()


def _find(path, image, queue):
    detector = ray.cloudpickle.loads(path.read_bytes())
    torch.set_num_threads(1)
    queue.put(detector.coco_results([image], [1])[0])


def test_sent_to_another_process_as_by_ray_it_finds_the_same(model, shapes_dataset, tmp_path):
    """On Ray itself it is tested with torchvision's detector, and with one whose processes are killed."""
    detector = Detectron2Detector.from_config(read_config(str(model[1]), ["MODEL.WEIGHTS", str(model[3])]))
    with Image.open(sorted(shapes_dataset.test_images.iterdir())[0]) as image:
        image = image.convert("RGB")
    (tmp_path / "detector").write_bytes(ray.cloudpickle.dumps(detector))
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_find, args=(tmp_path / "detector", image, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on how they are split
    assert found and found == detector.coco_results([image], [1])[0]
    torch.set_num_threads(threads)


def test_all_kinds_of_images_are_drawn_and_written(model, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
    pixels.save(folder / "rgb.jpg")
    pixels.convert("L").save(folder / "grey.PNG")
    pixels.convert("RGBA").save(folder / "alpha.webp")
    pixels.save(tmp_path / "rgb.png")  # of the same name as one in the folder
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out"
    done = maskx("predict", *model, "--output", out, "--min-score", 0.01, folder, tmp_path / "rgb.png")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in out.glob("*.png")) == ["alpha.png", "grey.png", "rgb.png", "rgb_2.png"]
    expected = with_legend(Image.new("RGB", (90, 70))).size
    assert all(Image.open(p).size == expected for p in out.glob("*.png"))
    results = json.loads((out / "coco_instances_results.json").read_text())
    assert {r["image_id"] for r in results} == {1, 2, 3, 4}
    for result in results:
        assert set(result) == {"image_id", "category_id", "bbox", "score", "segmentation", "file_name"}
        assert 1 <= result["category_id"] <= 32
        assert result["score"] >= 0.01
        assert result["segmentation"]["size"] == [70, 90]


def test_classes_are_coloured_by_what_they_were_trained_with(quick_demo, tmp_path):
    folder, _ = quick_demo
    run = folder / "maskx"
    arguments = ["--config-file", run / "config.yaml", "--weights", run / "model_final.pth"]
    images = sorted((folder / "dataset" / "test").iterdir())[:20]
    done = maskx("predict", *arguments, "--output", tmp_path, "--min-score", 0.3, *images)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "coco_instances_results.json").read_text())
    boxes_only = {i + 1 for i, name in enumerate(shapes.CLASS_NAMES) if name in shapes.BOXES_ONLY}
    seen = set()
    for path in images:
        found = {r["category_id"] in boxes_only for r in results if r["file_name"] == path.name}
        # Above the legend, which has both colours.
        picture = Image.open(tmp_path / path.name).crop((0, 0, 128, 128))
        colours = {colour for _, colour in picture.getcolors(128 * 128)}
        if len(found) == 1:
            assert (BOXES_ONLY_COLOUR in colours) is found.copy().pop()
            assert (WITH_MASKS_COLOUR in colours) is not found.copy().pop()
        seen |= found
    assert seen == {True, False}


def test_a_model_of_a_longer_class_list_has_names_and_ids_of_all(shapes_dataset, tmp_path):
    """Whether its config names a dataset with all classes or one that labels some of them."""
    names = ["bear", *shapes.CLASS_NAMES, "ant"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    entry = [
        "mine",
        str(shapes_dataset.test_json),
        str(shapes_dataset.test_images),
        str(tmp_path / "list.txt"),
    ]
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *(
            "DATASETS.MASKX_REGISTER",
            [entry],
            "DATASETS.TEST",
            ("mine",),
            "MODEL.ROI_HEADS.NUM_CLASSES",
            34,
        ),
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    )
    torch.save({"model": tiny.build(cfg).state_dict()}, tmp_path / "weights.pth")
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    detector = Detectron2Detector.from_config(cfg)
    assert detector.style.names == dict(enumerate(names, start=1))
    assert detector.style.with_masks == {
        i for i, name in enumerate(names, start=1) if name not in {*shapes.BOXES_ONLY, "bear", "ant"}
    }
    found = detector.coco_results([Image.new("RGB", (64, 64))], [5])[0]
    assert found and all(detection["category_id"] in detector.style.names for detection in found)
    tiny.forget("mine")


def test_coco_file_names_give_the_image_ids(model, tmp_path):
    for name in ("000000397133.jpg", "000000000042.jpg"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    done = maskx("predict", *model, "--output", tmp_path / "out", "--min-score", 0, tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert all(r["image_id"] == int(r["file_name"].split(".")[0]) for r in results)


def test_users_mistakes_end_with_one_sentence(model, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    image = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(image)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 and then nothing")
    cases = [
        ([*model, *out, tmp_path / "absent.png"], "absent.png is neither an image nor a folder"),
        ([*model, *out, tmp_path / "empty"], "empty holds no image, expected files ending in .avif, .bmp"),
        ([*model, *out, tmp_path / "broken.jpg"], "broken.jpg cannot be read as an image"),
        (["--config-file", "absent.yaml", *model[2:], *out, image], "config 'absent.yaml' is not a file"),
        ([*model[:2], "--weights", "absent.pth", *out, image], "--weights absent.pth is not a file"),
        ([*model, *out, image, "--opts", "MODEL.MASKY", "1"], "Non-existent key: MODEL.MASKY"),
        (
            [*model, *out, image, "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "31"],
            "NUM_CLASSES is 31, but the dataset 'shapes_test' has 32 classes",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["predict", *map(str, arguments)])
        assert stopped.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskx: ")]
        assert message in line
    assert not list(tmp_path.glob("out/*.json"))


def test_test_time_augmentation_that_changes_nothing_finds_the_same_and_a_flip_does_no_harm(
    quick_demo, tmp_path
):
    run = quick_demo[0] / "maskx"
    overrides = ["MODEL.WEIGHTS", str(run / "model_final.pth"), "OUTPUT_DIR", str(tmp_path)]
    cfg = read_config(str(run / "config.yaml"), overrides).clone()
    cfg.defrost()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (cfg.INPUT.MIN_SIZE_TEST,), cfg.INPUT.MAX_SIZE_TEST
    truth = json.loads((quick_demo[0] / "dataset" / "annotations" / "test.json").read_text())
    truth["images"] = truth["images"][:30]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] <= truth["images"][-1]["id"]]
    (tmp_path / "few.json").write_text(json.dumps(truth))
    cfg.DATASETS.MASKX_REGISTER = [
        ["few", str(tmp_path / "few.json"), str(quick_demo[0] / "dataset" / "test")]
    ]
    register_datasets(cfg)
    cfg.DATASETS.TEST = ("few",)
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    plain = Trainer.test(cfg, model)
    for cfg.TEST.AUG.FLIP in (False, True):
        augmented = Trainer.test_with_TTA(cfg, model)
        for task in ("bbox", "segm_A", "segm_B"):
            found, expected = augmented[f"{task}_TTA"]["AP50"], plain[task]["AP50"]
            if cfg.TEST.AUG.FLIP:
                assert found > expected - 5, task
            else:
                assert found == pytest.approx(expected, abs=0.3), task
    assert plain["bbox"]["AP50"] > 10


def test_a_trained_model_needs_neither_the_annotations_nor_the_images_of_its_training(
    shapes_dataset, tmp_path
):
    data = GeneratedDataset(shutil.copytree(shapes_dataset.root, tmp_path / "data"))
    tiny.forget("shapes_train", "shapes_train_all_masks", "shapes_test")
    cfg = tiny.data_config(
        data, tmp_path / "run", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "SOLVER.MAX_ITER", 1
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.checkpointer.save("model")
    expected = classes_with_masks_in(data, "train", set(evaluated_classes_with_masks(cfg, "shapes_train")))
    assert 0 < len(expected) <= 24
    tiny.forget("shapes_train", "shapes_train_all_masks", "shapes_test")
    shutil.rmtree(data.root)
    detector = maskx_d2.load_detector(tmp_path / "run" / "model.pth", tmp_path / "config.yaml")
    assert detector.style.names == dict(enumerate(shapes.CLASS_NAMES, start=1))
    assert detector.style.with_masks == {i + 1 for i in expected}
    detector.detect(Image.new("RGB", (90, 70)))
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 31, but the checkpoint .*model.pth knows 32 cl"):
        maskx_d2.load_detector(
            tmp_path / "run" / "model.pth",
            tmp_path / "config.yaml",
            overrides=["MODEL.ROI_HEADS.NUM_CLASSES", 31],
        )


def classes_with_masks_in(data, split, allowed):
    """Contiguous indices of those of the classes of which the annotations have a mask."""
    content = json.loads((data.root / "annotations" / f"{split}.json").read_text())
    return {a["category_id"] - 1 for a in content["annotations"] if a.get("segmentation")} & allowed


def test_classes_trained_with_masks_are_those_of_the_training_and_not_of_the_evaluation(
    shapes_dataset, tmp_path
):
    """An oracle is trained on all masks there are, and reported on the split of the others."""
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("DATASETS.CLASSES_WITH_MASKS", "all", "TEST.MASKX_CLASS_SPLIT", str(shapes_dataset.split_file)),
        *("DATASETS.TRAIN", ("shapes_train_all_masks",)),
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "SOLVER.MAX_ITER", 1),
    )
    trainer = Trainer(cfg)
    expected = classes_with_masks_in(shapes_dataset, "train_all_masks", set(range(32)))
    known = trainer.known_classes()
    assert set(known.with_masks) == expected != set(evaluated_classes_with_masks(cfg, "shapes_train"))
    # In the config of a run too, for weights that do not say.
    (tmp_path / "config.yaml").write_text(known.written_into(cfg).dump())
    torch.save({"model": trainer.model.state_dict()}, tmp_path / "weights.pth")
    tiny.forget("shapes_train", "shapes_train_all_masks", "shapes_test")
    overrides = ["DATASETS.MASKX_REGISTER", [], "DATASETS.TEST", (), "DATASETS.TRAIN", ()]
    detector = maskx_d2.load_detector(
        tmp_path / "weights.pth", tmp_path / "config.yaml", overrides=overrides
    )
    assert detector.style.names == dict(enumerate(shapes.CLASS_NAMES, start=1))
    assert detector.style.with_masks == {i + 1 for i in expected}


@pytest.mark.parametrize(
    "changed",
    [{"names": "abc"}, {"category_ids": [1, 1]}, {"with_masks": [9]}, {"category_ids": ["1", "2"]}],
)
def test_a_checkpoint_whose_classes_are_none_is_refused(tmp_path, changed):
    known = {"names": ["a", "b"], "category_ids": [1, 2], "with_masks": [0], **changed}
    torch.save({"model": {}, ClassList.KEY: known}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth does not say which classes it knows"):
        classes_of_weights(str(tmp_path / "a.pth"))
    torch.save({"model": {}, ClassList.KEY: {"names": ["a", "b"]}}, tmp_path / "a.pth")
    assert classes_of_weights(str(tmp_path / "a.pth")) is None  # as version 0.2.0 wrote it
