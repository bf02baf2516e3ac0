"""Detecting objects in videos: writes a video with the detections, and a line of JSON for each frame."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, file_digest, replacing
from maskx_d2.data.images import MAX_MEGAPIXELS, check_size
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import draw_detections, with_legend
from maskx_d2.inference.detector import Detector
from maskx_d2.inference.predict import FoundObjects, short_stem
from maskx_d2.runtime.journal import Journal, open_journal

if TYPE_CHECKING:
    import cv2

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_USUAL_RATE = Fraction(25)  # of a video that does not have it
_FASTEST, _LONGEST = 1000, 10**8  # frames per second, frames: beyond these OpenCV has misread a file


@dataclass(frozen=True)
class Frame:
    """A frame of a video."""

    number: int
    """The first is 0."""

    seconds: float
    """Since the start of the video."""

    image: Image.Image


class _Done(msgspec.Struct):
    """A frame in the journal of a run that is resumed."""

    frame: int


class _DoneWithObjects(FoundObjects, kw_only=True):
    frame: int


def predict_video(
    detector: Detector,
    video: Path,
    output: Path,
    *,
    model: object = None,
    every: int = 1,
    min_score: float = 0.5,
    top: int | None = None,
    merge_iou: float | None = None,
    batch_size: int = 1,
    resume: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    progress: Callable[..., Iterable] = lambda frames, total: frames,
) -> Path:
    """
    Detect objects in the frames of a video. Writes ``NAME.mp4``, with the detections drawn, and
    ``NAME.jsonl``, with a line for each frame: its number, its time in seconds, and its detections in
    COCO's results format, in which ``image_id`` is the number of the frame.

    Args:
        detector: the model.
        video: the video file.
        output: output folder, created if necessary.
        model: JSON values that identify the model, for runs that are resumed.
        every: process every Nth frame.
        min_score, top, merge_iou, batch_size: see :func:`maskx_d2.inference.predict.predict`.
        resume: continue an interrupted run with the same video, model, ``every`` and ``min_score``. The
            model does not see the finished frames again.
        max_megapixels: videos with larger frames are refused.
        progress: wraps the frames, as ``tqdm`` does, with their number as ``total`` if it is known.

    Returns:
        The path of ``NAME.jsonl``.

    Raises:
        ValueError: the file cannot be read as a video, or the output cannot be written.
    """
    drawn_path, lines_path = output / f"{short_stem(video)}.mp4", output / f"{short_stem(video)}.jsonl"
    unfinished = lines_path.with_name(f"{lines_path.name}.unfinished")
    check_keeps_inputs([drawn_path, lines_path], [video])
    output.mkdir(parents=True, exist_ok=True)
    for path in (drawn_path, lines_path, unfinished):
        check_replaceable(path)
        if path != unfinished or not resume:
            path.unlink(missing_ok=True)
    work = {"video": file_digest(video), "model": model, "every": every, "min_score": min_score}

    def drawn(frame: Frame, detections: Sequence[dict]) -> Image.Image:
        shown = readable_detections(detections, len(detector.style.names), top=top, merge_iou=merge_iou)
        drawn = draw_detections(frame.image, shown, detector.style)
        return with_legend(drawn, detector.style)

    with (
        _open(video, max_megapixels) as (all_frames, rate, number),
        open_journal(unfinished, work=work, kind=_Done) as journal,
    ):
        with (
            replacing(drawn_path) as temporary,
            _writer(temporary, rate / every, shown_as=drawn_path) as write,
        ):
            total = -(-number // every) if number else None
            frames = iter(progress(islice(all_frames, 0, None, every), total=total))
            # Frames of the interrupted run are drawn again, from their recorded detections.
            pieces = zip(journal.pieces(_DoneWithObjects), journal.pieces(), frames, strict=False)
            for checked, piece, frame in islice(pieces, len(journal.done)):
                _check(checked, frame, journal, detector)
                write(drawn(frame, piece["detections"]))
            while batch := list(islice(frames, batch_size)):
                results = detector.coco_results([f.image for f in batch], [f.number for f in batch])
                for frame, detections in zip(batch, results, strict=True):
                    found = [d for d in detections if d["score"] >= min_score]
                    write(drawn(frame, found))
                    seconds = round(frame.seconds, 6)
                    journal.append({"frame": frame.number, "time": seconds, "detections": found})
        _write_lines(lines_path, journal)
    journal.delete()
    return lines_path


def _check(done: _DoneWithObjects, frame: Frame, journal: Journal, detector: Detector) -> None:
    size = [frame.image.height, frame.image.width]
    if done.frame != frame.number:
        raise journal.refusal(f"it has frame {done.frame} in place of {frame.number}")
    try:
        done.check(frame.number, detector.style.names, size=size)
    except ValueError as error:
        raise journal.refusal(error) from error


def _write_lines(path: Path, journal: Journal) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for of_frame in journal.pieces():
            file.write(json.dumps(of_frame) + "\n")


@contextmanager
def _open(path: Path, max_megapixels: float) -> Iterator[tuple[Iterator[Frame], Fraction, int]]:
    """Frames of a video, frames per second, and their number if the file has it, else 0."""
    cv2 = _import_opencv()
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise InputError(f"{path} cannot be read as a video: OpenCV finds no video stream in it")
        width, height, rate, number = (
            video.get(name)
            for name in (
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_COUNT,
            )
        )
        try:
            check_size((int(width), int(height)), max_megapixels)
        except InputError as error:
            raise InputError(f"{path} cannot be read as a video: {error}") from error
        fraction = Fraction(rate).limit_denominator(1001) if 0 < rate < _FASTEST else _USUAL_RATE
        yield _frames(path, video), fraction, int(number) if 0 < number < _LONGEST else 0
    finally:
        video.release()


def _frames(path: Path, video: "cv2.VideoCapture") -> Iterator[Frame]:
    """OpenCV has turned them upright."""
    cv2 = _import_opencv()
    number = 0
    while True:
        is_there, pixels = video.read()
        if not is_there:
            break
        seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        yield Frame(number, seconds, Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)))
        number += 1
    if number == 0:
        raise InputError(f"{path} has no frame, expected a video")


@contextmanager
def _writer(path: Path, rate: Fraction, *, shown_as: Path) -> Iterator[Callable[[Image.Image], None]]:
    """Writes pictures of one size as a video in MPEG-4, which every build of OpenCV can."""
    cv2 = _import_opencv()
    with_suffix = path.with_name(f"{path.name}.mp4")  # by which OpenCV chooses the format
    video, size, number = None, (0, 0), 0

    def write(picture: Image.Image) -> None:
        nonlocal video, size, number
        if video is None:
            size = (picture.width + picture.width % 2, picture.height + picture.height % 2)
            code = cv2.VideoWriter_fourcc(*"mp4v")
            video = cv2.VideoWriter(str(with_suffix), cv2.CAP_FFMPEG, code, float(rate), size)
        even = picture.crop((0, 0, *size))
        video.write(cv2.cvtColor(np.asarray(even), cv2.COLOR_RGB2BGR))
        number += 1

    try:
        yield write
        if video is not None:
            video.release()
            # OpenCV says nothing of what it cannot write.
            written = cv2.VideoCapture(str(with_suffix), cv2.CAP_FFMPEG)
            num_written = round(written.get(cv2.CAP_PROP_FRAME_COUNT))
            written.release()
            if num_written != number:
                raise InputError(f"{shown_as} does not have all {number} frames: is the disk full?")
            os.replace(with_suffix, path)
    finally:
        if video is not None:
            video.release()
        with_suffix.unlink(missing_ok=True)


def _import_opencv():
    # OpenCV and FFmpeg would write to the screen what they find wrong with a file.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    import cv2

    return cv2
