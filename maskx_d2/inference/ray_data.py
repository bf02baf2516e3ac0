"""Runs a detector with Ray Data, on all machines of a Ray cluster or all cores of this machine."""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import ray
import ray.data
from PIL import Image
from pyarrow import dataset, parquet
from pyarrow.fs import FileSelector, FileSystem, FileType

from maskx_d2.data.addresses import (
    file_in,
    file_system,
    find_images_at,
    from_anywhere,
    is_address,
    read_image_at,
)
from maskx_d2.data.errors import InputError
from maskx_d2.data.images import MAX_MEGAPIXELS
from maskx_d2.inference import predict
from maskx_d2.inference.detector import Detector, MaskPredictor
from maskx_d2.inference.masks_in_boxes import BoxesOfImage, FoundMasks, UnreadImage, masks_in_images

DETECTIONS_FOLDER = "detections"
"""Folder of Parquet files in the output of :func:`predict_on_ray`."""

THIS_MACHINE = "local"
"""The address of a Ray instance that is started here, and ends with the work."""

_IMAGES_OF_A_TASK = 32  # enough to make its overhead small, few enough to repeat
_UNFINISHED = "_unfinished.json"  # readers of Parquet skip names with an underscore
_RLE = pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})
_DETECTION = pa.struct(
    {
        "category_id": pa.int64(),
        "category_name": pa.string(),
        "bbox": pa.list_(pa.float64()),
        "score": pa.float64(),
        "segmentation": _RLE,
    }
)
_SCHEMA = pa.schema(
    {
        "image_id": pa.int64(),
        "path": pa.string(),
        "width": pa.int64(),
        "height": pa.int64(),
        "detections": pa.list_(_DETECTION),
        "error": pa.string(),
    }
)
_FOUND = FoundMasks | UnreadImage
_SILENCE = 30  # seconds


def _ignore(_: object) -> None:
    """The default of a function that is called with news."""


def find_images(paths: Sequence[str], *, recursive: bool = False) -> list[str]:
    """
    Like :func:`maskx_d2.inference.predict.find_images`, also for addresses.

    Raises:
        FileNotFoundError, ValueError: see there and :func:`maskx_d2.data.addresses.find_images_at`.
    """
    images: list[str] = []
    for path in paths:
        if is_address(path):
            images += find_images_at(path, recursive=recursive, suffixes=predict.IMAGE_SUFFIXES)
        else:
            images += map(str, predict.find_images([Path(path)], recursive=recursive))
    return images


def predict_on_ray(
    detector: Detector,
    images: Sequence[str],
    output: str,
    *,
    address: str = THIS_MACHINE,
    model: object = None,
    min_score: float = 0.5,
    batch_size: int = 1,
    resume: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[int], object] = _ignore,
    waiting: Callable[[str], object] = _ignore,
) -> list[str]:
    """
    Detect objects in images. Writes Parquet files with a row for each image: ``image_id`` as in
    :func:`maskx_d2.inference.predict.predict`, ``path``, ``width``, ``height``, ``detections`` in COCO's
    results format with their ``category_name``, and ``error``, the reason if it could not be read.

    Args:
        detector: the model.
        images: paths that are the same on all machines, or addresses.
        output: path or address of a folder; the files are in :data:`DETECTIONS_FOLDER` there.
        address: address of the Ray cluster.
        model: JSON values that identify the model, for runs that are resumed.
        min_score: detections below it are not written.
        batch_size: number of images per call of the model.
        resume: continue an interrupted run with the same images, model and ``min_score``.
        max_megapixels: larger images are refused.
        progress: called with the number of images that have been done since its last call.
        waiting: called with a sentence that says what Ray has left, if no image is done for a while.

    Returns:
        The reasons why images could not be read.

    Raises:
        ConnectionError: there is no cluster at the address.
        ValueError: none of the images can be read, or the output belongs to other work.
    """
    folder = from_anywhere(file_in(output, DETECTIONS_FOLDER))
    paths = [from_anywhere(path) for path in images]
    work = json.dumps(predict.work_of(paths, model=model, min_score=min_score)).encode()
    ids = predict.image_ids([Path(path) for path in images])
    with _connected(address):
        done = _begin(*file_system(folder), work, ids, resume=resume)
        pairs = zip(ids, paths, strict=True)
        rows = [
            {"image_id": i, "path": p, "max_megapixels": max_megapixels} for i, p in pairs if i not in done
        ]
        if rows:
            with _watched(progress, waiting) as done:
                options = {"batch_size": batch_size, "min_score": min_score, "done": done}
                found = _pipeline(_Detect, detector, rows, **options)
                # Reserves no cores, because it would wait for them until all images are done.
                writers = max(1, int(ray.cluster_resources()["CPU"]) // 2)
                found.write_parquet(folder, ray_remote_args={"num_cpus": 0}, concurrency=writers)
    return _finish(*file_system(folder), len(images))


def find_masks_on_ray(
    predictor: MaskPredictor,
    of_images: Sequence[BoxesOfImage],
    *,
    address: str = THIS_MACHINE,
    batch_size: int = 4,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[[int], object] = _ignore,
    waiting: Callable[[str], object] = _ignore,
) -> Iterator[FoundMasks | UnreadImage]:
    """
    Like :func:`maskx_d2.inference.masks_in_boxes.find_masks`, on Ray.

    Args:
        address: address of the Ray cluster.
        progress, waiting: see :func:`predict_on_ray`.

    Raises:
        ConnectionError: there is no cluster at the address.
    """
    rows = [
        {
            "path": from_anywhere(of_image.path),
            "boxes": msgspec.json.encode(of_image),
            "max_megapixels": max_megapixels,
        }
        for of_image in of_images
    ]
    with _connected(address), _watched(progress, waiting) as done:
        found = _pipeline(_FindMasks, predictor, rows, batch_size=batch_size, done=done)
        for row in found.iter_rows():
            yield msgspec.json.decode(row["found"], type=_FOUND)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to the cluster, unless this process is already connected to one."""
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    begun_here = {"include_dashboard": False} if address == THIS_MACHINE else {}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    # Otherwise Ray writes a line on its own actors to standard error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _silent_stderr():  # on which it would say that it has read the variable
            ray.init(address=address, log_to_driver=False, logging_level="error", **begun_here)
    except (ConnectionError, ValueError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced it
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Also for code that is not Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_reachable(address: str) -> None:
    """Raise ValueError at once if no cluster answers. Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise InputError(f"no Ray cluster answers at {address}: {error}") from error


class _Done:
    """An actor that counts what is done."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, number: int) -> None:
        self._count += number

    def count(self) -> int:
        return self._count


@contextlib.contextmanager
def _watched(
    progress: Callable[[int], object], waiting: Callable[[str], object]
) -> Iterator["ray.actor.ActorHandle"]:
    """Yields a :class:`_Done` to report to; what it counts is passed on by another thread."""
    done, stop = ray.remote(num_cpus=0)(_Done).remote(), threading.Event()
    thread = threading.Thread(target=_watch, args=(done, stop, progress, waiting), daemon=True)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def _watch(
    done: "ray.actor.ActorHandle",
    stop: threading.Event,
    progress: Callable[[int], object],
    waiting: Callable[[str], object],
) -> None:
    seen, since, is_last = 0, time.monotonic(), False
    while not is_last:
        is_last = stop.wait(1)
        with contextlib.suppress(ray.exceptions.RayError):
            count = ray.get(done.count.remote(), timeout=5)
            if count > seen:
                progress(count - seen)
                seen, since = count, time.monotonic()
        if time.monotonic() - since >= _SILENCE and not is_last:
            waiting(f"no image has been done for {_SILENCE} seconds: Ray has {_free_resources()} left")
            since = time.monotonic()


def _free_resources() -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    memory, store = (
        f"{free.get(name, 0) / 1e9:.1f} of {total.get(name, 0) / 1e9:.1f} GB"
        for name in ("memory", "object_store_memory")
    )
    cores = f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} cores"
    return f"{cores}, {memory} of memory and {store} of its object store"


def _pipeline(
    work: type, predictor: MaskPredictor, rows: list[dict], *, batch_size: int, **options
) -> ray.data.Dataset:
    """Read the images of rows with a ``path``, and apply ``work`` to each batch of rows."""
    on_gpu = ray.cluster_resources().get("GPU", 0) > 0
    options["device"] = "cuda" if on_gpu else "cpu"
    return (
        ray.data.from_items(rows, override_num_blocks=-(-len(rows) // _IMAGES_OF_A_TASK))
        .map(_read)
        .map_batches(
            work,
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(),
            num_gpus=1 if on_gpu else None,
            # Sent from here, so that other machines need neither weights nor configs.
            fn_constructor_args=(ray.put(predictor.to("cpu")),),
            fn_constructor_kwargs=options,
        )
    )


def _read(row: dict) -> dict:
    pixels, error = np.zeros((1, 1, 3), np.uint8), ""
    try:
        pixels = np.asarray(read_image_at(row["path"], max_megapixels=row["max_megapixels"]))
    except InputError as reason:
        error = str(reason)
    return {**row, "pixels": pixels, "error": error}


class _Detect:
    """Detects objects, in a process of its own."""

    def __init__(
        self, detector: ray.ObjectRef, *, device: str, min_score: float, done: "ray.actor.ActorHandle"
    ):
        self._detector = ray.get(detector).to(device)
        self._min_score = min_score
        self._done = done

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        rows = [
            {"image_id": int(image_id), "path": str(path), "detections": [], "error": str(error) or None}
            for image_id, path, error in zip(batch["image_id"], batch["path"], batch["error"], strict=True)
        ]
        images = [Image.fromarray(pixels) for pixels in batch["pixels"]]
        readable = [(row, image) for row, image in zip(rows, images, strict=True) if not row["error"]]
        names = self._detector.style.names
        if readable:
            results = self._detector.coco_results(
                [image for _, image in readable], [row["image_id"] for row, _ in readable]
            )
            for (row, image), detections in zip(readable, results, strict=True):
                row["width"], row["height"] = image.size
                row["detections"] = [
                    {**d, "category_name": names[d["category_id"]]}
                    for d in detections
                    if d["score"] >= self._min_score
                ]
        self._done.add.remote(len(rows))
        return pa.Table.from_pylist(rows, schema=_SCHEMA)


class _FindMasks:
    """Predicts masks in known boxes, in a process of its own."""

    def __init__(self, predictor: ray.ObjectRef, *, device: str, done: "ray.actor.ActorHandle"):
        self._predictor = ray.get(predictor).to(device)
        self._done = done

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        of_images = [msgspec.json.decode(boxes, type=BoxesOfImage) for boxes in batch["boxes"]]
        images = [
            partial(_image, pixels, str(error))
            for pixels, error in zip(batch["pixels"], batch["error"], strict=True)
        ]
        pairs = zip(of_images, images, strict=True)
        found = [
            msgspec.json.encode(each)
            for each in masks_in_images(self._predictor, pairs, batch_size=len(of_images))
        ]
        self._done.add.remote(len(of_images))
        return pa.table({"found": pa.array(found, pa.binary())})


def _image(pixels: np.ndarray, error: str) -> Image.Image:
    if error:
        raise InputError(error)
    return Image.fromarray(pixels)


def _begin(files: FileSystem, folder: str, work: bytes, ids: Sequence[int], *, resume: bool) -> set[int]:
    """Prepare the folder and record the work in it; returns the ids of the images that are done."""
    unfinished = f"{folder}/{_UNFINISHED}"
    there = files.get_file_info(FileSelector(folder, allow_not_found=True))
    for info in there:
        if info.type != FileType.File or not info.base_name.endswith((".parquet", _UNFINISHED)):
            raise InputError(f"{info.path} is not from this command: give another --output")
    if not (resume and any(info.base_name == _UNFINISHED for info in there)):
        for info in there:
            files.delete_file(info.path)
        files.create_dir(folder)
        with files.open_output_stream(unfinished) as file:
            file.write(work)
        return set()
    with files.open_input_file(unfinished) as file:
        if file.read() != work:
            raise InputError(
                f"{folder} belongs to a run with other inputs or options: give another --output"
            )
    done, wanted = set(), set(ids)
    for info in there:
        if info.base_name != _UNFINISHED:
            try:
                part = parquet.read_table(info.path, columns=["image_id"], filesystem=files)
                found = part["image_id"].to_pylist()
            except (pa.ArrowException, OSError):  # writing it was interrupted
                files.delete_file(info.path)
                continue
            if not wanted.issuperset(found) or len(done) + len(found) != len(done.union(found)):
                raise InputError(f"{info.path} has duplicate or unknown images: delete it")
            done.update(found)
    return done


def _finish(files: FileSystem, folder: str, num_images: int) -> list[str]:
    """Mark the folder as finished; returns the reasons why images could not be read."""
    found = dataset.dataset(folder, schema=_SCHEMA, format="parquet", filesystem=files)
    if (count := found.count_rows()) != num_images:
        raise RuntimeError(f"{folder} has {count} rows, expected one for each of {num_images} images")
    errors = found.to_table(columns=["error"], filter=dataset.field("error").is_valid())
    unread = errors["error"].to_pylist()
    if len(unread) == num_images:
        files.delete_dir_contents(folder)
        raise InputError(f"none of {num_images} images can be read: {unread[0]}")
    files.delete_file(f"{folder}/{_UNFINISHED}")
    return unread
