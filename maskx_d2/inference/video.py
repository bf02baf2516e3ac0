"""Masks, names and scores in videos: a video with them drawn, and a line of JSON for each frame."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import msgspec
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, file_digest, replacing
from maskx_d2.data.images import MAX_MEGAPIXELS, check_size
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import draw_detections, with_legend
from maskx_d2.inference.detector import Detector
from maskx_d2.inference.predict import FoundObjects
from maskx_d2.runtime.journal import Journal, open_journal

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_USUAL_RATE = Fraction(25)  # of a video that does not say it


@dataclass(frozen=True)
class Frame:
    """Of a video."""

    number: int
    """The first is 0."""

    seconds: float
    """Since the start of the video."""

    image: Image.Image


class _Done(msgspec.Struct):
    """What the journal says of a frame, when a run goes on."""

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
    Detect on the frames of a video. Writes ``NAME.mp4``, with what is found drawn, and ``NAME.jsonl``, a
    line for each frame: its number, its time in seconds, and detections in COCO's results format, of which
    ``image_id`` is the number of the frame.

    Args:
        detector: the model.
        video: its file.
        output: a folder that is made if need be.
        model: what tells the model from others, as JSON has it, for a run that is gone on with.
        every: of so many frames take one.
        min_score, top, merge_iou, batch_size: see :func:`maskx_d2.inference.predict.predict`.
        resume: go on with what an interrupted run with the same video, model, ``every`` and ``min_score``
            has left: the model does not see these frames again.
        max_megapixels: videos of larger frames cannot be read.
        progress: wraps the frames, as ``tqdm`` does, with their number if the video says it.

    Returns:
        The path of the lines.

    Raises:
        ValueError: it cannot be read as a video, or something is in the way of the output.
    """
    drawn_path, lines_path = output / f"{video.stem}.mp4", output / f"{video.stem}.jsonl"
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
        return with_legend(draw_detections(frame.image, shown, detector.style))

    with (
        _open(video, max_megapixels) as (all_frames, rate, number),
        open_journal(unfinished, work=work, kind=_Done) as journal,
        replacing(drawn_path) as temporary,
        _writer(temporary, rate / every) as write,
    ):
        total = -(-number // every) if number else None
        frames = iter(progress(islice(all_frames, 0, None, every), total=total))
        # The frames of an earlier start are drawn anew, by what was found in them.
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
    """Frames of a video, frames a second, and their number if the file says it, else 0."""
    import av

    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise InputError(f"{path} cannot be read as a video: {error.strerror}") from error
    with container:
        if not container.streams.video:
            raise InputError(f"{path} cannot be read as a video: it has no picture")
        stream = container.streams.video[0]
        try:
            check_size((stream.width, stream.height), max_megapixels)
        except ValueError as error:
            raise InputError(f"{path} cannot be read as a video: {error}") from error
        stream.thread_type = "AUTO"
        yield _frames(path, container, stream), stream.average_rate or _USUAL_RATE, stream.frames


def _frames(path: Path, container, stream) -> Iterator[Frame]:
    import av

    number = 0
    try:
        for frame in container.decode(stream):
            image = frame.to_image()
            if frame.rotation:
                image = image.rotate(frame.rotation, expand=True)
            yield Frame(number, frame.time if frame.time is not None else 0.0, image)
            number += 1
    except av.FFmpegError as error:
        raise InputError(
            f"{path} cannot be read as a video behind frame {number}: {error.strerror}"
        ) from error
    if number == 0:
        raise InputError(f"{path} has no frame, expected a video")


@contextmanager
def _writer(path: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """Writes pictures of one size as a video in H.264."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(rate).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"

        def write(picture: Image.Image) -> None:
            if not stream.codec_context.is_open:
                # It wants even sides.
                stream.width, stream.height = (side + side % 2 for side in picture.size)
            even = picture.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))

        yield write
        container.mux(stream.encode())
