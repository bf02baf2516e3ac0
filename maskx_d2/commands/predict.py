"""``maskx predict``: detect objects in images and videos."""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from tqdm import tqdm

from maskx_d2.commands.models import exit_if_skipped, identity, load, refuse_addresses, say_above
from maskx_d2.commands.options import (
    add_batch_size,
    add_device,
    add_input,
    add_max_megapixels,
    add_model_options,
    add_output_folder,
    add_overrides,
    add_ray,
    at_least,
    from_0_to_1,
)
from maskx_d2.data.errors import InputError
from maskx_d2.data.printable import printable
from maskx_d2.runtime.optional_packages import DRAWING, need


def add_parser(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser(
        "predict",
        help="detect objects in images and videos",
        description="Detect objects in images and videos, draw them, and write them in the COCO results "
        "format. Classes trained with masks are orange, classes trained with boxes only are blue.",
    )
    add_model_options(predict)
    add_input(
        predict, "images", nargs="+", metavar="IMAGE", help="image, video, or folder of images and videos"
    )
    add_output_folder(predict, "log.txt*", "*.json*", "*.png", "*.mp4", "detections/*", type=str)
    add_ray(
        predict,
        "Writes Parquet files and draws nothing; does not support videos. IMAGE and DIR can be URLs such "
        "as s3://bucket/folder",
    )
    add_input(
        predict,
        "--annotations",
        type=Path,
        metavar="JSON",
        help="annotation file in COCO format whose image and category ids are written, so that pycocotools "
        "can evaluate the results on it; images that it lacks are skipped",
    )
    predict.add_argument("--recursive", action="store_true", help="search subfolders too")
    predict.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of the same command"
    )
    add_device(predict)
    add_batch_size(predict, default=1)
    add_max_megapixels(predict)
    predict.add_argument(
        "--every", type=at_least(1), default=1, metavar="N", help="process every Nth frame of a video"
    )
    predict.add_argument(
        "--min-score", type=from_0_to_1, default=0.5, metavar="P", help="lowest score to keep, default 0.5"
    )
    predict.add_argument(
        "--top",
        type=at_least(1),
        metavar="N",
        help="draw the N best detections of an image; default: all, or 30 if the model has more than 100 "
        "classes",
    )
    predict.add_argument(
        "--merge",
        type=from_0_to_1,
        metavar="IOU",
        help="of detections whose boxes overlap by more than IOU, draw only the best and the number of the "
        "others; 1 draws all. Default: 0.8 if the model has more than 100 classes, otherwise 1",
    )
    add_overrides(predict)
    predict.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    (_predict if args.ray is None else _predict_on_ray)(args)


def _predict(args: argparse.Namespace) -> None:
    from maskx_d2.evaluation.fonts import missing_letters
    from maskx_d2.evaluation.run_files import log_file
    from maskx_d2.inference.predict import (
        IMAGE_SUFFIXES,
        IdsOfFile,
        file_names,
        find_images,
        find_other_files,
        predict,
    )
    from maskx_d2.inference.video import VIDEO_SUFFIXES, predict_video
    from maskx_d2.runtime.logs import log_to_file

    refuse_addresses(*args.images, args.output)
    need("maskx predict", *DRAWING)
    output = Path(args.output)
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    paths = [Path(path) for path in args.images]
    found = find_images(paths, recursive=args.recursive, suffixes=suffixes)
    others = find_other_files(paths, recursive=args.recursive, suffixes=suffixes)
    videos = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in found if path.suffix.lower() not in VIDEO_SUFFIXES]
    for name, count in Counter(video.stem for video in videos).items():
        if count > 1:
            raise InputError(f"{count} videos are named {name!r}, expected one: give each its own --output")
    detector = load(args)
    names, ids = file_names(images, paths), None
    skipped = [_named("other files", list(map(str, others)))] if others else []
    if args.annotations is not None and images:
        ids = IdsOfFile.read(args.annotations, names, detector.style)
        absent = [name for name, i in zip(names, ids.image_ids, strict=True) if i is None]
        skipped += [_named(f"images that {args.annotations} lacks", absent)] if absent else []
        kept = [place for place, image_id in enumerate(ids.image_ids) if image_id is not None]
        images, names = [images[place] for place in kept], [names[place] for place in kept]
    options = {
        "model": identity(args),
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
                said.append(f"{lines.with_suffix('.mp4')}, detections of its frames in {lines}")
            except InputError as error:
                if len(found) == 1:
                    raise
                failed.append(str(error))
        if images:
            results = predict(
                detector,
                images,
                output,
                names=names,
                ids=None if ids is None else [i for i in ids.image_ids if i is not None],
                category_ids=None if ids is None else ids.category_ids,
                progress=partial(bar, unit="image"),
                passed_over=lambda path, error: unread.append(str(error)),
                **options,
            )
    if images:
        num_done = len(images) - len(unread)
        said.append(f"{num_done} pictures in {output}, results in COCO format in {results}")
    if notice := missing_letters(detector.style.names.values()):
        said.append(notice)
    print("\n".join([*said, *skipped]))
    exit_if_skipped([*failed, *unread])


def _named(what: str, names: list[str], number: int = 5) -> str:
    more = f" and {len(names) - number:,} more" if len(names) > number else ""
    return f"skipped {len(names):,} {what}: {', '.join(map(printable, names[:number]))}{more}"


def _predict_on_ray(args: argparse.Namespace) -> None:
    need("maskx predict --ray", "ray")
    from maskx_d2.data.addresses import file_in, is_address
    from maskx_d2.inference.predict import find_other_files
    from maskx_d2.inference.ray_data import DETECTIONS_FOLDER, find_images, predict_on_ray
    from maskx_d2.inference.video import VIDEO_SUFFIXES

    if args.annotations is not None:
        raise InputError("--annotations is given, which --ray does not support")
    not_of_ray = {"--top": args.top, "--merge": args.merge, "--every": args.every != 1 or None}
    for option, value in not_of_ray.items():
        if value is not None:
            raise InputError(f"{option} is for pictures and videos, which --ray does not write")
    for path in args.images:
        if path.lower().endswith(VIDEO_SUFFIXES):
            raise InputError(f"{path} is a video, expected images with --ray")
    images = find_images(args.images, recursive=args.recursive)
    detector = load(args)
    with tqdm(total=len(images), unit="image", file=sys.stderr) as bar:
        unread = predict_on_ray(
            detector,
            images,
            args.output,
            address=args.ray,
            model=identity(args),
            min_score=args.min_score,
            batch_size=args.batch_size,
            resume=args.resume,
            max_megapixels=args.max_megapixels,
            progress=bar.update,
            waiting=partial(say_above, bar),
        )
    local = [Path(path) for path in args.images if not is_address(path)]
    if others := find_other_files(local, recursive=args.recursive):
        print(_named("other files", list(map(str, others))))
    num_done = len(images) - len(unread)
    print(f"detections of {num_done} images are in {file_in(args.output, DETECTIONS_FOLDER)}")
    exit_if_skipped(unread)
