"""Masks of promptable models: those that transformers itself gives, and what is refused."""

import json
import pickle
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from maskx_d2.commands.main import main
from maskx_d2.data.errors import InputError
from maskx_d2.data.rle import encode
from maskx_d2.demo import shapes
from maskx_d2.inference.detector import KnownObjects

if find_spec("transformers") is None:
    pytest.skip("needs transformers, which is not installed", allow_module_level=True)

import transformers

from maskx_d2.teachers import promptable
from maskx_d2.teachers.promptable import PromptableModel
from tests.recipes.tiny import write_detector

from . import tiny

CLASSES = {
    "sam": (transformers.SamModel, transformers.SamProcessor),
    "sam2": (transformers.Sam2Model, transformers.Sam2Processor),
    "sam3_tracker": (transformers.Sam3TrackerModel, transformers.Sam3TrackerProcessor),
}
BOXES = [[3.5, 4.0, 50.0, 60.25], [10.0, 20.0, 140.0, 80.0], [0.0, 0.0, 150.0, 90.0]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny.save(name, tmp_path_factory.mktemp(name)) for name in tiny.BUILDERS}


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    return Image.fromarray(pixels).resize((150, 90))


def by_hand(name, folder, image):
    """All boxes in one call of transformers, as its documentation says: masks and scores."""
    of_model, of_processor = CLASSES[name]
    model, processor = of_model.from_pretrained(folder).eval(), of_processor.from_pretrained(folder)
    inputs = processor(images=image, input_boxes=[BOXES], return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs, multimask_output=False)
    sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    (masks,) = processor.post_process_masks(found.pred_masks, *sizes)
    return masks[:, 0].numpy(), found.iou_scores[0, :, 0].clamp(0, 1).tolist()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("at_once", [64, 2])
def test_masks_and_scores_are_those_of_transformers(name, at_once, folders, image, monkeypatch):
    monkeypatch.setattr(promptable, "_BOXES_AT_ONCE", at_once)
    masks, scores = by_hand(name, folders[name], image)
    assert 0 < masks.mean() < 1
    teacher = PromptableModel(str(folders[name]))
    (found,) = teacher.masks_in_boxes([image], [KnownObjects(BOXES, [1, 2, 3])])
    assert [mask.rle for mask in found] == [encode(mask) for mask in masks]
    assert [mask.score for mask in found] == pytest.approx(scores, abs=1e-5)


def test_an_image_is_encoded_once_for_all_its_boxes(folders, image, monkeypatch):
    monkeypatch.setattr(promptable, "_BOXES_AT_ONCE", 1)
    teacher = PromptableModel(str(folders["sam2"]))
    calls = []
    teacher._model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    teacher.masks_in_boxes([image, image], [KnownObjects(BOXES, [1, 1, 1]), KnownObjects([], [])])
    assert len(calls) == 1


def test_masks_are_cut_to_their_boxes_on_request(folders, image):
    masks, _ = by_hand("sam2", folders["sam2"], image)
    teacher = PromptableModel(str(folders["sam2"]), within_boxes=True)
    (found,) = teacher.masks_in_boxes([image], [KnownObjects(BOXES, [1, 1, 1])])
    inside = np.zeros_like(masks)
    inside[0, 4:60, 3:50] = True  # pixels whose centre is in the box
    inside[1, 20:80, 10:140] = True
    inside[2] = True
    assert (masks & ~inside).any()
    assert [mask.rle for mask in found] == [encode(mask) for mask in masks & inside]


def test_few_masks_of_a_large_image_are_in_memory_at_a_time(folders, image, monkeypatch):
    monkeypatch.setattr(promptable, "_PIXELS_AT_ONCE", 150 * 90)
    teacher = PromptableModel(str(folders["sam2"]))
    sizes = []
    post_process = teacher._processor.post_process_masks
    monkeypatch.setattr(
        teacher._processor,
        "post_process_masks",
        lambda masks, *more: sizes.append(masks.shape[1]) or post_process(masks, *more),
    )
    teacher.masks_in_boxes([image], [KnownObjects(BOXES, [1, 1, 1])])
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("x"), RuntimeError("can't allocate memory")])
def test_an_image_that_is_too_large_for_memory_is_named(error, folders, image, monkeypatch):
    teacher = PromptableModel(str(folders["sam2"]))

    def fail(*given):
        raise error

    monkeypatch.setattr(teacher._model, "get_image_embeddings", fail)
    with pytest.raises(InputError, match=r"an image of 150 x 90 pixels with 3 boxes needs more memory"):
        teacher.masks_in_boxes([image], [KnownObjects(BOXES, [1, 1, 1])])


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"teacher {tmp_path} cannot be loaded, expected a folder that"):
        PromptableModel(str(tmp_path))


def test_a_name_that_is_not_in_the_cache_is_refused_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"teacher nobody/nothing cannot be loaded, expected a folder"):
        PromptableModel("nobody/nothing")


def test_a_model_that_takes_no_boxes_is_refused(tmp_path):
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is a model of type 'vit', expected one that takes boxes: sam, "):
        PromptableModel(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(folders, tmp_path):
    """A folder can name a Python file of its own as its model."""
    (tmp_path / "evil.py").write_text("raise SystemExit('it was run')")
    content = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"cannot be loaded"):
        PromptableModel(str(tmp_path))


# ---- maskx fill-masks --teacher ----


@pytest.fixture
def files(tmp_path):
    """Arguments: three generated images without masks, one box beyond the image."""
    dataset = shapes.generate(tmp_path / "shapes", num_train=0, num_test=3, seed=0)
    content = json.loads(dataset.test_json.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    content["annotations"][0]["bbox"] = [-20.0, -10.0, 60.0, 50.0]
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return ["fill-masks", tmp_path / "boxes.json", dataset.test_images]


def run(*words):
    main([str(word) for word in words])


def test_the_command_fills_the_masks_of_a_teacher(files, folders, tmp_path):
    output = tmp_path / "filled.json"
    run(*files, "--teacher", folders["sam2"], "--output", output)
    content = json.loads(output.read_text())
    names = {record["id"]: record["file_name"] for record in content["images"]}
    teacher = PromptableModel(str(folders["sam2"]))
    filled = [a for a in content["annotations"] if a.get("segmentation_source") == "teacher"]
    assert len(filled) == len(content["annotations"]) > 3
    for annotation in filled:
        x, y, width, height = annotation["bbox"]
        box = [max(x, 0.0), max(y, 0.0), x + width, y + height]
        image = Image.open(files[2] / names[annotation["image_id"]]).convert("RGB")
        ((mask,),) = teacher.masks_in_boxes([image], [KnownObjects([box], [1])])
        assert annotation["segmentation"] == mask.rle
        assert annotation["mask_score"] == pytest.approx(mask.score, abs=1e-4)


def test_sent_to_another_process_as_by_ray_it_finds_the_same(folders, image):
    teacher = PromptableModel(str(folders["sam2"]), within_boxes=True)
    sent = pickle.loads(pickle.dumps(teacher))
    objects = KnownObjects(BOXES, [1, 1, 1])
    assert sent.masks_in_boxes([image], [objects]) == teacher.masks_in_boxes([image], [objects])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --weights, --teacher, or both"),
        (["--teacher", "a", "--weights", "b.ckpt"], "expected --also-replace to compare them on the masks"),
        (
            ["--teacher", "a", "--per-class-best"],
            "--per-class-best chooses between --weights and --teacher",
        ),
        (["--weights", "b.ckpt", "--within-boxes"], "--within-boxes belongs to --teacher"),
        (["--teacher", "a", "--config-file", "c.yaml"], "--config-file and --opts belong to --weights"),
        (["--teacher", "a", "--precision", "fp16"], "--precision is fp16 on a CPU, expected fp32"),
        (["--teacher", "a", "--device", "nothing"], "--device is 'nothing', which torch cannot use"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        run(*files, *words, "--output", tmp_path / "out.json")
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def model_options(request, tmp_path):
    """Options that name a model with random weights that knows the classes of the generated images."""
    dataset = shapes.generate(tmp_path / "of_model", num_train=2, num_test=1, seed=0)
    if request.param == "detectron2":
        if find_spec("detectron2") is None:
            pytest.skip("needs Detectron2, which is not installed (make detectron2)")
        from tests.backends.detectron2 import tiny as tiny_detectron2

        config, weights = tiny_detectron2.save_untrained(dataset, tmp_path)
        return ["--config-file", config, "--weights", weights]
    categories = json.loads(dataset.train_json.read_text())["categories"]
    weights = tmp_path / "model.ckpt"
    write_detector(weights, categories, predictor="transfer", mask_head_channels=[8] * 4, mlp_layers=0)
    return ["--weights", weights]


@pytest.mark.parametrize("model_options", ["torchvision", "detectron2"], indirect=True)
def test_a_model_and_a_teacher_are_compared_by_the_command(model_options, folders, tmp_path, capsys):
    dataset = shapes.generate(tmp_path / "shapes", num_train=0, num_test=24, seed=1)
    words = ["fill-masks", dataset.test_json, dataset.test_images, *model_options]
    words += ["--teacher", folders["sam2"], "--also-replace", "--output", tmp_path / "filled.json"]
    run(*words)
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "filled.comparison.json").read_text())
    assert content["models"] == ["model", "teacher"] and content["filled_by"] == {}
    annotations = json.loads(dataset.test_json.read_text())["annotations"]
    of_classes = [group for group in content["groups"] if group["kind"] == "class"]
    assert sum(group["num_objects"] for group in of_classes) == len(annotations)
    assert {group["kind"] for group in content["groups"]} == {"side", "size", "class"}
    for group in content["groups"]:
        assert f"{group['mean_iou']['teacher']:.3f}" in printed
    assert (tmp_path / "filled.comparison.svg").read_text().lstrip().startswith("<")
    run(*words, "--per-class-best")
    content = json.loads((tmp_path / "filled.comparison.json").read_text())
    filled = json.loads((tmp_path / "filled.json").read_text())
    names = {category["id"]: category["name"] for category in filled["categories"]}
    source = {"model": "predicted", "teacher": "teacher"}
    for annotation in filled["annotations"]:
        if "segmentation_source" in annotation:
            choice = content["filled_by"][names[annotation["category_id"]]]
            assert annotation["segmentation_source"] == source[choice["model"]]
    assert "filled by" in capsys.readouterr().out


def test_half_precision_is_that_of_the_weights_on_a_gpu_alone(folders):
    of_precision = partial(PromptableModel, str(folders["sam2"]))
    teacher = of_precision(precision="bf16")
    assert {p.dtype for p in teacher._model.parameters()} == {torch.float32}
    assert {p.dtype for p in teacher.to("meta")._model.parameters()} == {torch.bfloat16}
    with pytest.raises(InputError, match=r"precision is 'int8', expected one of fp32, bf16, fp16"):
        of_precision(precision="int8")
