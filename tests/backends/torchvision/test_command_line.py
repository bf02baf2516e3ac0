import pytest
import yaml

from maskx_d2.commands import main as cli
from maskx_d2.runtime.configs import config_file


def printed_config(capsys, *options):
    """The whole configuration that a command line expands to."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["torchvision", "fit", *options, "--print_config"])
    assert stopped.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_the_coco_config_has_the_papers_model_and_schedule(capsys):
    config = printed_config(capsys, "--config", str(config_file("torchvision/maskx_resnet50_fpn_1x.yaml")))
    model, data, trainer = config["model"], config["data"], config["trainer"]
    assert (model["depth"], model["predictor"], model["class_embedding"]) == (50, "transfer", "cls+box")
    assert (model["transfer_layers"], model["transfer_activation"]) == (2, "leaky_relu")
    assert (model["mlp_layers"], model["mlp_reduced_channels"], model["stop_grad"]) == (1, 0, True)
    assert (model["learning_rate"], model["weight_decay"], model["optimizer"]) == (0.02, 0.0001, "SGD")
    assert (model["milestones"], trainer["max_steps"]) == ([60000, 80000], 90000)
    assert (model["min_size"], model["max_size"]) == (800, 1333)
    assert (model["box_batch_size_per_image"], model["box_positive_fraction"]) == (512, 0.25)
    assert (data["classes_with_masks"], data["batch_size"]) == ("voc", 2)


def test_options_of_torchvisions_model_are_options(capsys):
    options = ["--model.box_nms_thresh=0.4", "--model.anchor_sizes=[[8],[16],[32],[64],[128]]"]
    config = printed_config(capsys, "--data.train_json=a", "--data.train_images=b", *options)
    assert config["model"]["box_nms_thresh"] == 0.4
    assert config["model"]["anchor_sizes"][-1] == [128]
    assert config["trainer"]["default_root_dir"] == "output/torchvision"


def test_help_is_lightnings(capsys):
    for arguments, expected in (([], "validate"), (["fit"], "--model.predictor")):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["torchvision", *arguments, "--help"])
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out
