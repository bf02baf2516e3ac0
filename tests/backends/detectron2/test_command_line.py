import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from detectron2.data import DatasetCatalog

from maskx_d2.backends.detectron2 import build_train_loader, command_line
from maskx_d2.backends.detectron2.command_line import main, train_or_evaluate
from maskx_d2.backends.detectron2.trainer import scale_to
from maskx_d2.demo import shapes

from ...runtime.test_lock import held
from . import tiny


@pytest.fixture(autouse=True)
def forget_datasets():
    yield
    tiny.forget("shapes_train", "shapes_test", "shapes_train_all_masks")


def arguments(folder, cfg, **options):
    (folder / "config.yaml").write_text(cfg.dump())
    default = {"config_file": str(folder / "config.yaml"), "opts": [], "eval_only": False, "resume": False}
    return Namespace(**{**default, **options})


def test_a_folder_has_one_run(shapes_dataset, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model_0000009.pth", "last_checkpoint", "metrics.json"):
        (out / name).write_text("kept")
    cfg = tiny.data_config(shapes_dataset, out, "MODEL.WEIGHTS", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"OUTPUT_DIR .*out holds model_0000009.pth of an earlier run"):
        train_or_evaluate(arguments(tmp_path, cfg))
    assert {path.read_text() for path in out.iterdir()} == {"kept"}
    with pytest.raises(FileNotFoundError, match=r"absent.pth is not a file"):
        train_or_evaluate(arguments(tmp_path, cfg, overwrite=True))
    assert not list(out.glob("*.pth")) and not (out / "last_checkpoint").exists()
    assert (out / "metrics.json").read_text() == ""


@pytest.mark.parametrize("option", ["resume", "overwrite", "eval_only", None])
def test_a_folder_that_another_run_writes_to_is_refused(shapes_dataset, tmp_path, option):
    out = tmp_path / "out"
    cfg = tiny.data_config(shapes_dataset, out)
    with held(out) as process:
        before = sorted(out.iterdir())
        message = rf"out is being written to by process {process.pid} on "
        with pytest.raises(ValueError, match=message):
            train_or_evaluate(arguments(tmp_path, cfg, **({option: True} if option else {})))
        assert sorted(out.iterdir()) == before


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "name", ["log.txt", "config.yaml", "metrics.json", "last_checkpoint", "model_final.pth", "inference"]
)
def test_links_and_pipes_in_the_folder_of_a_run_are_refused(shapes_dataset, tmp_path, kind, name):
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.write_text("kept")
    os.mkfifo(out / name) if kind == "pipe" else (out / name).symlink_to(kept)
    cfg = tiny.data_config(shapes_dataset, out)
    evaluated = [{"eval_only": True}] if name in ("log.txt", "inference") else []
    for options in ({"resume": True}, {"overwrite": True}, *evaluated):
        with pytest.raises(ValueError, match=rf"out/{name} is a (link|device or a pipe)"):
            train_or_evaluate(arguments(tmp_path, cfg, **options))
    assert kept.read_text() == "kept" and [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.yaml", "model_final.pth", "metrics.json"])
def test_a_new_run_does_not_replace_what_it_begins_with(shapes_dataset, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("kept")
    cfg = tiny.data_config(shapes_dataset, out)
    cfg.defrost()
    if name == "config.yaml":
        args = arguments(out, cfg, overwrite=True)
    else:
        cfg.MODEL.WEIGHTS = str(out / name)
        args = arguments(tmp_path, cfg, overwrite=True)
    before = (out / name).read_text()
    with pytest.raises(ValueError, match=rf"the output would overwrite its input .*{name}:"):
        train_or_evaluate(args)
    assert (out / name).read_text() == before


def test_the_config_of_a_run_stays_that_of_its_training(shapes_dataset, tmp_path):
    out = tmp_path / "out"
    cfg = tiny.data_config(shapes_dataset, out)
    args = arguments(tmp_path, cfg, eval_only=True, opts=["SEED", 7])
    train_or_evaluate(args)
    assert "SEED: 7" in (out / "config.yaml").read_text()  # there was none
    (out / "config.yaml").write_text(f"# own\n{cfg.dump()}")
    train_or_evaluate(args)
    args.config_file = str(out / "config.yaml")
    train_or_evaluate(args)
    assert (out / "config.yaml").read_text() == f"# own\n{cfg.dump()}"


def test_an_option_that_the_checkpoint_overrules_is_named(shapes_dataset, tmp_path):
    out = tmp_path / "out"
    cfg = tiny.data_config(shapes_dataset, out, "SOLVER.BASE_LR", 0.02)
    out.mkdir()
    (out / "config.yaml").write_text(cfg.dump())
    (out / "last_checkpoint").write_text("model_0000009.pth")
    changed = arguments(tmp_path, cfg, resume=True, opts=["SOLVER.BASE_LR", 0.5])
    with pytest.raises(ValueError, match=r"SOLVER.BASE_LR is 0.5, but the run that --resume .* keeps 0.02"):
        train_or_evaluate(changed)


@pytest.mark.parametrize(
    "text", ["SOLVER: !!python/object:os.system {}", "? [SOLVER, a]\n: 1", "- SOLVER", "SOLVER: [", "\x00"]
)
def test_a_broken_config_of_the_run_to_go_on_with_is_named(shapes_dataset, tmp_path, text):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.yaml").write_text(text)
    (out / "last_checkpoint").write_text("model_0000009.pth")
    cfg = tiny.data_config(shapes_dataset, out)
    with pytest.raises(ValueError, match=r"config .*out/config.yaml"):
        train_or_evaluate(arguments(tmp_path, cfg, resume=True))


def test_what_evaluation_needs_is_looked_for_before_training(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out")
    first, second, *_ = (record["file_name"] for record in DatasetCatalog.get("shapes_test"))
    moved = [(path, f"{path}.moved") for path in (first, second)]
    for path, away in moved:
        shapes_dataset.test_images.joinpath(path).rename(away)
    try:
        with pytest.raises(FileNotFoundError, match=rf"image {first} of .* does not exist \(1 more\)"):
            train_or_evaluate(arguments(tmp_path, cfg))
    finally:
        for path, away in moved:
            shapes_dataset.test_images.joinpath(away).rename(path)
    assert not (tmp_path / "out").exists()


def test_results_that_are_not_as_expected_are_named_with_their_log(shapes_dataset, tmp_path, capsys):
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path / "out",
        *("MODEL.WEIGHTS", str(tmp_path / "a.pth"), "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
        *("TEST.EXPECTED_RESULTS", [["bbox", "AP", 99.0, 0.1]]),
    )
    torch.save({"model": tiny.build(cfg).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"differ from TEST.EXPECTED_RESULTS: .*out/log.txt shows both"):
        train_or_evaluate(arguments(tmp_path, cfg, eval_only=True))
    assert "Result verification failed!" in (tmp_path / "out" / "log.txt").read_text()
    assert "verification" not in capsys.readouterr().out


def test_a_checkpoint_of_other_classes_is_not_evaluated(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out", "MODEL.WEIGHTS", str(tmp_path / "a.pth"))
    torch.save({"model": {}, "classes": {"names": ["x"] * 32}}, tmp_path / "a.pth")
    message = r"DATASETS.TEST 'shapes_test' has other classes than the model: it lacks 'x' and has "
    with pytest.raises(ValueError, match=message):
        train_or_evaluate(arguments(tmp_path, cfg, eval_only=True))


def test_a_dataset_without_a_mask_in_a_is_no_training_data_for_masks(shapes_dataset, tmp_path):
    names = tmp_path / "split.txt"
    names.write_text((shapes_dataset.split_file).read_text())
    cfg = tiny.data_config(shapes_dataset, tmp_path, "DATASETS.CLASSES_WITH_MASKS", str(names))
    build_train_loader(cfg)
    names.write_text("\n".join(shapes.BOXES_ONLY))
    with pytest.raises(ValueError, match=r"no annotation of shapes_train has a mask that DATASETS.CLASSES"):
        build_train_loader(cfg)


def test_users_mistakes_end_with_one_sentence(tmp_path, capsys):
    for config, message in (
        (str(tmp_path / "absent.yaml"), "absent.yaml' is not a file"),
        (str(tmp_path / "deep.yaml"), "deep.yaml is nested too deep"),
        (str(tmp_path / "laughs.yaml"), "laughs.yaml expands to 4e+09 values, expected at most 100,000"),
    ):
        (tmp_path / "deep.yaml").write_text("[" * 5_000 + "]" * 5_000)
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
        (tmp_path / "laughs.yaml").write_text("\n".join(lines))
        with pytest.raises(SystemExit) as stopped:
            main(["--config-file", config])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("train_net.py: ") and message in line


def test_what_is_not_foreseen_is_one_sentence_too(tmp_path):
    script = """
from maskx_d2.backends.detectron2 import command_line
command_line.read_config = lambda *args: {}[3]
command_line.main(["--config-file", "a.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1] == (
        "train_net.py: KeyError: 3 (--traceback as the first option shows where)"
    )


LENGTH = (720_000, (480_000, 640_000))


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ([], (2, 0.0025, *LENGTH)),
        (["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025"], (2, 0.0025, *LENGTH)),
        (["SOLVER.IMS_PER_BATCH", "3"], (3, 0.0025, *LENGTH)),
        (["SOLVER.BASE_LR", "0.01"], (2, 0.01, *LENGTH)),
        (["SOLVER.MAX_ITER", "100", "SOLVER.STEPS", "(60,)"], (2, 0.0025, 100, (60,))),
        (["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.MAX_ITER", "9"], (16, 0.02, 9, (60_000, 80_000))),
    ],
)
def test_numbers_of_the_command_line_are_for_the_gpus_that_there_are(opts, expected):
    from maskx_d2.runtime.configs import config_file

    cfg = command_line._config_of_run(str(config_file("maskx_R_50_FPN_1x.yaml")), ["SEED", "3", *opts])
    solver = scale_to(cfg, 1).SOLVER  # as the trainer does
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.STEPS) == expected
    assert cfg.SEED == 3 and cfg.is_frozen()


def test_a_run_of_two_images_a_step_on_one_device_trains(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out").clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH = 8, 16
    opts = ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.0025"]
    opts += ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"]
    train_or_evaluate(arguments(tmp_path, cfg, opts=opts))
    written = (tmp_path / "out" / "config.yaml").read_text()
    assert "IMS_PER_BATCH: 2\n" in written and "BASE_LR: 0.0025\n" in written
    assert (tmp_path / "out" / "model_final.pth").is_file()
