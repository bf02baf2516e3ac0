import json
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.rle import encode
from maskx_d2.evaluation.pictures import ClassStyle, with_legend
from maskx_d2.inference.video import _open, predict_video

WIDTH, HEIGHT, RATE = 96, 65, 10


def write(path, *, frames=12):
    """A bright square that moves to the right by 4 pixels a frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT - 1, "yuv420p"
        stream.bit_rate = 2_000_000
        for number in range(frames):
            pixels = np.full((HEIGHT - 1, WIDTH, 3), 20, np.uint8)
            pixels[20:40, 4 * number : 4 * number + 20] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


class Detector:
    """Finds what is bright."""

    def __init__(self, stop_at=None):
        self.style = ClassStyle(names={1: "square"}, with_masks=frozenset())
        self.seen = []
        self.stop_at = stop_at

    def coco_results(self, images, image_ids):
        if self.stop_at in image_ids:
            raise KeyboardInterrupt
        self.seen += image_ids
        return [[self.result(np.asarray(i)[..., 0], n)] for i, n in zip(images, image_ids, strict=True)]

    def result(self, pixels, number):
        mask = pixels > 120
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]
        found = {"image_id": number, "category_id": 1, "bbox": box, "score": 0.9}
        return {**found, "segmentation": encode(mask)}


def frames_of(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("every", "batch_size"), [(1, 1), (3, 2), (5, 8)])
def test_frames_are_detected_on_timed_and_drawn(tmp_path, every, batch_size):
    video = write(tmp_path / "in.avi")
    detector = Detector()
    path = predict_video(detector, video, tmp_path / "out", every=every, batch_size=batch_size)
    numbers = list(range(0, 12, every))
    assert detector.seen == numbers
    lines = lines_of(path)
    assert [line["frame"] for line in lines] == numbers
    assert [line["time"] for line in lines] == pytest.approx([n / RATE for n in numbers])
    for line in lines:
        (found,) = line["detections"]
        assert found["bbox"] == pytest.approx([4 * line["frame"], 20, 20, 20], abs=2)
        assert found["image_id"] == line["frame"]
    drawn = frames_of(tmp_path / "out" / "in.mp4")
    # OpenCV writes frame rates of at most three decimals.
    assert [time for time, _ in drawn] == pytest.approx([n / RATE for n in numbers], rel=2e-4)
    width, height = with_legend(Image.new("RGB", (WIDTH, HEIGHT - 1))).size
    assert all(pixels.shape[:2] == (height + height % 2, width + width % 2) for _, pixels in drawn)
    for (_, pixels), number in zip(drawn, numbers, strict=True):
        red, _, blue = pixels[30, 4 * number + 10].astype(int)
        assert blue > red + 40  # the square is tinted
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["in.jsonl", "in.mp4"]


def test_a_run_that_goes_on_sees_what_is_left_and_ends_with_the_same_files(tmp_path):
    video = write(tmp_path / "in.mp4")
    expected = predict_video(Detector(), video, tmp_path / "through")
    with pytest.raises(KeyboardInterrupt):
        predict_video(Detector(stop_at=7), video, tmp_path / "out", model="a")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["in.jsonl.unfinished"]
    with pytest.raises(ValueError, match="belongs to a run with other inputs or options"):
        predict_video(Detector(), video, tmp_path / "out", model="b", resume=True)
    detector = Detector()
    path = predict_video(detector, video, tmp_path / "out", model="a", resume=True)
    assert detector.seen == [7, 8, 9, 10, 11]
    assert path.read_text() == expected.read_text()
    videos = [frames_of(tmp_path / folder / "in.mp4") for folder in ("through", "out")]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(*videos, strict=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frame": 3}, "it has frame 3 in place of 0"),
        ({"score": -1}, "Expected `float` >= 0"),
        ({"category_id": 5}, "a detection of image_id 0 and category_id 5 in image 0"),
        ({"segmentation": {"size": [1, 1], "counts": "01"}}, r"a mask of size \[1, 1\], expected \["),
    ],
)
def test_a_journal_that_this_command_cannot_have_written_is_named(tmp_path, changed, message):
    video = write(tmp_path / "in.mp4")
    with pytest.raises(KeyboardInterrupt):
        predict_video(Detector(stop_at=7), video, tmp_path / "out")
    path = tmp_path / "out" / "in.jsonl.unfinished"
    first, second, *others = path.read_text().splitlines()
    piece = json.loads(second)
    (piece if "frame" in changed else piece["detections"][0]).update(changed)
    path.write_text("\n".join([first, json.dumps(piece), *others, ""]))
    with pytest.raises(ValueError, match=rf"unfinished is not what this command writes: .*{message}"):
        predict_video(Detector(), video, tmp_path / "out", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.jsonl.unfinished"]


def test_what_is_no_video_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    write(tmp_path / "whole.avi")
    (tmp_path / "cut.avi").write_bytes((tmp_path / "whole.avi").read_bytes()[:300])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, message in (
        ("text.mp4", "text.mp4 cannot be read as a video: "),
        ("cut.avi", "cut.avi "),
        ("sound.mp4", "sound.mp4 cannot be read as a video: OpenCV finds no video stream"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_video(Detector(), tmp_path / name, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []
    message = r"whole.avi cannot be read as a video: it has \d+ x \d+ pixels, expected at most 0.0001 mega"
    with pytest.raises(ValueError, match=message):
        predict_video(Detector(), tmp_path / "whole.avi", tmp_path / "out", max_megapixels=0.0001)
    with pytest.raises(ValueError, match="would overwrite its input"):
        predict_video(Detector(), tmp_path / "text.mp4", tmp_path)


def pictures_and_times(path):
    """As PyAV, another reader, has them, upright."""
    with av.open(str(path)) as container:
        return [
            (np.asarray(frame.to_image().rotate(frame.rotation, expand=True)), frame.time)
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_frames_are_upright_and_at_their_own_times(tmp_path, quarter_turns):
    """Videos of phones are turned by the matrix of their track, and their frames do not come evenly."""
    path = tmp_path / "phone.mp4"
    ticks = [0, 3, 4, 9, 15, 16]
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for n, tick in enumerate(ticks):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:16, : 8 * (n + 1)] = [250, 40 * n, 0]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    matrix = struct.pack(">9i", *(v << 16 for v in (cosine, sine, 0, -sine, cosine, 0, 0, 0)), 1 << 30)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = matrix
    path.write_bytes(content)
    expected = pictures_and_times(path)
    assert [time for _, time in expected] == pytest.approx([tick / 30 for tick in ticks], abs=1e-3)
    assert expected[0][0].shape == ((64, 48, 3) if quarter_turns % 2 else (48, 64, 3))
    with _open(path, 50) as (frames, _, number):
        found = list(frames)
    assert number == len(found) == len(expected)
    for frame, (pixels, time) in zip(found, expected, strict=True):
        assert frame.seconds == pytest.approx(time, abs=1e-3)
        difference = np.asarray(frame.image).astype(int) - pixels
        assert np.abs(difference).mean() < 3


def test_a_video_that_is_not_written_whole_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    """OpenCV says nothing of a full disk."""
    real = cv2.VideoWriter

    class Full:
        def __init__(self, *arguments):
            self.writer, self.left = real(*arguments), 5

        def write(self, pixels):
            self.left -= 1
            if self.left > 0:
                self.writer.write(pixels)

        def release(self):
            self.writer.release()

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(InputError, match=r"in.mp4 does not have all 12 frames: is the disk full"):
        predict_video(Detector(), write(tmp_path / "in.avi"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in.jsonl.unfinished"]
