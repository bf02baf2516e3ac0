import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from maskx_d2.backends.detectron2.command_line import read_config
from maskx_d2.backends.detectron2.seg_every_thing import convert_checkpoint
from maskx_d2.commands import main as cli
from maskx_d2.runtime.checkpoints import read_checkpoint

from . import caffe2
from .test_checkpoint import Command

NAMES = ["cat", "dog", "unicorn", "person", "hen"]
SETTINGS = "!!python/object/new:utils.collections.AttrDict\ndictitems:\n  MRCNN: {}\n"


def write(folder, found, settings=SETTINGS):
    (folder / "names.txt").write_text("\n".join(NAMES))
    path = folder / "model_final.pkl"
    path.write_bytes(caffe2.pickle_of_python_2(found, settings))
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Blobs, and the folder of what was made of them."""
    folder = tmp_path_factory.mktemp("authors")
    found = caffe2.blobs(num_classes=len(NAMES))
    convert_checkpoint(write(folder, found), folder / "out", classes=folder / "names.txt")
    return found, folder / "out"


def model_of(folder):
    # All boxes, to look at.
    cfg = read_config(
        str(folder / "config.yaml"),
        ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION", False],
    )
    model = build_model(cfg).eval()
    model.load_state_dict(read_checkpoint(folder / "model_final.pth")["model"], strict=True)
    return model


def test_pickles_are_as_python_2_wrote_them():
    found = caffe2.blobs(num_classes=2)
    content = pickle.loads(caffe2.pickle_of_python_2(found, SETTINGS), encoding="latin1")
    assert content["cfg"] == SETTINGS and list(content["blobs"]) == list(found)
    assert all(np.array_equal(content["blobs"][name], blob) for name, blob in found.items())


@torch.no_grad()
def test_scores_boxes_and_mask_logits_are_those_of_the_original(converted):
    found, folder = converted
    heads = model_of(folder).roi_heads.double()
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 12))
    scores, deltas = heads.box_predictor(torch.from_numpy(features))
    expected = caffe2.class_scores(found, features)
    assert np.allclose(scores.softmax(1), np.roll(expected, -1, axis=1), atol=1e-9)  # background last
    expected = caffe2.box_deltas(found, features)[:, 1:]
    assert np.allclose(deltas.reshape(6, -1, 4), expected, atol=1e-9)
    rois = rng.normal(size=(5, 8, 14, 14))
    expected = caffe2.mask_logits(found, rois)
    classes = torch.tensor([0, 4, 2, 2, 1])
    instances = Instances((100, 100), pred_classes=classes)
    (found_masks,) = heads.mask_head(torch.from_numpy(rois), [instances])
    of_classes = expected[np.arange(5), classes.numpy() + 1]
    assert np.allclose(found_masks.pred_masks[:, 0], 1 / (1 + np.exp(-of_classes)), atol=1e-9)


def test_what_detectron2s_renaming_damages_is_whole(converted):
    found, folder = converted
    tensors = {name: torch.from_numpy(blob) for name, blob in found.items()}
    renamed, _ = convert_c2_detectron_names(tensors)
    (damaged,) = [key for key in renamed if "flat.weight" in key or "flat.w" in key]
    assert renamed[damaged].shape == (7, 8)
    state = read_checkpoint(folder / "model_final.pth")["model"]
    whole = state["roi_heads.mask_head.predictor.transfer.2.weight"]
    assert np.array_equal(whole, found["mask_fcn_logits_w_flat_w"])


def test_the_backbone_is_that_of_detectron2s_conversion(converted):
    found, folder = converted
    state = read_checkpoint(folder / "model_final.pth")["model"]
    pairs = {
        "backbone.bottom_up.stem.conv1.weight": "conv1_w",
        "backbone.bottom_up.stem.conv1.norm.bias": "res_conv1_bn_b",
        "backbone.bottom_up.res4.5.conv2.norm.weight": "res4_5_branch2b_bn_s",
        "backbone.bottom_up.res3.0.shortcut.weight": "res3_0_branch1_w",
        "backbone.fpn_lateral4.weight": "fpn_inner_res4_5_sum_lateral_w",
        "backbone.fpn_lateral5.bias": "fpn_inner_res5_2_sum_b",
        "backbone.fpn_output2.weight": "fpn_res2_2_sum_w",
        "proposal_generator.rpn_head.anchor_deltas.weight": "rpn_bbox_pred_fpn2_w",
        "roi_heads.box_head.fc1.weight": "fc6_w",
    }
    for key, name in pairs.items():
        assert np.array_equal(state[key], found[name]), key


def test_settings_are_those_of_the_original_where_detectron2_has_others(converted):
    _, folder = converted
    cfg = read_config(str(folder / "config.yaml"))
    assert cfg.MODEL.PIXEL_MEAN == [102.9801, 115.9465, 122.7717] and cfg.INPUT.FORMAT == "BGR"
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        assert (head.POOLER_TYPE, head.POOLER_SAMPLING_RATIO) == ("ROIAlign", 2)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.MODEL.RESNETS.DEPTH == 50
    assert (cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST) == (1000, 1000)
    assert (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST) == (100, 0.5)


def test_rows_that_were_cut_to_coco_are_put_back(converted, tmp_path):
    found, folder = converted
    path = write(tmp_path, caffe2.cut_to_coco(found, kept=[0, 1, 4]))
    convert_checkpoint(path, tmp_path / "out", classes=tmp_path / "names.txt")
    states = [read_checkpoint(f / "model_final.pth")["model"] for f in (folder, tmp_path / "out")]
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


def test_other_depths_transfer_functions_and_heads_without_mlp_are_read_off_the_file(tmp_path):
    found = caffe2.blobs(num_classes=len(NAMES), depth=101)
    for name in [name for name in found if name.startswith(("mask_mlp", "bbox2mask"))]:
        del found[name]
    found["bbox2mask_mlp_l1_w"] = np.ones((6, 12), np.float32)
    found["bbox2mask_mlp_l2_w"] = np.ones((6, 6), np.float32)
    found["mask_fcn_logits_w_flat_w"] = np.ones((8, 6), np.float32)
    found |= {f"bbox2mask_mlp_l{i}_b": np.ones(6, np.float32) for i in (1, 2)}
    path = write(tmp_path, found, "MRCNN:\n  BBOX2MASK: {USE_LEAKYRELU: false}\n")
    cfg = read_config(str(convert_checkpoint(path, tmp_path / "out", classes=tmp_path / "names.txt")))
    head = cfg.MODEL.ROI_MASK_HEAD
    assert cfg.MODEL.RESNETS.DEPTH == 101 and head.MLP_BRANCH.NUM_LAYERS == 0
    assert (head.TRANSFER.NUM_LAYERS, head.TRANSFER.HIDDEN_DIM, head.TRANSFER.ACTIVATION) == (3, 6, "relu")
    assert head.CLASS_EMBEDDING == "cls"


def test_classes_of_visual_genome_have_their_names_and_colours(tmp_path):
    found = caffe2.blobs(num_classes=3001, features=4)
    del found["mask_mlp_logits_raw_w"], found["mask_mlp_logits_raw_b"]
    Image.new("RGB", (64, 48), (90, 120, 30)).save(tmp_path / "1.png")
    cli.main(["convert", str(write(tmp_path, found)), "--output", str(tmp_path / "out")])
    out = tmp_path / "out"
    from maskx_d2.backends.detectron2.predict import Detectron2Detector

    options = ["MODEL.WEIGHTS", str(out / "model_final.pth"), "INPUT.MIN_SIZE_TEST", 64]
    detector = Detectron2Detector.from_config(read_config(str(out / "config.yaml"), options))
    assert len(detector.style.names) == 3001 and len(detector.style.with_masks) == 80
    assert "person" in {detector.style.names[i] for i in detector.style.with_masks}


def test_the_command_that_it_prints_runs(converted, tmp_path, capsys):
    found, _ = converted
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(
        tmp_path / "1.png"
    )
    path = write(tmp_path, found)
    words = ["convert", str(path), "--output", str(tmp_path / "out")]
    cli.main([*words, "--classes", str(tmp_path / "names.txt")])
    command = capsys.readouterr().out.split()
    command[command.index("--output") + 1] = str(tmp_path / "predictions")
    command[-1] = str(tmp_path / "1.png")
    assert command[0] == "maskx"
    small = ["--opts", "INPUT.MIN_SIZE_TEST", "64", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    cli.main([*command[1:], "--min-score", "0", *small])
    results = json.loads((tmp_path / "predictions" / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in results} <= set(range(1, 6)) and len(results) > 5
    assert all("segmentation" in r for r in results)


def changed(found, **changes):
    """None takes a blob away."""
    blobs = {**found, **changes}
    return {name: blob for name, blob in blobs.items() if blob is not None}


def test_files_of_other_blobs_are_one_error_that_names_them(converted, tmp_path):
    found, _ = converted
    cases = [
        ({"fc7_w": None, "conv1_w": None}, "missing: conv1_w, fc7_w"),
        ({"res3_1_branch2b_w": None}, r"missing: the blob of backbone.bottom_up.res3.1.conv2.weight"),
        ({"strange_w": np.ones(2)}, "unknown: strange_w"),
        ({"fc6_b": np.ones(3)}, r"of another shape: fc6_b is \(3,\), expected \(12,\)"),
        ({"fc7_w": np.ones(3)}, r"fc7_w is \(3,\), expected 2 dimensions"),
        ({"bbox2mask_mlp_l1_w": np.ones(60)}, r"bbox2mask_mlp_l1_w is \(60,\), expected \(1, 60\)"),
        ({"bbox2mask_mlp_l1_w": np.ones((8, 61))}, "embeddings of 61 numbers, expected one of 12, 48, 60"),
        ({"res4_6_branch2a_w": np.ones((2, 2, 1, 1))}, "has 7 blocks in res4, expected one of 6, 23, 36"),
        (
            {"fc6_b": None, "strange_w": np.ones(2), "conv5_mask_b": np.ones(3)},
            "missing: the blob of .*fc1.bias; unknown: strange_w; of another shape: conv5_mask_b",
        ),
    ]
    for changes, message in cases:
        path = write(tmp_path, changed(found, **changes))
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(path, tmp_path / "out", classes=tmp_path / "names.txt")
        assert not (tmp_path / "out").exists()


def test_mistakes_are_one_sentence(converted, tmp_path, capsys):
    found, _ = converted
    path = write(tmp_path, found)
    (tmp_path / "few.txt").write_text("cat\n")
    marker = tmp_path / "ran"
    files = {
        "command.pkl": pickle.dumps({"blobs": {"a": Command(str(marker))}}),
        "text.pkl": b"no pickle",
        "list.pkl": pickle.dumps([1]),
        "nested.pkl": pickle.dumps({"blobs": {"a": [1]}}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    cases = [
        ([tmp_path / "absent.pkl"], "absent.pkl is not a file"),
        ([tmp_path / "command.pkl"], "command.pkl is refused: it holds posix.mkdir"),
        ([tmp_path / "text.pkl"], "text.pkl is refused"),
        ([tmp_path / "list.pkl"], "list.pkl holds a list, expected a dictionary"),
        ([tmp_path / "nested.pkl"], "nested.pkl has no 'blobs'"),
        ([path], "the model has 5 classes, expected --classes with their names"),
        ([path, "--classes", tmp_path / "few.txt"], "few.txt has 1 classes, expected the model's 5"),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["convert", *map(str, words), "--output", str(tmp_path / "out")])
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and message in line, line
    assert not (tmp_path / "out").exists() and not marker.exists()
