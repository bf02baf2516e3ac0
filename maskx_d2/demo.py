"""The demo: train on generated data with more classes than masks, evaluate, and show what came out."""

import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from maskx_d2.data import shapes
from maskx_d2.data.files import write_json
from maskx_d2.evaluation.pictures import ClassStyle, by_image, draw_side_by_side
from maskx_d2.evaluation.run_files import DETECTIONS_FILE, EVALUATION_FOLDER, RESULTS_FILE
from maskx_d2.evaluation.tables import Results, comparison_table
from maskx_d2.logs import log_to_file

_MARKER = ".maskx_demo"
_NUM_PICTURES = 12
_MIN_SCORE = 0.3
_RUNS = {"class_agnostic": "class-agnostic", "maskx": "Mask^X"}


@dataclass(frozen=True)
class Schedule:
    """How much data and training."""

    num_train: int = 2000
    num_test: int = 300
    stage1_iterations: int = 900
    stage2_iterations: int = 500


FULL = Schedule()
QUICK = Schedule(num_train=800, num_test=100, stage1_iterations=180, stage2_iterations=120)


@dataclass(frozen=True)
class Run:
    """A training of the demo."""

    name: str
    """``"stage1"``, the detector, or on it the mask heads ``"class_agnostic"`` and ``"maskx"``."""

    title: str
    """For the progress bar."""

    folder: Path
    dataset: shapes.ShapesDataset
    iterations: int
    seed: int

    detector: Path | None = None
    """The weights that stage 1 has left, for the others."""


class Host(Protocol):
    """What the demo needs of a host: its module ``demo``."""

    COCO_COMMAND: str
    """The command that trains on COCO."""

    def train(self, run: Run) -> Path:
        """
        Train; after stage 1 evaluate too. It leaves its files in the run's folder.

        Returns:
            The path of the weights.
        """

    def predict_options(self, folder: Path) -> str:
        """Options of ``maskx predict`` that name the model of a run."""


def run_demo(output: Path, *, host: Host, seed: int = 0, schedule: Schedule = FULL) -> dict[str, Results]:
    """
    Generate the dataset, train stage 1 once and the mask head twice (class-agnostic and Mask^X),
    evaluate both, print the table, and write ``results.json`` and pictures.

    Args:
        output: a folder that is new, empty, or of an earlier demo, whose content is replaced.
        host: what to train with.
        seed: of the data and the training.
        schedule: how much of both.

    Returns:
        What ``results.json`` holds: ``{"class_agnostic"|"maskx": {"segm"|"bbox": {"A"|"B"|"all":
        {metric: value}}}}``.
    """
    _prepare(output)
    dataset = shapes.generate(
        output / "dataset",
        num_train=schedule.num_train,
        num_test=schedule.num_test,
        seed=seed,
        progress=partial(tqdm, desc="1/4 dataset", unit="image"),
    )

    def train(name: str, title: str, iterations: int, detector: Path | None = None) -> Path:
        run = Run(name, title, output / name, dataset, iterations, seed, detector)
        with log_to_file(run.folder / "log.txt"):
            return host.train(run)

    detector = train("stage1", "2/4 boxes of all classes", schedule.stage1_iterations)
    for step, (name, title) in zip((3, 4), _RUNS.items(), strict=True):
        train(name, f"{step}/4 masks, {title}", schedule.stage2_iterations, detector)
    results = {
        name: json.loads((output / name / EVALUATION_FOLDER / RESULTS_FILE).read_text()) for name in _RUNS
    }
    write_json(output / "results.json", results)
    _draw(dataset, output)
    print(_summary(results, output, host))
    return results


def _prepare(output: Path) -> None:
    """Leave nothing of an earlier demo, and touch nothing else."""
    marker = output / _MARKER
    if output.exists() and not marker.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} holds other things than an earlier demo: give a new folder by --output")
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    for part in ("dataset", "stage1", *_RUNS, "pictures"):
        shutil.rmtree(output / part, ignore_errors=True)
    (output / "results.json").unlink(missing_ok=True)


def _draw(dataset: shapes.ShapesDataset, output: Path) -> None:
    """Pictures with pairs in them: ground truth, class-agnostic and Mask^X side by side."""
    truth = json.loads(dataset.test_json.read_text())
    names = {category["id"]: category["name"] for category in truth["categories"]}
    boxes_only = {i for i, name in names.items() if name in shapes.BOXES_ONLY}
    style = ClassStyle(names=names, with_masks=frozenset(set(names) - boxes_only))
    found: dict[str, dict[int, list[dict]]] = {"ground truth": by_image(truth["annotations"])}
    for name, title in _RUNS.items():
        results = json.loads((output / name / EVALUATION_FOLDER / DETECTIONS_FILE).read_text())
        found[title] = by_image([d for d in results if d["score"] >= _MIN_SCORE])
    folder = output / "pictures"
    folder.mkdir()
    # First the images with most objects of B: those are what the two runs differ on.
    num_boxes_only = {
        image_id: sum(a["category_id"] in boxes_only for a in annotations)
        for image_id, annotations in found["ground truth"].items()
    }
    order = sorted(truth["images"], key=lambda image: -num_boxes_only.get(image["id"], 0))
    for image in order[:_NUM_PICTURES]:
        picture = Image.open(dataset.test_images / image["file_name"])
        of_image = {title: results.get(image["id"], []) for title, results in found.items()}
        draw_side_by_side(picture, of_image, style, scale=3).save(folder / image["file_name"])


def _summary(results: dict[str, Results], output: Path, host: Host) -> str:
    mask_ap = {name: results[name]["segm"]["B"]["AP"] for name in _RUNS}
    gain = mask_ap["maskx"] - mask_ap["class_agnostic"]
    table = comparison_table({title: results[name] for name, title in _RUNS.items()})
    return f"""
{table}

A: {len(shapes.CLASS_NAMES) - len(shapes.BOXES_ONLY)} classes trained with masks.  \
B: {len(shapes.BOXES_ONLY)} classes trained with boxes only.
On B, Mask^X is {gain:+.1f} mask AP against the class-agnostic baseline.

Pictures, both results side by side:  {output / "pictures"}
All figures:                          {output / "results.json"}
Weights, logs, TensorBoard:           {output}/stage1, {", ".join(f"{output}/{name}" for name in _RUNS)}

Next: look at any image,
  maskx predict {host.predict_options(output / "maskx")} \\
      {output}/dataset/test --output {output}/predictions
or train on COCO (datasets/README.md tells where to put it),
  {host.COCO_COMMAND}
"""
