"""
Converts Visual Genome to COCO's format: boxes, without masks, of its most frequent classes. The class list
also has COCO's 80 classes.

The rules are those of the original code (lib/datasets/bbox2mask_dataset_processing/vg). Visual Genome's
files of half a gigabyte are read image by image, into columns of numbers.
"""

import contextlib
import mmap
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from maskx_d2.data.class_names import coco_class_names, name_of_synset
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, replacing

SPLITS = ("train", "val", "test")
NUM_TEST_IMAGES = 5000
_UNFINISHED = "vg3k_unfinished"
_URL_PREFIX = "https://cs.stanford.edu/people/rak248/"

# COCO classes that no synset of Visual Genome is named after.
_SYNSET_OF_COCO = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}

Progress = Callable[[Iterable, str, int], Iterable]
"""Wraps an iterable, given a title and its length."""

_Record = TypeVar("_Record")


# ---- The files ----


_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Pixels = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


class _ImageRecord(msgspec.Struct):
    image_id: _Id
    width: int
    height: int
    url: str
    coco_id: int | None = None


class _Object(msgspec.Struct):
    object_id: _Id
    x: _Pixels
    y: _Pixels
    w: _Pixels
    h: _Pixels
    synsets: list[str] | None = None


class _ImageObjects(msgspec.Struct):
    image_id: _Id
    objects: list[_Object]


class _CocoImage(msgspec.Struct):
    id: int


class _CocoFile(msgspec.Struct):
    images: list[_CocoImage]


class _OutImage(msgspec.Struct):
    id: int
    width: int
    height: int
    file_name: str
    coco_id: int | None


class _OutAnnotation(msgspec.Struct):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int = 0


def _mapped(path: Path) -> mmap.mmap | bytes:
    """
    The bytes of a file, without reading it into memory. They are released with the last record that is a
    view of them.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file")
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _decode(path: Path, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(_mapped(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not in the format of Visual Genome or COCO: {error}") from error


# ---- What is counted ----


@dataclass
class Summary:
    """Counts of objects and images that were converted or left out."""

    classes: int = 0
    objects: int = 0
    kept: int = field(default=0, metadata={"title": "objects kept"})
    without_synset: int = field(default=0, metadata={"title": "left out: no synset"})
    several_synsets: int = field(default=0, metadata={"title": "left out: several synsets"})
    rare_synset: int = field(default=0, metadata={"title": "left out: synset not among the most frequent"})
    no_synsets_key: int = field(default=0, metadata={"title": "left out: no key 'synsets'"})
    bad_boxes: int = field(default=0, metadata={"title": "left out: box without positive size"})
    unknown_images: int = field(
        default=0, metadata={"title": "images in objects.json that are not in image_data.json"}
    )
    objects_of_unknown_images: int = field(default=0, metadata={"title": "left out: their objects"})
    images_without_objects: int = field(
        default=0, metadata={"title": "images that are not in objects.json"}
    )
    renumbered: int = field(default=0, metadata={"title": "objects renumbered: id already taken"})
    images: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{split}: {self.images[split]:,} images, {self.annotations[split]:,} boxes" for split in SPLITS
        ]
        for counted in fields(self):
            count = getattr(self, counted.name)
            if isinstance(count, int) and count:
                lines.append(f"{counted.metadata.get('title', counted.name)}: {count:,}")
        return "\n".join(lines)


# ---- Classes ----


def joint_classes(synsets: Sequence[str]) -> list[str]:
    """
    Args:
        synsets: the most frequent synsets of Visual Genome, most frequent first.

    Returns:
        Synsets of the joint list: those of COCO's 80 classes in COCO's order, then the others, sorted by
        name. A COCO class that is in neither ``synsets`` nor the table of exceptions is added under its
        name.
    """
    by_name: dict[str, str] = {}
    for synset in synsets:
        by_name.setdefault(name_of_synset(synset).replace("_", " "), synset)
    of_coco = []
    for name in coco_class_names():
        # The table takes precedence, as in the original code, where "orange" is a fruit.
        synset = _SYNSET_OF_COCO.get(name) or by_name.get(name)
        of_coco.append(synset or f"{name.replace(' ', '_')}.n.01")
    return of_coco + sorted(set(synsets) - set(of_coco))


# ---- Reading ----


class _Objects:
    """All objects with one synset and a box, in columns: 24 bytes each instead of a kilobyte."""

    def __init__(self) -> None:
        self.image = array("i")
        self.identifier = array("q")
        self.synset = array("i")
        self.box = array("f")


def _read_objects(
    path: Path, image_ids: set[int], summary: Summary, progress: Progress
) -> tuple[_Objects, list[str], list[int]]:
    """The columns, the synsets in order of first appearance, and how often each occurs."""
    columns, number_of, counts = _Objects(), {}, []
    decoder = msgspec.json.Decoder(_ImageObjects)
    seen: set[int] = set()
    raw_images = _decode(path, list[msgspec.Raw])
    for raw in progress(raw_images, "reading objects", len(raw_images)):
        try:
            image = decoder.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            where = f"image number {len(seen) + 1} of {path}"
            raise InputError(f"{where} is not in the format of Visual Genome: {error}") from error
        known = image.image_id in image_ids
        summary.unknown_images += not known
        if image.image_id in seen:
            raise InputError(f"{path} has the image {image.image_id} twice, expected once")
        seen.add(image.image_id)
        for item in image.objects:
            summary.objects += 1
            synsets = item.synsets
            if synsets is None:
                summary.no_synsets_key += 1
                continue
            for synset in synsets:
                number = number_of.get(synset)
                if number is None:
                    number = number_of[synset] = len(counts)
                    counts.append(0)
                counts[number] += 1
            if not known:
                summary.objects_of_unknown_images += 1
            elif len(synsets) != 1:
                summary.without_synset += not synsets
                summary.several_synsets += bool(synsets)
            elif item.w <= 0 or item.h <= 0:
                summary.bad_boxes += 1
            else:
                columns.image.append(image.image_id)
                columns.identifier.append(item.object_id)
                columns.synset.append(number)
                columns.box.extend((item.x, item.y, item.w, item.h))
    summary.images_without_objects = len(image_ids - seen)
    return columns, list(number_of), counts


def _most_frequent(synsets: Sequence[str], counts: Sequence[int], num_classes: int) -> list[int]:
    """Numbers of the most frequent synsets, ties in order of first appearance."""
    order = sorted(range(len(synsets)), key=lambda i: -counts[i])
    if len(order) < num_classes:
        raise InputError(
            f"there are {len(order)} synsets, expected at least the {num_classes} of --num-classes"
        )
    return order[:num_classes]


def _split_images(images: Sequence[_ImageRecord], coco_val: set[int]) -> dict[str, list[_ImageRecord]]:
    """Validation: images in COCO's val set. Test: the last images not in COCO. Training: the rest."""
    rest = [image for image in images if image.coco_id not in coco_val]
    test = [image for image in rest if image.coco_id is None][-NUM_TEST_IMAGES:]
    test_ids = {image.image_id for image in test}
    return {
        "train": [image for image in rest if image.image_id not in test_ids],
        "val": [image for image in images if image.coco_id in coco_val],
        "test": test,
    }


# ---- Converting ----


def convert_visual_genome(
    image_data: Path,
    objects: Path,
    coco_val: Path,
    output: Path,
    *,
    num_classes: int = 3000,
    progress: Progress = lambda iterable, title, total: iterable,
) -> Summary:
    """
    Write ``vg3k_train.json``, ``vg3k_val.json`` and ``vg3k_test.json``, or none of them if it is
    interrupted or fails. The categories are named by synset and have ``instance_count``, the number of
    boxes in training; those of COCO also have ``coco_name``.

    Args:
        image_data: Visual Genome's ``image_data.json``.
        objects: its ``objects.json``, version 1.4.
        coco_val: COCO's ``instances_val2017.json``; only its image ids are used.
        output: output folder, created if necessary.
        num_classes: number of classes, the most frequent synsets.
        progress: see :data:`Progress`.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: an input is invalid.
    """
    paths = {split: output / f"vg3k_{split}.json" for split in SPLITS}
    unfinished = output / _UNFINISHED
    for path in (*paths.values(), unfinished):
        check_replaceable(path)
    check_keeps_inputs(paths.values(), (image_data, objects, coco_val))
    summary = Summary()
    images = _decode(image_data, list[_ImageRecord])
    if not images:
        raise InputError(f"{image_data} has no image, expected those of Visual Genome")
    coco_ids = {image.id for image in _decode(coco_val, _CocoFile).images}
    image_ids = {image.image_id for image in images}
    if len(image_ids) != len(images):
        raise InputError(
            f"{image_data} has {len(images) - len(image_ids)} image ids twice, expected each once"
        )
    columns, synsets, counts = _read_objects(objects, image_ids, summary, progress)
    frequent = _most_frequent(synsets, counts, num_classes)
    joint = joint_classes([synsets[i] for i in frequent])
    summary.classes = len(joint)
    category_of = np.zeros(len(synsets), dtype=np.int32)  # 0: not a class
    index_in_joint = {synset: i for i, synset in enumerate(joint)}
    for number in frequent:
        category_of[number] = index_in_joint[synsets[number]] + 1
    annotations = _Annotations(columns, category_of, summary)
    splits = _split_images(images, coco_ids)
    in_training = annotations.count_by_category([i.image_id for i in splits["train"]], len(joint))
    categories = [
        {"id": i + 1, "name": synset, "instance_count": in_training[i]} for i, synset in enumerate(joint)
    ]
    for category, name in zip(categories, coco_class_names(), strict=False):  # the first are those of COCO
        category["coco_name"] = name
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:  # none is moved into place before all are written
        for split, of_split in splits.items():
            path = files.enter_context(replacing(paths[split]))
            summary.images[split] = len(of_split)
            summary.annotations[split] = _write(path, of_split, annotations, categories, split, progress)
        unfinished.touch()
    unfinished.unlink()
    return summary


def check_finished(folder: Path) -> None:
    """
    Raises:
        ValueError: a conversion into the folder was stopped while moving its files into place, so that the
            files may come from two conversions.
    """
    if (folder / _UNFINISHED).exists():
        raise InputError(
            f"{folder / _UNFINISHED} says that the files beside it may not belong together: run maskx "
            "prepare vg3k again"
        )


class _Annotations:
    """The kept objects, sorted by image."""

    def __init__(self, columns: _Objects, category_of: np.ndarray, summary: Summary):
        category = category_of[np.frombuffer(columns.synset, dtype=np.int32)]
        keep = category > 0
        summary.kept = int(keep.sum())
        summary.rare_synset = len(keep) - summary.kept
        image = np.frombuffer(columns.image, dtype=np.int32)[keep]
        order = np.argsort(image, kind="stable")
        self.image = image[order]
        ids, starts, lengths = np.unique(self.image, return_index=True, return_counts=True)
        self.rows_of = dict(
            zip(ids.tolist(), zip(starts.tolist(), (starts + lengths).tolist(), strict=True), strict=True)
        )
        self.category = category[keep][order]
        identifier = np.frombuffer(columns.identifier, dtype=np.int64)[keep][order]
        first = np.zeros(len(identifier), dtype=bool)
        first[np.unique(identifier, return_index=True)[1]] = True
        summary.renumbered = int((~first).sum())
        if summary.renumbered:
            identifier = identifier.copy()
            identifier[~first] = identifier.max() + 1 + np.arange(summary.renumbered)
        self.identifier = identifier
        self.box = np.frombuffer(columns.box, dtype=np.float32).reshape(-1, 4)[keep][order]

    def count_by_category(self, image_ids: Sequence[int], num_categories: int) -> list[int]:
        """Number of objects of each category in these images."""
        category = self.category[np.isin(self.image, image_ids)]
        return np.bincount(category, minlength=num_categories + 1)[1:].tolist()

    def of_image(self, image_id: int) -> list[_OutAnnotation]:
        start, end = self.rows_of.get(image_id, (0, 0))
        rows = zip(
            self.identifier[start:end].tolist(),
            self.category[start:end].tolist(),
            self.box[start:end].tolist(),
            strict=True,
        )
        return [
            _OutAnnotation(i, image_id, category, tuple(box), box[2] * box[3]) for i, category, box in rows
        ]


def _write(path: Path, images, annotations: _Annotations, categories, split: str, progress) -> int:
    """Write a file, an image at a time; returns its number of annotations."""
    encode = msgspec.json.Encoder().encode
    records = [
        _OutImage(i.image_id, i.width, i.height, i.url.removeprefix(_URL_PREFIX), i.coco_id) for i in images
    ]
    count = 0
    with path.open("wb") as file:
        file.write(b'{"images":' + encode(records) + b',"categories":' + encode(categories))
        file.write(b',"annotations":[')
        for image in progress(images, f"writing {split}", len(images)):
            of_image = annotations.of_image(image.image_id)
            if of_image:
                file.write(b",\n" if count else b"\n")
                file.write(encode(of_image)[1:-1])
                count += len(of_image)
        file.write(b"]}\n")
    return count
