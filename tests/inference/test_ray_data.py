import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from maskx_d2.inference import ray_data as on_ray
from maskx_d2.inference.fill_masks import fill_masks
from maskx_d2.inference.predict import find_images, predict

from .ray_detectors import killed_once, two_cpus

NUM_IMAGES = 100


def make_detector(breaks_after: Path | None = None, slow: float = 0):
    """
    What it finds depends on the pixels alone. Made here, so that other processes get its code with it.

    Args:
        breaks_after: it raises an error, but not before there is a whole file in this folder.
        slow: seconds that it takes before the first image.
    """
    import pycocotools.mask as mask_util
    from pyarrow import ArrowInvalid

    from maskx_d2.evaluation.pictures import ClassStyle
    from maskx_d2.inference import detector
    from maskx_d2.inference.detector import PredictedMask

    class Detector(detector.Detector):
        style = ClassStyle(names={1: "cat", 9: "hen"}, with_masks=frozenset({1}))

        def to(self, device):
            time.sleep(slow)
            return self

        def see(self, image):
            value = int(np.asarray(image)[0, 0, 0])
            if breaks_after and value == NUM_IMAGES - 2:
                while not any(map(self.is_whole, breaks_after.glob("*.parquet"))):
                    time.sleep(0.1)
                raise RuntimeError("broken by the test")
            return value

        @staticmethod
        def is_whole(path):
            try:
                return parquet.read_metadata(path).num_rows > 0
            except ArrowInvalid:  # it is being written, or writing it was interrupted
                return False

        def rle(self, image, box):
            mask = np.zeros((image.height, image.width), np.uint8, order="F")
            x0, y0, x1, y1 = map(int, box)
            mask[y0:y1, x0:x1] = 1
            rle = mask_util.encode(mask)
            return {"size": list(rle["size"]), "counts": rle["counts"].decode()}

        def coco_results(self, images, image_ids):
            results = []
            for image, image_id in zip(images, image_ids, strict=True):
                value = self.see(image)
                results.append(
                    [
                        {
                            "image_id": image_id,
                            "category_id": (1, 9)[i % 2],
                            "bbox": [i + 0.1, i / 3, 10.0, 5.0],
                            "score": (value + i) / 300,
                            "segmentation": self.rle(image, [i, i, i + 10, i + 5]),
                        }
                        for i in range(value % 4)
                    ]
                )
            return results

        def masks_in_boxes(self, images, objects):
            found = []
            for image, known in zip(images, objects, strict=True):
                value = self.see(image)
                found.append(
                    [
                        PredictedMask(self.rle(image, box), (value + i) / 300)
                        for i, box in enumerate(known.boxes)
                    ]
                )
            return found

    return Detector()


@pytest.fixture(scope="module", autouse=True)
def begun(tmp_path_factory):
    """Here, so that it is begun once for all tests; the commands' tests begin their own."""
    with two_cpus(tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Of several sizes; the last two cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(1, NUM_IMAGES - 1):
        pixels = np.full((40 + i % 3, 50, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / f"{NUM_IMAGES - 1}.png").write_text("no image")
    (folder / f"{NUM_IMAGES}.png").touch()
    return folder


def rows(output):
    return parquet.read_table(output / "detections").to_pylist()


def detections(output):
    """As they are in COCO's results format."""
    names = make_detector().style.names
    found = []
    for row in rows(output):
        for detection in row["detections"]:
            assert detection.pop("category_name") == names[detection["category_id"]]
            more = {"image_id": row["image_id"], "file_name": Path(row["path"]).name}
            found.append({**detection, **more})
    return found


def in_order(found):
    return sorted(found, key=lambda d: (d["image_id"], d["bbox"]))


def test_a_run_whose_worker_is_killed_finds_what_one_without_ray_finds(images, tmp_path):
    paths = find_images([images])
    unread = {}
    plain = predict(
        make_detector(),
        paths,
        tmp_path / "plain",
        min_score=0.2,
        passed_over=lambda path, error: unread.update({str(path): str(error)}),
    )
    expected = json.loads(plain.read_text())
    assert len(expected) > 50 and len(unread) == 2
    killed = tmp_path / "killed"
    errors = on_ray.predict_on_ray(
        killed_once(make_detector(), killed),
        on_ray.find_images([str(images)]),
        str(tmp_path / "ray"),
        min_score=0.2,
        batch_size=3,
    )
    assert killed.exists()
    assert sorted(errors) == sorted(unread.values())
    found = rows(tmp_path / "ray")
    assert sorted(row["path"] for row in found) == sorted(map(str, paths))
    assert {row["path"]: row["error"] for row in found if row["error"]} == unread
    sizes = {row["path"]: (row["width"], row["height"]) for row in found if not row["error"]}
    assert sizes == {str(p): Image.open(p).size for p in paths if str(p) not in unread}
    assert in_order(detections(tmp_path / "ray")) == in_order(expected)


@pytest.fixture
def annotations(images, tmp_path):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 50, "height": 40 + i % 3}
            for i in range(1, NUM_IMAGES + 1)
        ],
        "annotations": [
            {"id": 10 * i + j, "image_id": i, "category_id": 5, "bbox": [j, j, 20.5, 10 + j], "iscrowd": 0}
            for i in range(1, NUM_IMAGES + 1)
            for j in range(i % 4)
        ],
        "categories": [{"id": 5, "name": "hen"}],
    }
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def test_masks_are_filled_in_as_without_ray_though_a_worker_is_killed(images, annotations, tmp_path):
    plain = fill_masks(make_detector(), annotations, images, tmp_path / "plain.json", model="a")
    killed = tmp_path / "killed"
    filled = fill_masks(
        killed_once(make_detector(), killed),
        annotations,
        images.as_uri(),
        tmp_path / "ray.json",
        model="a",
        find_masks=partial(on_ray.find_masks_on_ray, batch_size=3),
    )
    assert killed.exists()
    assert (tmp_path / "ray.json").read_text() == (tmp_path / "plain.json").read_text()
    assert filled.num_filled == plain.num_filled > 100 and filled.left == plain.left
    assert len(filled.passed_over) == len(plain.passed_over) == 1


def test_a_run_that_was_interrupted_goes_on_and_has_every_image_once(images, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_IMAGES_OF_A_TASK", 20)
    paths = on_ray.find_images([images.as_uri()])
    folder = tmp_path / "out" / "detections"
    run = partial(on_ray.predict_on_ray, images=paths, output=(tmp_path / "out").as_uri(), min_score=0.2)
    with pytest.raises(Exception, match="broken by the test"):
        run(broken := make_detector(breaks_after=folder), model="a")
    written = {path: path.stat().st_mtime_ns for path in filter(broken.is_whole, folder.glob("*.parquet"))}
    assert 0 < sum(map(len, map(parquet.read_table, written))) < NUM_IMAGES
    (folder / "half.parquet").write_bytes(next(iter(written)).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"out/detections belongs to a run with other inputs or options"):
        run(make_detector(), model="b", resume=True)
    twice = folder / "twice.parquet"
    twice.write_bytes(next(iter(written)).read_bytes())
    with pytest.raises(ValueError, match=r"parquet has duplicate or unknown images: delete it"):
        run(make_detector(), model="a", resume=True)
    twice.unlink()
    assert len(run(make_detector(), model="a", resume=True)) == 2
    assert sorted(row["path"] for row in rows(tmp_path / "out")) == sorted(paths)
    assert written.items() <= {path: path.stat().st_mtime_ns for path in folder.iterdir()}.items()
    assert not list(folder.glob("_*")) and not (folder / "half.parquet").exists()


def test_what_is_in_the_way_of_the_output_is_kept(images, tmp_path):
    (tmp_path / "out" / "detections").mkdir(parents=True)
    (tmp_path / "out" / "detections" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"detections/mine.txt is not from this command.*another --output"):
        on_ray.predict_on_ray(make_detector(), on_ray.find_images([str(images)]), str(tmp_path / "out"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"Cannot create directory .*file/detections"):
        on_ray.predict_on_ray(make_detector(), on_ray.find_images([str(images)]), str(tmp_path / "file"))
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"mine.txt", "file"}


def test_of_images_that_cannot_be_read_at_all_nothing_is_left(images, tmp_path):
    broken = [str(images / f"{NUM_IMAGES}.png")]
    older = tmp_path / "out" / "detections" / "older.parquet"
    older.parent.mkdir(parents=True)
    older.touch()  # without --resume what is there goes first
    with pytest.raises(ValueError, match=r"none of 1 images can be read: .*100.png cannot be read as an"):
        on_ray.predict_on_ray(make_detector(), broken, str(tmp_path / "out"))
    assert not list((tmp_path / "out" / "detections").iterdir())


def test_progress_is_passed_on_and_silence_is_broken(images, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, "_SILENCE", 1)
    steps, said = [], []
    paths = on_ray.find_images([str(images)])
    on_ray.predict_on_ray(
        make_detector(slow=2.5), paths, str(tmp_path / "out"), progress=steps.append, waiting=said.append
    )
    assert sum(steps) == len(paths)
    assert said and all("no image has been done for 1 seconds: Ray has " in line for line in said)
    assert " cores, " in said[0] and " of memory and " in said[0]


def test_ray_writes_nothing_of_its_own(images, tmp_path):
    """In a process of its own, as a command runs it."""
    code = (
        "import sys\n"
        "from tests.inference.test_ray_data import make_detector\n"
        "from maskx_d2.inference import ray_data\n"
        f"paths = ray_data.find_images([{str(images)!r}])\n"
        f"ray_data.predict_on_ray(make_detector(), paths, {str(tmp_path)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
