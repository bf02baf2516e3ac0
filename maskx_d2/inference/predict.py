"""Detecting objects in images: writes pictures, and a JSON in COCO's results format."""

import hashlib
import itertools
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from PIL import Image

from maskx_d2.data.class_names import match_classes
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.coco_format import LARGEST
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, replacing, write_png
from maskx_d2.data.images import MAX_MEGAPIXELS, read_ahead
from maskx_d2.data.rle import check_rle
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import ClassStyle, draw_detections, with_legend
from maskx_d2.evaluation.run_files import DETECTIONS_FILE, Coordinate
from maskx_d2.inference.detector import Detector
from maskx_d2.runtime.journal import Journal, open_journal
from maskx_d2.runtime.threads import in_threads

UNFINISHED_FILE = f"{DETECTIONS_FILE}l"
"""Written in place of :data:`DETECTIONS_FILE` until all is done; see :mod:`maskx_d2.runtime.journal`."""

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg"),
    *(".png", ".tif", ".tiff", ".webp"),
)
_NUM_WRITERS = 2  # threads that draw and write pictures
_LONGEST_STEM = 200  # bytes of the name of a picture; file systems allow 255 with all suffixes


def find_images(
    paths: Sequence[Path], *, recursive: bool = False, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """
    Find images: the given files, and the images in the given folders, sorted by name.

    Args:
        paths: files and folders.
        recursive: whether to search subfolders too.
        suffixes: suffixes of image files in folders.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            # A pipe or a broken link is reported later, with the images that cannot be read.
            inside = path.rglob("*") if recursive else path.iterdir()
            found = sorted(p for p in inside if p.suffix.lower() in suffixes and not p.is_dir())
            if not found:
                raise MissingFileError(
                    f"{path} holds no image, expected files ending in {', '.join(suffixes)}"
                )
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise MissingFileError(f"{path} is neither an image nor a folder")
    return images


def find_other_files(
    paths: Sequence[Path], *, recursive: bool = False, suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """The files that :func:`find_images` skips in folders, without hidden ones."""
    inside = (path.rglob("*") if recursive else path.iterdir() for path in paths if path.is_dir())
    return sorted(
        path
        for path in itertools.chain.from_iterable(inside)
        if path.suffix.lower() not in suffixes and not path.name.startswith(".") and path.is_file()
    )


def file_names(images: Sequence[Path], paths: Sequence[Path]) -> list[str]:
    """
    Names of images relative to the folder that they were found in, as in an annotation file; if there are
    several folders, relative to the one that holds them all.

    Args:
        images: as returned by :func:`find_images`.
        paths: the files and folders in which they were found.
    """
    folders = {path.absolute() if path.is_dir() else path.absolute().parent for path in paths}
    base = os.path.commonpath(folders) if folders else ""
    return [path.absolute().relative_to(base).as_posix() for path in images]


@dataclass(frozen=True)
class IdsOfFile:
    """Ids of an annotation file, so that detections can be evaluated on it."""

    image_ids: list[int | None]
    """For each image, its id; None if it is not in the file."""

    category_ids: dict[int, int]
    """Category id of the model -> that of the class of the same name in the file."""

    @classmethod
    def read(cls, annotations: Path, names: Sequence[str], style: ClassStyle) -> "IdsOfFile":
        """
        Args:
            annotations: annotation file in COCO format; it may have no annotations.
            names: see :func:`file_names`. An image whose name has other folders in the file is found by the
                last part, if that is unique.
            style: the classes of the model.

        Raises:
            FileNotFoundError, ValueError: the file cannot be used, or has other classes or other images.
        """
        file = read_coco_file(annotations, needs_annotations=False)
        of_name = {image.file_name: image.id for image in file.images}
        of_last_part = {posixpath.basename(name): image_id for name, image_id in of_name.items()}
        last_parts, own = (Counter(map(posixpath.basename, some)) for some in (of_name, names))
        ids: list[int | None] = []
        for name in names:
            last = posixpath.basename(name)
            by_last = of_last_part.get(last) if last_parts[last] == own[last] == 1 else None
            ids.append(of_name.get(name, by_last))
        if not any(image_id is not None for image_id in ids):
            raise InputError(
                f"annotation file {annotations} has none of {len(ids)} images, such as {names[0]}"
            )
        model_ids = list(style.names)
        what = f"annotation file {annotations}"
        indices = match_classes(list(style.names.values()), file.class_names, what=what)
        of_file = [file.categories[index]["id"] for index in indices]
        return cls(ids, dict(zip(model_ids, of_file, strict=True)))


class _Rle(msgspec.Struct):
    size: Annotated[list[int], msgspec.Meta(min_length=2, max_length=2)]
    counts: str


class _Detection(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: Annotated[list[Coordinate], msgspec.Meta(min_length=4, max_length=4)]
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    segmentation: _Rle | msgspec.UnsetType = msgspec.UNSET


class FoundObjects(msgspec.Struct):
    """An image or a frame in the journal of a run that is resumed."""

    detections: list[_Detection]

    def check(
        self, image_id: int, category_ids: Container[int], *, size: Sequence[int] | None = None
    ) -> None:
        """
        Args:
            image_id: id of the image.
            category_ids: the category ids that the model knows.
            size: height and width of masks; any if None.

        Raises:
            ValueError: the detections cannot come from a model with these classes on this image.
        """
        for found in self.detections:
            if found.image_id != image_id or found.category_id not in category_ids:
                ids = f"image_id {found.image_id} and category_id {found.category_id}"
                raise InputError(f"a detection of {ids} in image {image_id}")
            mask = found.segmentation
            if isinstance(mask, _Rle):
                check_rle(msgspec.structs.asdict(mask))
                if size is not None and mask.size != list(size):
                    raise InputError(f"a mask of size {mask.size}, expected {list(size)}")


class _Done(msgspec.Struct):
    place: int
    """Position in the sequence."""


class _DoneWithObjects(FoundObjects, kw_only=True):
    place: int


def predict(
    detector: Detector,
    images: Sequence[Path],
    output: Path,
    *,
    model: object = None,
    min_score: float = 0.5,
    top: int | None = None,
    merge_iou: float | None = None,
    batch_size: int = 1,
    resume: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    names: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    category_ids: Mapping[int, int] | None = None,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
    passed_over: Callable[[Path, Exception], None] | None = None,
) -> Path:
    """
    Detect objects in images, draw them, and write them in COCO's results format. If it is interrupted, what
    is done is kept: the pictures, and a line for each in :data:`UNFINISHED_FILE`.

    ``image_id`` is the number in the file name, as in COCO; if a file has none, or another one the same, it
    is the position of the image in the sequence. ``file_name`` is written too.

    Args:
        detector: the model.
        images: image files.
        output: output folder, created if necessary; pictures keep the names of the images, as .png.
        model: JSON values that identify the model, for runs that are resumed.
        min_score: detections below it are neither drawn nor written.
        top, merge_iou: what is drawn, see :func:`maskx_d2.evaluation.merging.readable_detections`.
        batch_size: number of images per call of the model.
        resume: continue an interrupted run with the same images, model and ``min_score``.
        max_megapixels: larger images are refused.
        names: the ``file_name`` of each image; by default the last part of its path.
        ids: the ``image_id`` of each image.
        category_ids: category ids to write in place of the model's.
        progress: wraps the images, as ``tqdm`` does.
        passed_over: called with each image that cannot be read and its error; if None, the first such
            error is raised.

    Returns:
        The path of the JSON.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read, or the output cannot be written.
    """
    picture_paths = _picture_paths(images, output)
    check_keeps_inputs(picture_paths, images)
    output.mkdir(parents=True, exist_ok=True)
    json_path, unfinished = output / DETECTIONS_FILE, output / UNFINISHED_FILE
    for path in (json_path, unfinished, *picture_paths):
        check_replaceable(path)
    json_path.unlink(missing_ok=True)  # it does not belong to the new pictures beside it
    if not resume:
        unfinished.unlink(missing_ok=True)
    ids = image_ids(images) if ids is None else ids
    names = [path.name for path in images] if names is None else names
    category_ids = category_ids or {category_id: category_id for category_id in detector.style.names}
    work = work_of(images, model=model, min_score=min_score)
    with open_journal(unfinished, work=work, kind=_Done) as journal:
        done = _places(journal, ids, set(category_ids.values()))
        todo = {place: path for place, path in enumerate(images) if place not in done}
        unread: list[Exception] = []
        ahead = read_ahead(progress(list(todo.values())), max_megapixels=max_megapixels)
        pictures = _read(todo, ahead, unread, passed_over)

        def drawings() -> Iterator[tuple[_Drawn, Callable[[], None]]]:
            while batch := list(islice(pictures, batch_size)):
                results = detector.coco_results(
                    [image for _, image in batch], [ids[place] for place, _ in batch]
                )
                for (place, image), detections in zip(batch, results, strict=True):
                    found = [d for d in detections if d["score"] >= min_score]
                    shown = readable_detections(
                        found, len(detector.style.names), top=top, merge_iou=merge_iou
                    )
                    draw = partial(_draw, image, shown, detector.style, picture_paths[place])
                    yield _Drawn(place, found, len(shown)), draw

        for place, found, num_shown in in_threads(drawings(), num_threads=_NUM_WRITERS):
            for detection in found:
                detection["file_name"] = names[place]
                detection["category_id"] = category_ids[detection["category_id"]]
            journal.append({"place": place, "detections": found})
            logging.getLogger(__name__).info(
                "%s: %d objects, %d drawn -> %s",
                *(images[place], len(found), num_shown, picture_paths[place]),
            )
        if len(unread) == len(images):
            raise InputError(f"none of {len(images)} images can be read: {unread[0]}") from unread[0]
        _write_results(json_path, journal)
        journal.delete()
    return json_path


class _Drawn(NamedTuple):
    place: int
    """Position of the image in the sequence."""

    found: list[dict]
    num_shown: int


def _draw(image: Image.Image, shown: Sequence[Mapping], style: ClassStyle, path: Path) -> None:
    write_png(path, with_legend(draw_detections(image, shown, style), style))


def _places(journal: Journal, ids: Sequence[int], category_ids: Container[int]) -> set[int]:
    """Positions of the images that are done."""
    places: set[int] = set()
    for of_image in journal.pieces(_DoneWithObjects):
        place = of_image.place
        if place in places or not 0 <= place < len(ids):
            raise journal.refusal(f"it has image number {place} twice, or there is no such image")
        places.add(place)
        try:
            of_image.check(ids[place], category_ids)
        except ValueError as error:
            raise journal.refusal(error) from error
    return places


def _read(
    images: dict[int, Path],
    ahead: Iterable[tuple[Path, Future[Image.Image]]],
    unread: list[Exception],
    passed_over: Callable[[Path, Exception], None] | None,
) -> Iterator[tuple[int, Image.Image]]:
    """Images that can be read, with their positions; the errors of others are added to ``unread``."""
    for place, (path, reading) in zip(images, ahead, strict=True):
        try:
            image = reading.result()
        except InputError as error:
            if passed_over is None:
                raise
            passed_over(path, error)
            unread.append(error)
            continue
        yield place, image


def _write_results(path: Path, journal: Journal) -> None:
    """Write one result after another, as those of very many images do not fit into memory."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        between = "["
        for of_image in journal.pieces():
            for detection in of_image["detections"]:
                file.write(between + json.dumps(detection))
                between = ", "
        file.write("[]" if between == "[" else "]")


def work_of(images: Sequence[Path | str], *, model: object, min_score: float) -> dict:
    """What the detections depend on, for runs that are resumed; see :func:`predict`."""
    paths = "\n".join(map(str, images)).encode()
    return {"images": hashlib.sha256(paths).hexdigest(), "model": model, "min_score": min_score}


def image_ids(images: Sequence[Path]) -> list[int]:
    """
    The numbers in the file names, as in COCO; if any is missing, repeated or too large for an id, positions
    from 1.
    """
    numbers = [int(path.stem) if path.stem.isdecimal() else None for path in images]
    if None in numbers or len(set(numbers)) < len(numbers) or max(numbers, default=0) >= LARGEST:
        return list(range(1, len(images) + 1))
    return numbers


def short_stem(path: Path) -> str:
    """The stem of a name, with room for suffixes: a very long one has a digest in place of its end."""
    encoded = os.fsencode(path.stem)
    if len(encoded) <= _LONGEST_STEM:
        return path.stem
    start = encoded[:_LONGEST_STEM].decode("utf-8", errors="ignore")
    return f"{start}_{hashlib.sha256(encoded).hexdigest()[:8]}"


def _picture_paths(images: Sequence[Path], output: Path) -> list[Path]:
    """A path for each picture; images of the same name from several folders get a number."""
    taken: set[str] = set()
    paths = []
    for path in images:
        stem, count = short_stem(path), 1
        name = stem
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        paths.append(output / f"{name}.png")
    return paths
