"""The ``maskx`` command."""

import argparse
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from maskx_d2.data.images import MAX_MEGAPIXELS, PILLOWS_MEGAPIXELS
from maskx_d2.data.printable import printable
from maskx_d2.runtime.exit_status import FOUND_ERRORS, one_sentence
from maskx_d2.runtime.optional_packages import has_detectron2, need_detectron2, need_gradio, need_ray

BACKENDS = ("detectron2", "torchvision")
_DEMO_FOLDER = Path("output/demo")
_NUM_EXAMPLES = 6


def main(arguments: list[str] | None = None) -> None:
    """
    Run a subcommand. Exit status 1 is that of broken data, 2 of a user's mistake, 3 of anything that was
    not foreseen, and 128 + its number of a signal; see :mod:`maskx_d2.runtime.exit_status`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    show_traceback = arguments[:1] == ["--traceback"]
    if arguments[show_traceback:][:1] == ["torchvision"]:
        # The rest belongs to Lightning's command line, its --help too.
        args = argparse.Namespace(run=_torchvision, arguments=arguments[show_traceback + 1 :])
    else:
        args = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # there is a lower limit
    with one_sentence("maskx", show_traceback=show_traceback), _writing(args):
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maskx", description="Mask^X R-CNN: masks for many classes from masks of few."
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train and compare on a generated dataset, in minutes on a CPU",
        description="Generate a dataset with more classes than masks, train on one detector a "
        "class-agnostic mask head, Mask^X, Mask^X with box supervision and an oracle that has all masks, "
        "and compare them on classes without masks.",
    )
    _output_folder(demo, "*/*", default=_DEMO_FOLDER)
    demo.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of data and training")
    demo.add_argument(
        "--seeds",
        type=_at_least(1),
        default=1,
        metavar="N",
        help="repeat it with N seeds, from --seed on, and print mean and standard deviation",
    )
    demo.add_argument("--quick", action="store_true", help="less data and training, in 2 to 3 minutes")
    demo.add_argument(
        "--paper",
        action="store_true",
        help="train Mask^X as the paper has it, too: cls+box embeddings, no dropout",
    )
    demo.add_argument(
        "--backend",
        choices=BACKENDS,
        help="what to train with; Detectron2 where it is installed, else torchvision",
    )
    demo.set_defaults(run=_demo)

    predict = commands.add_parser(
        "predict",
        help="masks, names and scores on images and videos",
        description="Detect on images and videos, draw what is found, and write it as COCO results. Orange "
        "classes were trained with masks, blue ones with boxes only.",
    )
    _add_model_arguments(predict)
    _input(predict, "images", nargs="+", metavar="IMAGE", help="image, video or folder of such")
    _output_folder(predict, "log.txt*", "*.json*", "*.png", "*.mp4", "detections/*", type=str)
    _add_ray(
        predict,
        "Draws nothing and takes no videos; writes Parquet files. IMAGE and DIR may be addresses as "
        "s3://bucket/folder",
    )
    predict.add_argument("--recursive", action="store_true", help="look in folders below folders, too")
    predict.add_argument("--resume", action="store_true", help="go on with what the same command has begun")
    _add_batch_size(predict, default=1)
    _add_max_megapixels(predict)
    predict.add_argument(
        "--every", type=_at_least(1), default=1, metavar="N", help="of N frames of a video take one"
    )
    predict.add_argument("--min-score", type=_from_0_to_1, default=0.5, metavar="P", help="default 0.5")
    predict.add_argument(
        "--top",
        type=_at_least(1),
        metavar="N",
        help="draw the N best of an image; all, or 30 of a model of more than 100 classes, if not given",
    )
    predict.add_argument(
        "--merge",
        type=_from_0_to_1,
        metavar="IOU",
        help="draw only the best of detections whose boxes overlap by more than this, and say how many "
        "others there are; 1 draws all. 0.8 for a model of more than 100 classes, else 1, if not given",
    )
    _add_overrides(predict)
    predict.set_defaults(run=lambda args: _predict(args) if args.ray is None else _predict_on_ray(args))

    app = commands.add_parser(
        "app",
        help="a page in the browser: drop an image on it and see masks",
        description="A page on this machine that shows what a model finds in an image, or two models side "
        f"by side. Without --weights it is the best model of the demo in {_DEMO_FOLDER}, with images of it "
        "to choose from.",
    )
    _add_model_arguments(app, required=False)
    _input(app, "--compare-weights", metavar="FILE", help="checkpoint of a second model")
    _input(app, "--compare-config-file", metavar="FILE", help="its config, if it needs one")
    _input(app, "--images", type=Path, metavar="DIR", help="folder of images to choose from")
    app.add_argument(
        "--address",
        default="127.0.0.1",
        help="whom to answer: this machine alone (the default), or with 0.0.0.0 all that can reach it",
    )
    app.add_argument(
        "--port", type=_at_least(1), metavar="N", help="the first free one from 7860 on, if not given"
    )
    app.add_argument(
        "--max-upload", type=_at_least(1), default=30, metavar="MIB", help="of an image file, default 30"
    )
    _add_max_megapixels(app)
    app.set_defaults(run=_app)

    fill = commands.add_parser(
        "fill-masks",
        help="masks for annotations that have a box only",
        description="Predict a mask for every annotation that has none, in its box and for its class. All "
        "else in the file stays as it is. Killed and started again it goes on where it was.",
    )
    _input(fill, "annotations", type=Path, metavar="JSON", help="in COCO's format")
    _input(fill, "images", metavar="IMAGES", help="the folder of its images")
    _add_model_arguments(fill)
    _add_ray(fill, "IMAGES may be an address as s3://bucket/folder")
    _output_file(fill, metavar="JSON")
    fill.add_argument("--format", choices=("rle", "polygon"), default="rle", help="default rle")
    fill.add_argument(
        "--min-mask-score",
        type=_from_0_to_1,
        default=0.0,
        metavar="P",
        help="leave annotations whose mask has a lower score as they are; default 0",
    )
    fill.add_argument(
        "--also-replace",
        action="store_true",
        help="predict for annotations that have masks too, and print how well both agree",
    )
    _add_batch_size(fill, default=4)
    _add_max_megapixels(fill)
    _add_overrides(fill)
    fill.set_defaults(run=_fill_masks)

    convert = commands.add_parser(
        "convert",
        help="the models of the paper's authors",
        description="Turn a checkpoint of seg_every_thing, the paper's code on Caffe2, into "
        "model_final.pth and config.yaml for maskx predict. All sizes are those of the file.",
    )
    _input(convert, "checkpoint", type=Path, metavar="FILE", help="the .pkl")
    _output_folder(convert, "config.yaml", "model_final.pth", "classes.json")
    _input(
        convert,
        "--classes",
        type=Path,
        metavar="FILE",
        help="class list of a model that has neither Visual Genome's 3,001 classes nor COCO's 80",
    )
    _input(
        convert,
        "--classes-with-masks",
        metavar="SPLIT",
        help="the split that the model was trained with: voc, nonvoc, ..., or a file. If not given, COCO's "
        "classes for a model that has these, and all for one with --classes",
    )
    convert.set_defaults(run=_convert)

    prepare = commands.add_parser("prepare", help="bring a dataset into COCO's format")
    datasets = prepare.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    vg3k = datasets.add_parser(
        "vg3k",
        help="Visual Genome",
        description="Write vg3k_train.json, vg3k_val.json and vg3k_test.json: the boxes of Visual Genome's "
        "most frequent classes, in one list of classes with COCO's 80.",
    )
    genome = {"required": True, "type": Path, "metavar": "FILE"}
    _input(vg3k, "--image-data", help="image_data.json", **genome)
    _input(vg3k, "--objects", help="objects.json, v1.4", **genome)
    _input(vg3k, "--coco-val", help="COCO's instances_val2017.json", **genome)
    _output_folder(vg3k, "vg3k_train.json", "vg3k_val.json", "vg3k_test.json")
    vg3k.add_argument("--num-classes", type=_at_least(1), default=3000, metavar="N", help="default 3000")
    vg3k.set_defaults(run=_prepare_vg3k)

    shapes = datasets.add_parser(
        "shapes",
        help="nothing to bring: the demo's images, drawn, to try things with",
        description="Draw the demo's dataset: outlined shapes of 32 classes, in training with boxes of all "
        "and masks of 24, which classes_with_masks.txt names.",
    )
    _output_folder(shapes, "*/*", help="a new folder")
    shapes.add_argument("--train", type=_at_least(1), default=300, metavar="N", help="images, default 300")
    shapes.add_argument("--test", type=_at_least(1), default=60, metavar="N", help="images, default 60")
    shapes.add_argument("--seed", type=_at_least(0), default=0, metavar="N")
    shapes.set_defaults(run=_prepare_shapes)

    compare = commands.add_parser(
        "compare",
        help="a report on several runs",
        description="Compare runs of either backend that were evaluated on the same data and split: "
        "comparison.html and comparison.md, with AP on A, B and all, class by class, training curves and "
        "the masks of each run on the same images.",
    )
    _input(compare, "runs", nargs="*", type=Path, metavar="RUN_DIR", help="output folder of a run")
    _input(
        compare,
        "--group",
        action="append",
        default=[],
        type=_group,
        metavar="NAME=RUN_DIR,RUN_DIR,...",
        help="instead of single runs, those of several seeds of one kind: mean and standard deviation, and "
        "the differences of the first to the first, the second to the second, ...; give one for each kind",
    )
    _input(
        compare,
        "--baseline",
        metavar="RUN_DIR",
        help="the run, or with --group the NAME, that others are compared with; the first, if not given",
    )
    _output_folder(
        compare,
        *("comparison.md", "comparison.html"),
        default=Path("output/comparison"),
        help="of the page, default output/comparison",
    )
    _input(
        compare,
        "--images-root",
        type=Path,
        metavar="DIR",
        help="where the images are, if not where they were evaluated",
    )
    compare.add_argument("--images", type=_at_least(0), default=8, metavar="N", help="to show, default 8")
    compare.add_argument("--min-score", type=_from_0_to_1, default=0.5, metavar="P", help="default 0.5")
    _add_max_megapixels(compare)
    compare.set_defaults(run=_compare)

    check = commands.add_parser(
        "check-dataset",
        help="all that is wrong with a dataset, before a long run",
        description="Report everything in a dataset in COCO's format that training or evaluation would "
        "stumble over (errors, exit status 1) or deal with (remarks).",
    )
    _input(check, "annotations", type=Path, metavar="JSON")
    _input(check, "images", type=Path, metavar="IMAGES", help="the folder of its images")
    _add_max_megapixels(check)
    check.set_defaults(run=_check_dataset)

    splits = commands.add_parser(
        "splits",
        help="which classes a split gives masks to",
        description="Print a class split. With an annotation file, of its classes, and with its instances.",
    )
    _input(splits, "split", metavar="NAME", help="voc, nonvoc, coco, E1_A20B60 ..., or a file")
    _input(splits, "annotations", nargs="?", type=Path, metavar="JSON", help="in COCO's format")
    splits.add_argument("--json", action="store_true", help="print it as JSON")
    splits.set_defaults(run=_splits)

    embeddings = commands.add_parser(
        "embeddings",
        help="write a table of fixed class embeddings",
        description="Write the .npy table of MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE.",
    )
    kinds = embeddings.add_subparsers(dest="kind", required=True, metavar="KIND")
    glove = kinds.add_parser("glove", help="word vectors of the class names")
    _input(glove, "--vectors", required=True, type=Path, metavar="FILE", help="GloVe's text file")
    random = kinds.add_parser("random", help="normally distributed random rows of length 1 or so")
    random.add_argument("--seed", type=int, default=0, metavar="N")
    random.add_argument("--dim", type=_at_least(1), default=300, metavar="D")
    for kind in (glove, random):
        _input(
            kind,
            "--classes",
            type=Path,
            metavar="FILE",
            help="annotations in COCO's format, or a text file with one class name a line in the order of "
            "the classes; COCO's 80 classes if it is not given",
        )
        _output_file(kind, metavar="FILE", help="the .npy file")
        kind.set_defaults(run=_embeddings)

    commands.add_parser(
        "torchvision",
        help="train and evaluate without Detectron2, by torchvision and Lightning",
        add_help=False,
    )
    return parser


def _input(parser: argparse.ArgumentParser, *names: str, **options) -> None:
    """An option that names what is read: no output may replace it."""
    action = parser.add_argument(*names, **options)
    parser.set_defaults(inputs=[*(parser.get_default("inputs") or ()), action.dest])


def _output_file(parser: argparse.ArgumentParser, **options) -> None:
    """``--output``, a file: no other may be written."""
    parser.add_argument("--output", required=True, type=Path, **options)
    parser.set_defaults(written=())


def _output_folder(parser: argparse.ArgumentParser, *names: str, **options) -> None:
    """
    ``--output``, a folder.

    Args:
        parser: of the command.
        names: of all files that it writes there, see :class:`maskx_d2.runtime.outputs.OutputFolder`.
        options: of ``add_argument``.
    """
    options = {"type": Path, "metavar": "DIR", "required": "default" not in options, **options}
    parser.add_argument("--output", **options)
    parser.set_defaults(written=names)


def _writing(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Holds the output of a command; see :func:`maskx_d2.runtime.outputs.writing`."""
    from maskx_d2.data.addresses import is_address
    from maskx_d2.runtime.outputs import OutputFile, OutputFolder, named_files, writing

    if not hasattr(args, "written") or is_address(args.output):
        return nullcontext()
    inputs = [getattr(args, dest) for dest in args.inputs] if hasattr(args, "inputs") else []
    path = Path(args.output)
    output = OutputFolder(path, args.written) if args.written else OutputFile(path)
    return writing([output], named_files(inputs))


def _add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    _input(
        parser,
        "--config-file",
        metavar="FILE",
        help="config of the model; a .ckpt of the torchvision backend needs none",
    )
    _input(parser, "--weights", required=required, metavar="FILE", help="checkpoint of the model")


def _add_batch_size(parser: argparse.ArgumentParser, *, default: int) -> None:
    parser.add_argument(
        "--batch-size",
        type=_at_least(1),
        default=default,
        metavar="N",
        help=f"images that the model gets at one time, default {default}",
    )


def _add_max_megapixels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-megapixels",
        type=_megapixels,
        default=MAX_MEGAPIXELS,
        metavar="N",
        help=f"largest image to read, default {MAX_MEGAPIXELS:g}, at most {PILLOWS_MEGAPIXELS:g}",
    )


def _add_ray(parser: argparse.ArgumentParser, more: str) -> None:
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="run on the Ray cluster at the address (auto, or HOST:PORT), or without one on all cores or "
        f"GPUs of this machine. {more}",
    )


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    """Last, for they take all the words that are left."""
    _input(
        parser,
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config keys to override",
    )


def _at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number that may not be smaller."""

    def parse(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    parse.__name__ = "whole number"
    return parse


def _group(text: str) -> tuple[str, list[Path]]:
    """The type of ``NAME=RUN_DIR,RUN_DIR,...``."""
    name, _, folders = text.partition("=")
    if not name or not all(folders.split(",")):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=RUN_DIR,RUN_DIR,...")
    return name, [Path(folder) for folder in folders.split(",")]


def _from_0_to_1(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def _megapixels(text: str) -> float:
    if not 0 < float(text) <= PILLOWS_MEGAPIXELS:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {PILLOWS_MEGAPIXELS:g}")
    return float(text)


def _demo(args: argparse.Namespace) -> None:
    from maskx_d2 import demo

    if args.backend == "detectron2":
        need_detectron2("maskx demo --backend detectron2")
    backend = args.backend or ("detectron2" if has_detectron2() else "torchvision")
    print(f"Training with {backend}.", file=sys.stderr)
    demo.run_demo(
        args.output,
        backend=import_module(f"maskx_d2.backends.{backend}.demo"),
        seeds=range(args.seed, args.seed + args.seeds),
        schedule=demo.QUICK if args.quick else demo.FULL,
        paper=args.paper,
    )


def _app(args: argparse.Namespace) -> None:
    need_gradio("maskx app")
    from maskx_d2.detector import load_detector
    from maskx_d2.predict import find_images

    files = {
        (args.weights, args.config_file): "--config-file",
        (args.compare_weights, args.compare_config_file): "--compare-config-file",
    }
    for (weights, config_file), option in files.items():
        if weights is None and config_file is not None:
            raise ValueError(f"{option} is given without the weights of its model")
    images = args.images
    models = [(weights, config_file) for weights, config_file in files if weights is not None]
    if args.weights is None:
        models = [_demo_model(), *models]
        images = images or _demo_images(Path(models[0][0]))
    titles = _titles([weights for weights, _ in models])
    detectors = {t: load_detector(*model) for t, model in zip(titles, models, strict=True)}
    examples = [] if images is None else find_images([images])[:_NUM_EXAMPLES]
    with tempfile.TemporaryDirectory(prefix="maskx_d2_") as folder:
        # Uploads go with the page. Gradio makes it as it is imported; its own may be another user's.
        os.environ["GRADIO_TEMP_DIR"] = folder
        from maskx_d2.app import serve

        serve(
            detectors,
            folder=Path(folder),
            examples=examples,
            address=args.address,
            port=args.port,
            max_upload=args.max_upload,
            max_megapixels=args.max_megapixels,
        )


def _demo_model() -> tuple[str, str | None]:
    """Weights and config of the best one that a demo has left."""
    from maskx_d2.demo import best_model

    folder = best_model(_DEMO_FOLDER)
    if folder is None:
        raise ValueError(
            f"--weights is not given, and {_DEMO_FOLDER} has no demo: run maskx demo, whose best model is "
            "shown then"
        )
    weights = folder / "model_final.ckpt"
    if weights.is_file():
        return str(weights), None
    return str(folder / "model_final.pth"), str(folder / "config.yaml")


def _demo_images(weights: Path) -> Path:
    return weights.parents[1] / "dataset" / "test"


def _titles(paths: list[str]) -> list[str]:
    """Of models: their folders' names, or, where two have one name, their paths."""
    from maskx_d2.data.files import real_path

    names = [real_path(path).parent.name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _predict(args: argparse.Namespace) -> None:
    from maskx_d2.evaluation.run_files import log_file
    from maskx_d2.predict import IMAGE_SUFFIXES, find_images, predict
    from maskx_d2.runtime.logs import log_to_file
    from maskx_d2.video import VIDEO_SUFFIXES, predict_video

    _refuse_addresses(*args.images, args.output)
    output = Path(args.output)
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    found = find_images([Path(path) for path in args.images], recursive=args.recursive, suffixes=suffixes)
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in found if path.suffix.lower() not in VIDEO_SUFFIXES]
    for name, count in Counter(video.stem for video in videos).items():
        if count > 1:
            raise ValueError(f"{count} videos are named {name!r}, expected one: give them an --output each")
    detector = _detector(args)
    options = {
        "model": _identity(args),
        "min_score": args.min_score,
        "top": args.top,
        "merge_iou": args.merge,
        "batch_size": args.batch_size,
        "resume": args.resume,
        "max_megapixels": args.max_megapixels,
    }
    bar = partial(tqdm, file=sys.stderr)
    said: list[str] = []
    failed: list[str] = []
    unread: list[str] = []
    with log_to_file(log_file(output)):
        for video in videos:
            try:
                title = printable(video.name)
                lines = predict_video(
                    detector,
                    video,
                    output,
                    every=args.every,
                    progress=partial(bar, unit="frame", desc=title),
                    **options,
                )
                said.append(f"{lines.with_suffix('.mp4')}, what was found in its frames in {lines}")
            except ValueError as error:
                if len(found) == 1:
                    raise
                failed.append(str(error))
        if images:
            results = predict(
                detector,
                images,
                output,
                progress=partial(bar, unit="image"),
                passed_over=lambda path, error: unread.append(str(error)),
                **options,
            )
    if images:
        num_done = len(images) - len(unread)
        said.append(f"{num_done} pictures in {output}, results in COCO format in {results}")
    print("\n".join(said))
    _exit_if_passed_over([*failed, *unread])


def _predict_on_ray(args: argparse.Namespace) -> None:
    need_ray("maskx predict --ray")
    from maskx_d2.data.addresses import file_in
    from maskx_d2.on_ray import DETECTIONS_FOLDER, find_images, predict_on_ray
    from maskx_d2.video import VIDEO_SUFFIXES

    not_of_ray = {"--top": args.top, "--merge": args.merge, "--every": args.every != 1 or None}
    for option, value in not_of_ray.items():
        if value is not None:
            raise ValueError(f"{option} is of pictures and videos, which --ray does not make")
    for path in args.images:
        if path.lower().endswith(VIDEO_SUFFIXES):
            raise ValueError(f"{path} is a video, expected images with --ray")
    images = find_images(args.images, recursive=args.recursive)
    unread = predict_on_ray(
        _detector(args),
        images,
        args.output,
        address=args.ray,
        model=_identity(args),
        min_score=args.min_score,
        batch_size=args.batch_size,
        resume=args.resume,
        max_megapixels=args.max_megapixels,
    )
    num_done = len(images) - len(unread)
    print(f"what was found in {num_done} images is in {file_in(args.output, DETECTIONS_FOLDER)}")
    _exit_if_passed_over(unread)


def _refuse_addresses(*paths: str) -> None:
    from maskx_d2.data.addresses import is_address

    for path in paths:
        if is_address(path):
            raise ValueError(f"{path} is an address, which takes --ray")


def _fill_masks(args: argparse.Namespace) -> None:
    from maskx_d2.fill_masks import fill_masks, summary

    if args.ray is None:
        from maskx_d2.find_masks import find_masks

        _refuse_addresses(args.images)
        bar = partial(tqdm, unit="image", file=sys.stderr)
        find = partial(find_masks, progress=bar)
    else:
        need_ray("maskx fill-masks --ray")
        from maskx_d2.on_ray import find_masks_on_ray

        find = partial(find_masks_on_ray, address=args.ray)
    detector = _detector(args)
    filled = fill_masks(
        detector,
        args.annotations,
        args.images,
        args.output,
        model=_identity(args),
        form=args.format,
        min_score=args.min_mask_score,
        also_replace=args.also_replace,
        find_masks=partial(find, batch_size=args.batch_size, max_megapixels=args.max_megapixels),
    )
    print(f"{args.output}: {summary(filled, detector.style)}")
    _exit_if_passed_over(filled.passed_over)


def _identity(args: argparse.Namespace) -> list[str]:
    """Of the model that the arguments name."""
    from maskx_d2.data.files import file_digest

    files = [path for path in (args.config_file, args.weights) if path and Path(path).is_file()]
    return [args.weights, *(file_digest(Path(path)) for path in files), *args.opts]


def _exit_if_passed_over(failed: list[str]) -> None:
    """
    Args:
        failed: why images and videos could not be read.
    """
    if failed:
        print(f"maskx: {len(failed)} files were passed over:", file=sys.stderr)
        for reason in failed:
            print(f"  {printable(reason)}", file=sys.stderr)
        sys.exit(FOUND_ERRORS)


def _detector(args: argparse.Namespace):
    from maskx_d2.detector import load_detector

    return load_detector(args.weights, args.config_file, overrides=args.opts)


def _convert(args: argparse.Namespace) -> None:
    need_detectron2("maskx convert")
    from maskx_d2.backends.detectron2.convert import convert

    config = convert(
        args.checkpoint,
        args.output,
        classes=args.classes,
        classes_with_masks=args.classes_with_masks,
    )
    weights = config.with_name("model_final.pth")
    print(f"maskx predict --config-file {config} --weights {weights} --output output/predictions IMAGE")


def _prepare_vg3k(args: argparse.Namespace) -> None:
    from maskx_d2.data.visual_genome import convert

    summary = convert(
        args.image_data,
        args.objects,
        args.coco_val,
        args.output,
        num_classes=args.num_classes,
        progress=lambda iterable, title, total: tqdm(
            iterable, desc=title, total=total, unit="image", file=sys.stderr
        ),
    )
    print(summary)


def _prepare_shapes(args: argparse.Namespace) -> None:
    from maskx_d2.data import shapes
    from maskx_d2.runtime.lock import is_empty

    if not is_empty(args.output):
        raise ValueError(f"--output {args.output} is there already, expected a new or an empty folder")
    dataset = shapes.generate(
        args.output,
        num_train=args.train,
        num_test=args.test,
        seed=args.seed,
        progress=partial(tqdm, unit="image", file=sys.stderr),
    )
    print(f"to train on:    {dataset.train_json} {dataset.train_images}")
    print(f"to evaluate on: {dataset.test_json} {dataset.test_images}")


def _compare(args: argparse.Namespace) -> None:
    from maskx_d2.data.files import write_text
    from maskx_d2.evaluation.comparison import compare_groups, compare_runs, markdown_report
    from maskx_d2.evaluation.report import html_report

    if args.images_root is not None and not args.images_root.is_dir():
        raise ValueError(f"--images-root {args.images_root} is not a folder")
    if bool(args.runs) == bool(args.group):
        raise ValueError("give runs, or groups of them by --group, one of the two")
    if args.group:
        names = [name for name, _ in args.group]
        if len(set(names)) < len(names):
            raise ValueError(f"--group is given twice with one of the names {', '.join(names)}")
        comparison = compare_groups(dict(args.group), baseline=args.baseline)
    else:
        comparison = compare_runs(args.runs, baseline=args.baseline and Path(args.baseline))
    markdown = markdown_report(comparison)
    html = html_report(
        comparison,
        num_images=args.images,
        min_score=args.min_score,
        max_megapixels=args.max_megapixels,
        images_root=args.images_root,
    )
    write_text(args.output / "comparison.md", markdown)
    write_text(args.output / "comparison.html", html)
    print(markdown)
    print(f"{args.output / 'comparison.html'}")


def _check_dataset(args: argparse.Namespace) -> None:
    from maskx_d2.data.coco_json import read_json
    from maskx_d2.data.coco_problems import find_image_problems, find_problems, problem_report

    if not args.images.is_dir():
        raise FileNotFoundError(f"image folder {args.images} is no folder")
    content = read_json(args.annotations)
    bar = partial(tqdm, total=len(content["images"]), unit="image", file=sys.stderr)
    of_images = find_image_problems(content, args.images, max_megapixels=args.max_megapixels, progress=bar)
    problems = [*find_problems(content), *of_images]
    counts = [f"{len(content[part]):,} {part}" for part in ("images", "annotations", "categories")]
    print(f"{args.annotations}: {', '.join(counts)}")
    print(problem_report(problems) or "Nothing to remark.")
    if any(problem.is_error for problem in problems):
        sys.exit(FOUND_ERRORS)


def _splits(args: argparse.Namespace) -> None:
    from maskx_d2.data.class_splits import class_split_report
    from maskx_d2.data.coco_json import read_coco

    coco = None if args.annotations is None else read_coco(args.annotations)
    print(class_split_report(args.split, coco, as_json=args.json))


def _embeddings(args: argparse.Namespace) -> None:
    from maskx_d2.data import class_embeddings
    from maskx_d2.data.class_names import read_class_names

    names = read_class_names(args.classes)
    if args.kind == "glove":
        table = class_embeddings.glove_embeddings(args.vectors, names)
    else:
        table = class_embeddings.random_embeddings(len(names), dim=args.dim, seed=args.seed)
    class_embeddings.write_table(args.output, table)
    print(f"{args.output}: {table.shape[1]} numbers for each of {table.shape[0]} classes")


def _torchvision(args: argparse.Namespace) -> None:
    from maskx_d2.backends.torchvision.command_line import main

    main(args.arguments)
