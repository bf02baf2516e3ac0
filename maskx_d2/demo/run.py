"""The demo: train on generated data in which some classes have no masks, evaluate, and show the results."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image
from tqdm import tqdm

from maskx_d2.data.errors import InputError
from maskx_d2.data.files import load_json, write_json, write_png
from maskx_d2.demo import shapes
from maskx_d2.demo.generated_dataset import GeneratedDataset
from maskx_d2.evaluation.pictures import ClassStyle, by_image, draw_side_by_side
from maskx_d2.evaluation.run_files import DETECTIONS_FILE, EVALUATION_FOLDER, RESULTS_FILE, log_file
from maskx_d2.evaluation.tables import Results, gain_table, mean_and_deviation
from maskx_d2.runtime.lock import is_empty
from maskx_d2.runtime.logs import log_to_file

_MARKER = ".maskx_demo"
_NUM_PICTURES = 12
_MIN_SCORE = 0.3
BASELINE = "class_agnostic"
ROWS = {
    BASELINE: "class-agnostic",
    "maskx_as_in_the_paper": "Mask^X as in the paper",
    "maskx": "Mask^X",
    "maskx_box_supervised": "Mask^X, box-supervised",
    "oracle": "oracle",
}
"""The mask heads and their titles; the second is trained only on request."""


@dataclass(frozen=True)
class Schedule:
    """The amount of data and training."""

    num_train: int = 2000
    num_test: int = 300
    stage1_iterations: int = 600
    stage2_iterations: int = 500


FULL = Schedule()
QUICK = Schedule(num_train=700, num_test=50, stage1_iterations=160, stage2_iterations=90)


class FrozenFeatures:
    """
    Features of a frozen backbone, cached for the next mask head on it: with the same seed, all mask heads
    see the same images in the same order, and the backbone is half of the work.
    """

    def __init__(self) -> None:
        self._of_images: dict[bytes, object] = {}

    def remember(self, forward: Callable) -> Callable:
        """
        Args:
            forward: method of a backbone, from a CPU tensor of images to features that are not modified.

        Returns:
            The same method, which computes the features of equal images only once.
        """

        def remembered(images):
            key = hashlib.sha256(images.contiguous().numpy()).digest()
            if key not in self._of_images:
                self._of_images[key] = forward(images)
            return self._of_images[key]

        return remembered


@dataclass(frozen=True)
class Training:
    """One training run of the demo."""

    name: str
    """``"stage1"`` for the detector, or a key of :data:`ROWS` for a mask head on it."""

    title: str
    """For the progress bar."""

    folder: Path
    dataset: GeneratedDataset
    iterations: int
    seed: int

    detector: Path | None = None
    """The weights of stage 1, for the mask heads."""

    frozen_features: FrozenFeatures = field(default_factory=FrozenFeatures)
    """Features of that detector, shared by the mask heads on it."""

    @property
    def train_json(self) -> Path:
        """The annotations; those of the oracle have all masks."""
        return self.dataset.all_masks_json if self.name == "oracle" else self.dataset.train_json

    @property
    def classes_with_masks(self) -> str:
        """The split that says whose masks are used in training."""
        return "all" if self.name == "oracle" else str(self.dataset.split_file.resolve())

    @property
    def box_supervision_start(self) -> int:
        """Iterations before box supervision starts, 2 in 5. In the next 1 in 5, its weights rise."""
        return self.iterations * 2 // 5

    @property
    def box_supervision_warmup(self) -> int:
        return self.iterations // 5


class Backend(Protocol):
    """What the demo needs from a backend, as in the modules ``on_detectron2`` and ``on_torchvision``."""

    COCO_COMMAND: str
    """The command that trains on COCO."""

    def train(self, run: Training) -> Path:
        """
        Train and, except in stage 1, evaluate. All files are written to the run's folder.

        Returns:
            The path of the weights.
        """

    def predict_options(self, folder: Path) -> str:
        """Options of ``maskx predict`` that name the model of a run."""


def run_demo(
    output: Path,
    *,
    backend: Backend,
    seeds: Sequence[int] = (0,),
    schedule: Schedule = FULL,
    paper: bool = False,
) -> None:
    """
    For each seed, generate the dataset, train stage 1 once and the mask heads of :data:`ROWS` on it,
    evaluate them, print the table, and write ``results.json`` and pictures. With several seeds, each has a
    folder ``seed_N``.

    ``results.json`` holds ``{row: {"segm"|"bbox": {"A"|"B"|"all": {metric: value}}}}``. With several seeds,
    the values are means, and ``standard_deviations.json`` is written beside it.

    Args:
        output: a new or empty folder, or the folder of an earlier demo, which is replaced.
        backend: the backend to train with.
        seeds: random seeds of the data and the training.
        schedule: the amount of data and training.
        paper: whether to also train Mask^X as in the paper.
    """
    _prepare(output)
    if len(seeds) == 1:
        results = _run_seed(output, backend=backend, seed=seeds[0], schedule=schedule, paper=paper)
        print(_summary(results, output, backend))
        return
    of_seeds = []
    for seed in seeds:
        folder = output / f"seed_{seed}"
        folder.mkdir()
        of_seeds.append(_run_seed(folder, backend=backend, seed=seed, schedule=schedule, paper=paper))
        print(f"\nSeed {seed}\n\n{_table([of_seeds[-1]])}", flush=True)
    mean, deviation = mean_and_deviation(of_seeds)
    write_json(output / "results.json", mean)
    write_json(output / "standard_deviations.json", deviation)
    print(f"\nMean ± standard deviation of {len(seeds)} seeds\n\n{_table(of_seeds)}\n")
    print(f"Pictures, weights and logs of each:  {output}/seed_{seeds[0]} ...")
    print(f"All figures:                         {output / 'results.json'}")


def best_model(output: Path) -> Path | None:
    """
    The folder of the mask head with the highest mask AP on B, except the oracle, which was trained with
    masks of B.

    Args:
        output: output folder of :func:`run_demo`; with several seeds, the first is used.

    Returns:
        None if no demo was run there, or it was not finished.
    """
    for folder in (output, *sorted(output.glob("seed_*"))):
        results = folder / "results.json"
        if (folder / "stage1").is_dir() and results.is_file():
            on_b = {name: r["segm"]["B"]["AP"] for name, r in load_json(results, what="results").items()}
            return folder / max(on_b.keys() - {"oracle"}, key=on_b.get)
    return None


def _run_seed(
    output: Path, *, backend: Backend, seed: int, schedule: Schedule, paper: bool
) -> dict[str, Results]:
    names = [name for name in ROWS if paper or name != "maskx_as_in_the_paper"]
    num_steps = len(names) + 2
    dataset = shapes.generate(
        output / "dataset",
        num_train=schedule.num_train,
        num_test=schedule.num_test,
        seed=seed,
        progress=partial(tqdm, desc=f"1/{num_steps} dataset", unit="image"),
    )

    frozen_features = FrozenFeatures()

    def train(step: int, name: str, title: str, iterations: int, detector: Path | None = None) -> Path:
        run = Training(
            name=name,
            title=f"{step}/{num_steps} {title}",
            folder=output / name,
            dataset=dataset,
            iterations=iterations,
            seed=seed,
            detector=detector,
            frozen_features=frozen_features,
        )
        with log_to_file(log_file(run.folder)):
            return backend.train(run)

    detector = train(2, "stage1", "boxes of all classes", schedule.stage1_iterations)
    for step, name in enumerate(names, start=3):
        train(step, name, f"masks, {ROWS[name]}", schedule.stage2_iterations, detector)
    results = {
        name: json.loads((output / name / EVALUATION_FOLDER / RESULTS_FILE).read_text()) for name in names
    }
    write_json(output / "results.json", results)
    _draw(dataset, output, names)
    return results


def _prepare(output: Path) -> None:
    """Remove everything of an earlier demo, and nothing else."""
    marker = output / _MARKER
    if not marker.exists() and not is_empty(output):
        raise InputError(f"{output} holds files that are not from a demo: give a new folder with --output")
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    parts = [output / part for part in ("dataset", "stage1", *ROWS, "pictures")]
    for part in [*parts, *output.glob("seed_*")]:
        shutil.rmtree(part, ignore_errors=True)
    for name in ("results.json", "standard_deviations.json"):
        (output / name).unlink(missing_ok=True)


def _draw(dataset: GeneratedDataset, output: Path, names: Sequence[str]) -> None:
    """Draw the ground truth and the detections of each mask head side by side."""
    truth = json.loads(dataset.test_json.read_text())
    categories = {category["id"]: category["name"] for category in truth["categories"]}
    boxes_only = {i for i, name in categories.items() if name in shapes.BOXES_ONLY}
    style = ClassStyle(names=categories, with_masks=frozenset(set(categories) - boxes_only))
    found: dict[str, dict[int, list[dict]]] = {"ground truth": by_image(truth["annotations"])}
    for name in names:
        results = json.loads((output / name / EVALUATION_FOLDER / DETECTIONS_FILE).read_text())
        found[ROWS[name]] = by_image([d for d in results if d["score"] >= _MIN_SCORE])
    folder = output / "pictures"
    folder.mkdir()
    # First the images with the most objects of B, on which the mask heads differ.
    num_boxes_only = {
        image_id: sum(a["category_id"] in boxes_only for a in annotations)
        for image_id, annotations in found["ground truth"].items()
    }
    order = sorted(truth["images"], key=lambda image: -num_boxes_only.get(image["id"], 0))
    for image in order[:_NUM_PICTURES]:
        picture = Image.open(dataset.test_images / image["file_name"])
        of_image = {title: results.get(image["id"], []) for title, results in found.items()}
        write_png(folder / image["file_name"], draw_side_by_side(picture, of_image, style, scale=3))


def _table(of_seeds: Sequence[dict[str, Results]]) -> str:
    names = list(of_seeds[0])
    return gain_table([{ROWS[name]: results[name] for name in names} for results in of_seeds])


def _summary(results: dict[str, Results], output: Path, backend: Backend) -> str:
    boxes = results["maskx"]["bbox"]
    return f"""
{_table([results])}

A: {len(shapes.CLASS_NAMES) - len(shapes.BOXES_ONLY)} classes trained with masks.  \
B: {len(shapes.BOXES_ONLY)} classes trained with boxes only.  \
The oracle was trained with all masks.
All rows share one detector, whose box AP is {boxes["A"]["AP"]:.1f} on A and {boxes["B"]["AP"]:.1f} on B.
Mask^X uses embedding dropout, and its box-supervised form also has losses for boxes without masks: neither
is in the paper. With --paper, the demo also trains the paper's own form.

Pictures, all results side by side:  {output / "pictures"}
All figures:                         {output / "results.json"}
Weights, logs, TensorBoard:          {output}/stage1, {", ".join(f"{output}/{name}" for name in results)}

Next: look at any image,
  maskx predict {backend.predict_options(output / "maskx_box_supervised")} \\
      {output}/dataset/test --output {output}/predictions
or find out which recipe is right, from the classes with masks alone,
  maskx cross-validate {output}/dataset/annotations/train.json {output}/dataset/train \\
      {backend.predict_options(output / "stage1")}
or train on COCO (datasets/README.md says where to put it),
  {backend.COCO_COMMAND}
"""
