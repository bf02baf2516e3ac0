import json
import os
import resource
import sys

import lightning
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from maskx_d2.backends.torchvision.checkpoint import (
    TRAINING_OPTIONS,
    hyper_parameters,
    load_detector_weights,
)
from maskx_d2.backends.torchvision.model import option_defaults
from maskx_d2.backends.torchvision.ranges import check_ranges
from maskx_d2.backends.torchvision.training import TrainingModule, training_defaults
from maskx_d2.commands import main as cli
from maskx_d2.demo import shapes
from maskx_d2.runtime.checkpoints import read_checkpoint
from maskx_d2.runtime.configs import config_file

from ...mutations import ODD_VALUES
from . import tiny

NAMES = list(shapes.CLASS_NAMES)
OPTIONS = {name: value for name, value in tiny.MODEL.items() if name != "num_classes"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=4, num_test=2, seed=0)


@pytest.fixture(scope="module")
def content():
    """Of a checkpoint of this backend."""
    module = TrainingModule(
        class_names=NAMES,
        category_ids=list(range(1, len(NAMES) + 1)),
        classes_with_masks=list(range(24)),
        **OPTIONS,
    )
    return {
        "hyper_parameters": dict(module.hparams),
        "state_dict": module.state_dict(),
        "optimizer_states": [],
        "pytorch-lightning_version": lightning.__version__,
        "loops": {},
        "epoch": 0,
        "global_step": 0,
    }


def written(folder, content, name="model.ckpt", **hyper_parameters):
    changed = {**content, "hyper_parameters": {**content["hyper_parameters"], **hyper_parameters}}
    torch.save(changed, folder / name)
    return folder / name


def failure(capsys, dataset, folder, subcommand, *options):
    """What a command line ends with."""
    words = [
        *("torchvision", subcommand, f"--data.train_json={dataset.train_json}"),
        *(f"--data.train_images={dataset.train_images}", f"--data.val_json={dataset.test_json}"),
        *(f"--data.val_images={dataset.test_images}", "--data.num_workers=0"),
        f"--data.classes_with_masks={dataset.split_file}",
        f"--trainer.default_root_dir={folder / 'out'}",
        *("--trainer.accelerator=cpu", "--trainer.max_steps=1", *map(str, options)),
    ]
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def attack(marker):
    """Instead of a value, a class that jsonargparse could make, and a command with it."""
    return {"class_path": "subprocess.Popen", "init_args": {"args": [sys.executable, "-c", _touch(marker)]}}


def _touch(marker):
    return f"open({str(marker)!r}, 'w').close()"


def test_options_of_the_training_and_of_the_model_are_all_that_there_are():
    assert {*TRAINING_OPTIONS, *option_defaults()} == set(training_defaults())
    assert not {*TRAINING_OPTIONS} & {*option_defaults()}


# ---- Code ----


@pytest.mark.parametrize("subcommand", ["validate", "fit"])
@pytest.mark.parametrize("name", ["rpn_head", "box_roi_pool", "image_mean", "embedding_table", "anything"])
def test_a_checkpoint_whose_options_are_a_command_is_refused(
    dataset, content, tmp_path, capsys, subcommand, name
):
    path = written(tmp_path, content, **{name: attack(tmp_path / "executed")})
    printed = failure(capsys, dataset, tmp_path, subcommand, "--ckpt_path", path)
    assert f"has the option '{name}' of" in printed.splitlines()[-1]
    with pytest.raises(ValueError, match=rf"has the option '{name}'"):
        TrainingModule.from_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["image_mean", "min_size", "box_supervision", "embedding_table"])
def test_no_option_of_a_config_or_command_line_is_a_command(dataset, tmp_path, capsys, name):
    command = attack(tmp_path / "executed")
    failure(capsys, dataset, tmp_path, "fit", f"--model.{name}={json.dumps(command)}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {name: command}}))
    failure(capsys, dataset, tmp_path, "fit", f"--config={tmp_path / 'config.yaml'}")
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def parser():
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(TrainingModule, "model")
    return parser


@pytest.mark.parametrize("name", option_defaults())
def test_options_have_types_that_nothing_but_values_fit(parser, tmp_path, name):
    options = {**OPTIONS, "class_names": NAMES, "category_ids": [], "classes_with_masks": []}
    options[name] = attack(tmp_path / "executed")
    with pytest.raises(ArgumentError, match=name):
        parser.parse_object({"model": options})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["rpn_head", "box_roi_pool", "mask_head", "num_classes"])
def test_modules_of_torchvision_are_no_options(dataset, tmp_path, capsys, name):
    assert name in failure(capsys, dataset, tmp_path, "fit", f"--model.{name}=null")


def test_a_config_that_grows_as_it_is_read_ends_early(dataset, tmp_path, capsys):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    printed = failure(capsys, dataset, tmp_path, "fit", f"--config={tmp_path / 'laughs.yaml'}")
    assert "laughs.yaml expands to 4e+11 values, expected at most 100,000" in printed


def test_addresses_are_not_followed(dataset, tmp_path, capsys):
    for subcommand in ("fit", "validate"):
        printed = failure(capsys, dataset, tmp_path, subcommand, "--ckpt_path", "https://a.b/c.ckpt")
        assert "checkpoint https://a.b/c.ckpt is a URL, expected a file" in printed
    assert "checkpoint last is not a file" in failure(
        capsys, dataset, tmp_path, "fit", "--ckpt_path", "last"
    )


def test_weights_are_never_downloaded_for_a_checkpoint(content, tmp_path, monkeypatch):
    def no_download(*args, **kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_download)
    path = written(tmp_path, content, weights_backbone="DEFAULT")
    with pytest.raises(ValueError, match="has weights_backbone 'DEFAULT', expected none"):
        TrainingModule.from_checkpoint(path)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("write", ["zip", "pickle"])
def test_refused_pickles_are_named_without_advice_to_load_them_all_the_same(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Malicious()}, "bad.ckpt", _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(ValueError) as refused:
        read_checkpoint("bad.ckpt")
    assert "is refused: it " in str(refused.value)
    for advice in ("weights_only", "add_safe_globals", "trust", "docs"):
        assert advice not in str(refused.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("bytes_", [b"", b"hello", b"PK\x03\x04", bytes(range(256))])
def test_files_that_are_no_checkpoints_are_refused(tmp_path, bytes_):
    (tmp_path / "a.ckpt").write_bytes(bytes_)
    with pytest.raises(ValueError, match=r"a.ckpt is refused: it was not written by PyTorch"):
        read_checkpoint(tmp_path / "a.ckpt")


# ---- Other models ----


def test_checkpoints_of_other_classes_are_refused(dataset, content, tmp_path, capsys):
    turned = [*NAMES[1:], NAMES[0]]
    path = written(tmp_path, content, class_names=turned)
    for subcommand, options in (
        ("validate", ("--ckpt_path", path)),
        ("fit", ("--ckpt_path", path)),
        ("fit", (f"--model.detector={path}",)),
    ):
        words = [f"--model.{n}={v}" for n, v in OPTIONS.items()]
        printed = failure(capsys, dataset, tmp_path, subcommand, *words, *options)
        assert f"knows other classes: number 1 is {turned[0]!r}, expected {NAMES[0]!r}" in printed
    with pytest.raises(ValueError, match="knows 32 classes, expected 3"):
        load_detector_weights(tiny.build(num_classes=33), str(path), class_names=["a", "b", "c"])


def test_a_checkpoint_of_other_sizes_is_one_sentence(dataset, content, tmp_path, capsys):
    state = {**content["state_dict"], "model.roi_heads.box_head.fc6.bias": torch.zeros(5)}
    path = written(tmp_path, {**content, "state_dict": state})
    printed = failure(capsys, dataset, tmp_path, "validate", "--ckpt_path", path)
    assert "has (5,) for model.roi_heads.box_head.fc6.bias, expected (12,)" in printed.splitlines()[-1]
    with pytest.raises(ValueError, match="is of another model, expected one written by this backend"):
        TrainingModule.from_checkpoint(path)


NO_NUMBERS = [
    *[("min_size", value) for value in (0, -5, [], 10**6, float("nan"), "800", [0], True, [800, None])],
    *[
        ("max_size", 0),
        ("image_mean", [0.5]),
        ("image_std", [0, 0, 0]),
        ("image_std", [1, 1, float("inf")]),
    ],
    *[
        ("box_head_dim", 0),
        ("fpn_channels", -1),
        ("mask_head_channels", []),
        ("mask_head_channels", [8] * 65),
    ],
    *[("returned_layers", [0]), ("box_nms_thresh", 1.5), ("rpn_post_nms_top_n_test", 10**9)],
    *[("anchor_sizes", [[0]] * 5), ("anchor_aspect_ratios", [0]), ("anchor_aspect_ratios", [])],
    *[("bbox_reg_weights", [1, 1, 1]), ("box_detections_per_img", -1), ("box_sampling_ratio", 1000)],
]


@pytest.mark.parametrize(("name", "value"), NO_NUMBERS)
def test_numbers_that_no_model_has_are_named(content, tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name} (is|has) .*, expected .*numbers? from"):
        tiny.build(**{name: value})
    path = written(tmp_path, content, **{name: value})
    with pytest.raises(
        ValueError, match=rf"is of another model, .*: {name} (is|has) .*, expected"
    ) as refused:
        TrainingModule.from_checkpoint(path)
    assert len(str(refused.value)) < 600


def test_what_torchvision_and_the_configs_have_is_in_the_ranges():
    check_ranges(option_defaults())
    for name in ("maskx_resnet50_fpn_1x.yaml", "small_resnet18_fpn.yaml"):
        path = config_file(f"torchvision/{name}")
        check_ranges(yaml.safe_load(path.read_text())["model"])


@pytest.mark.parametrize("subcommand", [None, "validate", "fit"])
@pytest.mark.parametrize("name", ["box_head_dim", "fpn_channels", "mlp_hidden_dim"])
def test_a_checkpoint_without_weights_takes_no_memory_for_its_sizes(
    content, dataset, tmp_path, capsys, name, subcommand
):
    path = written(tmp_path, {**content, "state_dict": {}}, **{name: 60_000})
    assert path.stat().st_size < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = "is of another model, expected one written by this backend: it has nothing for model."
    if subcommand is None:
        with pytest.raises(ValueError, match=message):
            TrainingModule.from_checkpoint(path)
    else:
        words = [f"--model.{n}={v}" for n, v in OPTIONS.items()]
        assert message in failure(capsys, dataset, tmp_path, subcommand, *words, "--ckpt_path", path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize("subcommand", ["validate", "fit"])
def test_weights_that_are_not_finite_are_refused_by_all_that_use_them(
    content, dataset, tmp_path, capsys, subcommand
):
    name = "model.roi_heads.box_predictor.bbox_pred.bias"
    value = content["state_dict"][name].clone()
    value[3] = float("nan")
    path = written(tmp_path, {**content, "state_dict": {**content["state_dict"], name: value}})
    message = f"{name} has numbers that are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        TrainingModule.from_checkpoint(path)
    words = [f"--model.{n}={v}" for n, v in OPTIONS.items()]
    assert message in failure(capsys, dataset, tmp_path, subcommand, *words, "--ckpt_path", path)
    with pytest.raises(ValueError, match=message.removeprefix("model.")):
        load_detector_weights(tiny.build(num_classes=33), str(path))


def test_a_parameter_that_no_model_has_is_named(content, tmp_path):
    path = written(
        tmp_path, {**content, "state_dict": {**content["state_dict"], "x" * 999: torch.zeros(1)}}
    )
    with pytest.raises(ValueError, match="it has 1 extra parameters, 'xxx") as refused:
        TrainingModule.from_checkpoint(path)
    assert len(str(refused.value)) < 600


def test_an_option_that_the_checkpoint_overrules_is_named(dataset, content, tmp_path, capsys):
    path = written(tmp_path, content, learning_rate=0.5, box_score_thresh=0.3)
    for subcommand, option in (("fit", "learning_rate=0.1"), ("validate", "box_score_thresh=0.01")):
        printed = failure(capsys, dataset, tmp_path, subcommand, "--ckpt_path", path, f"--model.{option}")
        name, value = option.split("=")
        assert f"--model.{name} is {value}, but the checkpoint was made with" in printed


def test_what_earlier_versions_have_written_is_read(content, tmp_path):
    path = written(tmp_path, content, rpn_head=None, box_roi_pool=None, mask_head=None, _instantiator="x")
    module = TrainingModule.from_checkpoint(path)
    state = module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in content["state_dict"].items())


@given(st.sampled_from(["hyper_parameters", "hyper_parameters.class_names", "state_dict"]), st.data())
@pytest.mark.fuzz
def test_changed_checkpoints_work_or_say_why_not(content, tmp_path_factory, part, data):
    changed = {**content, "hyper_parameters": dict(content["hyper_parameters"])}
    value = data.draw(st.sampled_from([v for v in ODD_VALUES if not isinstance(v, str) or len(v) < 99]))
    if part == "hyper_parameters":
        name = data.draw(st.sampled_from(sorted(changed[part])))
        changed[part][name] = value
    elif part == "state_dict":
        name = data.draw(st.sampled_from(sorted(changed[part])))
        changed[part] = {**changed[part], name: value}
    else:
        changed["hyper_parameters"]["class_names"] = value
    path = tmp_path_factory.mktemp("fuzz") / "a.ckpt"
    try:
        hyper_parameters(path, changed)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000
