"""``maskx cross-validate``: how good masks of classes without masks will be, and which recipe is best."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from maskx_d2.commands.models import usable_device
from maskx_d2.commands.options import (
    add_input,
    add_model_options,
    add_output_folder,
    add_overrides,
    at_least,
)
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.optional_packages import REPORTS, need

_MEASURED_SHARE = 0.25


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "cross-validate",
        help="estimate how good masks of classes without masks will be, and choose a recipe",
        description="Hide the masks of some classes that have them, train mask heads by several recipes on "
        "a frozen detector, and measure them on the hidden classes, in images that they were not trained "
        "on. Writes report.html, results.json and recipe.yaml. An interrupted run continues when the "
        "command is repeated.",
    )
    add_input(parser, "annotations", type=Path, metavar="JSON", help="annotation file in COCO format")
    add_input(parser, "images", type=Path, metavar="IMAGES", help="folder of its images")
    add_model_options(parser)
    add_input(
        parser,
        "--teacher-masks",
        type=Path,
        metavar="JSON",
        help="the same annotations with masks of all objects by a teacher, as fill-masks --teacher MODEL "
        "--also-replace writes: they are measured, and recipes with the teacher are compared too",
    )
    add_output_folder(
        parser,
        *("report.html", "results.json", "recipe.yaml", "config.yaml", "model_final.*"),
        *("cache/*", "outcomes/*"),
        default=Path("output/cross_validation"),
        help="default: output/cross_validation",
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="NAME",
        help="recipes to compare, such as class_agnostic maskx_box_supervised; default: all built-in ones",
    )
    parser.add_argument("--folds", type=at_least(2), default=4, metavar="N", help="default 4")
    parser.add_argument(
        "--num-images",
        type=at_least(4),
        metavar="N",
        help="use only N images, chosen at random, for a first look",
    )
    parser.add_argument(
        "--steps", type=at_least(10), default=500, metavar="N", help="steps of each training, default 500"
    )
    parser.add_argument(
        "--channels",
        type=at_least(8),
        default=64,
        metavar="N",
        help="channels of the mask heads, default 64. Mask R-CNN has 256, which takes ten times as long on "
        "a CPU",
    )
    parser.add_argument(
        "--cache-gigabytes",
        type=at_least(1),
        default=20,
        metavar="N",
        help="largest size of the cache in the output folder; fewer images are used if it would be larger. "
        "Default 20",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="random seed, default 0")
    parser.add_argument("--device", metavar="DEVICE", help="default: a GPU if there is one, else cpu")
    parser.add_argument(
        "--train",
        action="store_true",
        help="also train the best recipe on all masks, and write the model",
    )
    add_overrides(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    need("maskx cross-validate", "scipy", *REPORTS)
    from maskx_d2.backends.load import load_frozen_detector
    from maskx_d2.method import Schedule
    from maskx_d2.recipes.built_in import RECIPES, WITH_TEACHER
    from maskx_d2.recipes.report import write_results
    from maskx_d2.recipes.study import Study

    known = {**RECIPES, **(WITH_TEACHER if args.teacher_masks else {})}
    names = args.recipes or list(known)
    if unknown := [name for name in names if name not in known]:
        needs = ", which needs --teacher-masks" if unknown[0] in WITH_TEACHER else ""
        raise InputError(f"--recipes names {unknown[0]!r}{needs}, expected some of {', '.join(known)}")
    device = usable_device(args.device)
    detector = load_frozen_detector(args.weights, args.config_file, overrides=args.opts).to(device)
    study = Study.prepare(
        detector,
        args.annotations,
        args.images,
        args.output,
        recipes={name: replace(known[name], channels=args.channels) for name in names},
        num_folds=args.folds,
        schedule=Schedule(steps=args.steps),
        num_images=args.num_images,
        measured_share=_MEASURED_SHARE,
        cache_bytes=args.cache_gigabytes * 10**9,
        teacher=args.teacher_masks,
        seed=args.seed,
        device=device,
        progress=_wrap,
    )
    print(study.summary())
    bar = _StepBar(study.steps_left)
    result = study.cross_validate(progress=bar.training)
    bar.close()
    print(write_results(study, result))
    if args.train:
        bar = _StepBar(args.steps)
        trained = study.train_best(result, progress=bar.training)
        bar.close()
        print(f"\n{trained}")


def _wrap(items: Iterable, title: str) -> Iterator:
    from maskx_d2.runtime.progress import progress_bar

    items = list(items)
    with progress_bar(len(items), title, unit="image") as bar:
        for item in items:
            yield item
            bar.update()


class _StepBar:
    """A progress bar over the steps of all trainings that are left, with the title of the current one."""

    def __init__(self, total: int):
        from maskx_d2.runtime.progress import progress_bar

        self._bar = progress_bar(total, "training", unit="step")

    def training(self, steps: Iterable[int], title: str) -> Iterator[int]:
        """Wrap the steps of a training."""
        self._bar.set_postfix_str(title)
        for step in steps:
            yield step
            self._bar.update()

    def close(self) -> None:
        self._bar.close()
