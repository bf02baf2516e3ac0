#!/usr/bin/env python3
"""
What each ingredient adds on classes with masks (A) and on classes without (B): mask AP of mask heads that
are trained on the same frozen detectors, over several seeds.

A detector is trained for each dataset and seed, as the demo does on torchvision. What it makes of each
training image and its mirror image is kept in memory, so that a mask head takes a minute: RoIs that it
proposes, their features, targets, and its detections on the test images. Detectors that are in --output
already are used again.

Writes unseen_classes.json, .svg and .png, and prints a table: mean and standard deviation over seeds, and
differences to the first row, which are paired. What --output has in its JSON already is not done again, so
that seeds can be added.
"""

import argparse
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import ModuleType

import torch
from matplotlib.figure import Figure
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn
from maskx_d2.backends.torchvision.checkpoint import load_detector_weights
from maskx_d2.backends.torchvision.dataset import (
    PartiallySupervisedCoco,
    read_records,
)
from maskx_d2.backends.torchvision.detections import coco_results
from maskx_d2.data.class_splits import classes_with_masks
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.files import load_json, write_json
from maskx_d2.data.pycocotools_coco import class_names, read_coco
from maskx_d2.demo import on_torchvision as backend
from maskx_d2.demo import shapes, textured_forms
from maskx_d2.demo.generated_dataset import GeneratedDataset
from maskx_d2.demo.run import FULL, Training
from maskx_d2.evaluation.average_precision import average_precision, class_groups, class_precisions
from maskx_d2.evaluation.tables import mean_cell
from maskx_d2.method import BoxSupervision, mask_loss
from maskx_d2.runtime.logs import log_to_file

DATASETS: dict[str, ModuleType] = {"shapes": shapes, "textured_forms": textured_forms}
PROPOSALS_AN_IMAGE = 16  # that are kept
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 0.002, 30, 0.0001


@dataclass(frozen=True)
class Recipe:
    """A row of the table: how a mask head is built and trained."""

    title: str
    head: dict = field(default_factory=dict)
    """Options of :func:`maskx_rcnn_resnet_fpn`."""

    images: int = 8
    rois: int = 4
    """RoIs of an image in a step."""

    train_rois: str = "proposals"
    all_masks: bool = False
    box_supervision: dict | None = None
    roi_side: int = 14
    embedding_noise: float = 0.0
    """Standard deviation of noise on T's input, in those of the embeddings."""

    embeddings: Callable[[Tensor], Tensor] | None = None
    """From the classes' rows of the classifier to other embeddings of them."""

    transfer_weight_decay: float = WEIGHT_DECAY
    length: float = 1.0
    """Of the training, against the others'."""

    teacher: str | None = None
    """The row whose masks of B take the place of true ones."""


CLS = {"class_embedding": "cls"}
R1 = {**CLS, "embedding_dropout": 0.5}
BOXES = {"projection": 0.3, "known_background": 0.3}
DEEP = {"trunk": "hourglass_20", "hourglass_channels": 32, "mlp_layers": 0}
AGNOSTIC = {"predictor": "agnostic", "mlp_layers": 0}


def standardised(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / rows.std(0)


def principal_components(rows: Tensor, count: int = 16) -> Tensor:
    """Of unit variance."""
    centred = rows - rows.mean(0)
    left, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return left[:, :count] * math.sqrt(len(rows))


RECIPES = {
    "class_agnostic": Recipe("class-agnostic", AGNOSTIC),
    "paper": Recipe("Mask^X as in the paper, cls+box, 4 images x 16 RoIs", images=4, rois=16),
    "paper_8x4": Recipe("the same, 8 images x 4 RoIs"),
    "cls": Recipe("cls alone", CLS),
    "r1": Recipe("R1: cls, dropout 0.5", R1),
    "r2": Recipe("R2: R1 and box supervision", R1, box_supervision=BOXES),
    "oracle": Recipe("oracle: cls, masks of all classes", CLS, all_masks=True),
    "class_specific": Recipe(
        "oracle of the paper: class-specific",
        {"predictor": "class_specific", "mlp_layers": 0},
        all_masks=True,
    ),
    # ---- The ingredients one by one ----
    "dropout_0.3": Recipe("R1 with dropout 0.3", {**CLS, "embedding_dropout": 0.3}),
    "dropout_0.7": Recipe("R1 with dropout 0.7", {**CLS, "embedding_dropout": 0.7}),
    "projection": Recipe("R1 and projection", R1, box_supervision={"projection": 0.3}),
    "known_background": Recipe("R1 and known background", R1, box_supervision={"known_background": 0.3}),
    "no_dropout": Recipe("box supervision without dropout", CLS, box_supervision=BOXES),
    "pairwise": Recipe("R2 and pairwise", R1, box_supervision={**BOXES, "pairwise": 0.3}),
    "ground_truth": Recipe("R1 on ground-truth boxes", R1, train_rois="ground_truth"),
    "both": Recipe("R1 on proposals and ground-truth boxes", R1, train_rois="both"),
    "class_agnostic_boxes": Recipe("class-agnostic and box supervision", AGNOSTIC, box_supervision=BOXES),
    "deep_class_agnostic": Recipe(
        "class-agnostic, Hourglass-20, ground-truth boxes",
        {**AGNOSTIC, **DEEP},
        train_rois="ground_truth",
        roi_side=16,
    ),
    "deep_r1": Recipe("R1, Hourglass-20", {**R1, **DEEP}, roi_side=16),
    "deep_r2": Recipe(
        "R2, Hourglass-20, RoIs of both kinds",
        {**R1, **DEEP},
        train_rois="both",
        box_supervision=BOXES,
        roi_side=16,
    ),
    # ---- What did not help ----
    "noise": Recipe("noise of 0.5 sigma in place of dropout", CLS, embedding_noise=0.5),
    "weight_decay": Recipe("weight decay of T 1.0 in place of dropout", CLS, transfer_weight_decay=1.0),
    "one_layer": Recipe("R1 with one layer", {**R1, "transfer_layers": 1}),
    "cls_box_dropout": Recipe("cls+box, dropout 0.5", {"embedding_dropout": 0.5}),
    "standardised": Recipe("cls, standardised", embeddings=standardised),
    "principal_components": Recipe("cls, 16 principal components", embeddings=principal_components),
    "self_training": Recipe("R1 and masks of B by R1", R1, teacher="r1"),
    "r1_long": Recipe("R1, twice as long", R1, length=2.0),
    "r2_long": Recipe("R2, twice as long", R1, box_supervision=BOXES, length=2.0),
}


@dataclass
class Rois:
    """RoIs of one training image, or of its mirror image, R of them."""

    boxes: Tensor
    """(R, 4)."""

    true_boxes: Tensor
    """(R, 4) of their instances."""

    classes: Tensor
    """(R,) without the background."""

    is_ground_truth: Tensor
    """(R,) bool, whether it is the box of its instance."""

    features: dict[int, Tensor]
    """By side of the RoI feature: (R, C, side, side), half precision."""

    masks: dict[int, Tensor]
    """By side of the mask: (R, M, M) half precision, the true ones, B's too."""

    other_masks: dict[int, Tensor]
    """(R, M, M) bool: what masks of A cover. For RoIs of B."""

    colours: dict[int, Tensor]
    """(R, 3, M, M) half precision."""


@dataclass
class Detections:
    """Of one test image."""

    image_id: int
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    features: dict[int, Tensor]


class Frozen:
    """A dataset as a trained detector sees it."""

    def __init__(
        self,
        dataset: GeneratedDataset,
        weights: Path,
        *,
        seed: int,
        sides: tuple[int, ...],
        masks: Path | None = None,
    ):
        """
        Args:
            weights: of the detector.
            seed: of the choice of RoIs.
            sides: of RoI features that are wanted.
            masks: the annotations whose masks are the true ones in training; the dataset's own if None.
        """
        self.ground_truth = read_coco(dataset.test_json)
        self.category_ids = sorted(self.ground_truth.cats)
        names = class_names(self.ground_truth)
        self.with_masks = classes_with_masks(str(dataset.split_file), names)
        self.num_classes = len(names)
        self.has_mask = torch.tensor([i in set(self.with_masks) for i in range(len(names))])
        self.weights = weights
        self.sides = sides
        model = self.build(AGNOSTIC)
        model.freeze_detector()
        self.class_rows = model.roi_heads.box_predictor.cls_score.weight[1:].detach()
        self.poolers = {side: MultiScaleRoIAlign(["0", "1", "2", "3"], side, 2) for side in sides}
        torch.manual_seed(seed)
        train = _samples(masks or dataset.all_masks_json, dataset.train_images)
        self.train = [
            tuple(self._rois(model.train(), *_mirrored(*sample) if mirror else sample) for mirror in (0, 1))
            for sample in tqdm((train[i] for i in range(len(train))), "RoIs", len(train), leave=False)
        ]
        test = _samples(dataset.test_json, dataset.test_images)
        self.test = [self._detections(model.eval(), *test[i]) for i in range(len(test))]

    def build(self, options: dict, roi_side: int = 14) -> nn.Module:
        """A model with this detector."""
        model = maskx_rcnn_resnet_fpn(
            num_classes=self.num_classes + 1,
            mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], roi_side, 2),
            **{"mlp_reduced_channels": 8, **backend._DETECTOR, **options},
        )
        load_detector_weights(model, str(self.weights))
        return model

    @torch.no_grad()
    def _rois(self, model, image: Tensor, target: dict) -> Rois:
        images, targets = model.transform([image], [target])
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
        sampled, matched, labels, _ = model.roi_heads.select_training_samples(proposals, targets)
        (target,), positive = targets, (labels[0] > 0).nonzero().flatten()
        positive = positive[torch.randperm(len(positive))[:PROPOSALS_AN_IMAGE]]
        num_boxes = len(target["boxes"])
        matched = torch.cat([matched[0][positive], torch.arange(num_boxes)])
        boxes = torch.cat([sampled[0][positive], target["boxes"]])
        classes = target["labels"][matched] - 1
        of_a = self.has_mask[target["labels"] - 1]
        covered = target["masks"][of_a].any(0)[None, None].float()
        masks, others, colours = {}, {}, {}
        for side in (2 * s for s in self.sides):
            masks[side] = project_masks_on_boxes(target["masks"], boxes, matched, side).half()
            others[side] = roi_align(covered, [boxes], side, aligned=True)[:, 0] >= 0.5
            colours[side] = roi_align(image[None], [boxes], side, aligned=True).half()
        return Rois(
            boxes=boxes,
            true_boxes=target["boxes"][matched],
            classes=classes,
            is_ground_truth=torch.arange(len(boxes)) >= len(positive),
            features=self._pooled(features, boxes, images.image_sizes),
            masks=masks,
            other_masks=others,
            colours=colours,
        )

    @torch.no_grad()
    def _detections(self, model, image: Tensor, target: dict) -> Detections:
        (found,) = model([image])
        images, _ = model.transform([image])
        features = model.backbone(images.tensors)
        return Detections(
            image_id=int(target["image_id"]),
            size=tuple(image.shape[-2:]),
            boxes=found["boxes"],
            labels=found["labels"],
            scores=found["scores"],
            features=self._pooled(features, found["boxes"], images.image_sizes),
        )

    def _pooled(self, features, boxes: Tensor, sizes) -> dict[int, Tensor]:
        return {side: pool(features, [boxes], sizes).half() for side, pool in self.poolers.items()}

    def average_precision(self, heads: nn.Module, side: int) -> dict[str, float]:
        """Mask AP on A and on B of a mask head."""
        results = []
        with torch.no_grad():
            for found in self.test:
                features = found.features[side].float()
                logits = heads.mask_predictor(heads.mask_head(features), found.labels - 1)
                masks = logits.sigmoid().unsqueeze(1)
                detections = {"boxes": found.boxes, "labels": found.labels, "scores": found.scores}
                results += coco_results(
                    {**detections, "masks": masks}, found.image_id, self.category_ids, size=found.size
                )
        precision = class_precisions(self.ground_truth, results, "segm")
        groups = class_groups(self.with_masks, self.num_classes)
        return {g: average_precision(precision, groups)[g]["AP"] for g in ("A", "B")}


def _samples(annotations: Path, images: Path) -> PartiallySupervisedCoco:
    records = read_records(read_coco_file(annotations))
    floats = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    return PartiallySupervisedCoco(records, images, transforms=floats)


def _mirrored(image: Tensor, target: dict) -> tuple[Tensor, dict]:
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    masks = transforms.horizontal_flip(target["masks"])
    return transforms.horizontal_flip(image), {**target, "boxes": boxes, "masks": masks}


def train(
    recipe: Recipe, frozen: Frozen, *, iterations: int, seed: int, teacher: nn.Module | None
) -> nn.Module:
    """Train a mask head and return the RoI heads that it is part of."""
    torch.manual_seed(seed)
    options = dict(recipe.head)
    if recipe.embeddings is not None:
        options |= {"class_embedding": "file", "embedding_table": recipe.embeddings(frozen.class_rows)}
    model = frozen.build(options, recipe.roi_side)
    heads = model.roi_heads.train()
    supervision = None
    length = round(iterations * recipe.length)
    if recipe.box_supervision is not None:
        ramp = Training("", "", Path(), None, length, seed)
        supervision = BoxSupervision(
            **recipe.box_supervision, start=ramp.box_supervision_start, warmup=ramp.box_supervision_warmup
        )
    transfer = getattr(heads.mask_predictor.mask_fcn_logits, "transfer", None)
    if recipe.embedding_noise:
        scale = recipe.embedding_noise * frozen.class_rows.std()
        transfer.register_forward_pre_hook(
            lambda module, inputs: (
                inputs[0] + scale * torch.randn_like(inputs[0]) if module.training else None
            )
        )
    in_transfer = set(transfer.parameters()) if transfer is not None else set()
    trained = [*heads.mask_head.parameters(), *heads.mask_predictor.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p not in in_transfer], "weight_decay": WEIGHT_DECAY},
            {"params": list(in_transfer), "weight_decay": recipe.transfer_weight_decay},
        ],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / length)),
    )
    order: list[int] = []
    for _ in range(length):
        if len(order) < recipe.images:
            order = torch.randperm(len(frozen.train)).tolist()
        batch = [frozen.train[order.pop()][int(torch.randint(2, ()))] for _ in range(recipe.images)]
        loss = _loss(recipe, frozen, heads, batch, supervision, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return heads.eval()


def _loss(recipe, frozen, heads, batch: list[Rois], supervision, teacher) -> Tensor:
    side = recipe.roi_side
    has_mask = torch.ones_like(frozen.has_mask) if recipe.all_masks else frozen.has_mask
    chosen = []
    for rois in batch:
        eligible = has_mask[rois.classes] | (supervision is not None or teacher is not None)
        if recipe.train_rois != "both":
            eligible &= rois.is_ground_truth == (recipe.train_rois == "ground_truth")
        places = eligible.nonzero().flatten()
        chosen.append(places[torch.randperm(len(places))[: recipe.rois]])

    def gather(values: Callable[[Rois], Tensor]) -> Tensor:
        return torch.cat([values(rois)[places] for rois, places in zip(batch, chosen, strict=True)])

    classes = gather(lambda rois: rois.classes)
    features = gather(lambda rois: rois.features[side]).float()
    logits = heads.mask_predictor(heads.mask_head(features), classes)
    targets = gather(lambda rois: rois.masks[2 * side]).float()
    masked = has_mask[classes]
    if teacher is not None:
        with torch.no_grad():
            predicted = teacher.mask_predictor(teacher.mask_head(features), classes) > 0
        targets = torch.where(masked[:, None, None], targets, predicted.float())
        masked = torch.ones_like(masked)
    loss = mask_loss(logits[masked], targets[masked])
    if supervision is not None:
        terms = supervision(
            logits[~masked],
            rois=gather(lambda rois: rois.boxes)[~masked],
            boxes=gather(lambda rois: rois.true_boxes)[~masked],
            other_masks=gather(lambda rois: rois.other_masks[2 * side])[~masked],
            colours=gather(lambda rois: rois.colours[2 * side])[~masked].float(),
        )
        loss = loss + sum(terms.values())
    return loss


def detector(dataset: GeneratedDataset, folder: Path, *, seed: int, iterations: int) -> Path:
    """The weights of stage 1, trained if they are not there."""
    weights = folder / "model_final.ckpt"
    if not weights.is_file():
        run = Training("stage1", "boxes of all classes", folder, dataset, iterations, seed)
        with log_to_file(folder / "log.txt"):
            backend.train(run)
    return weights


def table(results: dict[str, dict], first: str) -> str:
    """Of one dataset: a line for each recipe, mean ± standard deviation over its seeds."""
    rows = []
    for name, of_seeds in results.items():
        line = [RECIPES[name].title]
        for group in ("A", "B"):
            values = [ap[group] for ap in of_seeds.values()]
            gains = [of_seeds[seed][group] - results[first][seed][group] for seed in of_seeds]
            line += [mean_cell(values), "-" if name == first else mean_cell(gains, sign="+")]
        rows.append(line)
    headers = ["", "mask AP on A", "difference", "mask AP on B", "difference"]
    return tabulate(rows, headers, "github", colalign=("left", *["right"] * 4), disable_numparse=True)


def plot(results: dict[str, dict[str, dict]]) -> Figure:
    """A panel for each dataset: mask AP on A and B of each recipe, points for the seeds."""
    longest = max(len(of_dataset) for of_dataset in results.values())
    figure = Figure(figsize=(5.5 * len(results) + 2.5, 0.32 * longest + 1.2), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, (dataset, of_dataset) in zip(panels, results.items(), strict=True):
        names = list(of_dataset)[::-1]
        for group, colour in (("A", "#ff8c00"), ("B", "#0099cc")):
            for place, name in enumerate(names):
                values = [ap[group] for ap in of_dataset[name].values()]
                panel.plot(values, [place] * len(values), ".", color=colour, alpha=0.5)
                panel.plot(fmean(values), place, "|", color=colour, markersize=12, markeredgewidth=2)
        panel.set_yticks(range(len(names)), [RECIPES[name].title for name in names], fontsize=8)
        panel.set_title(dataset.replace("_", " "))
        panel.set_xlabel("mask AP on A (orange) and on B (blue)")
        panel.set_xlim(left=0)
        panel.grid(axis="x", linewidth=0.4)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/unseen_classes"), metavar="DIR")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--detector-iterations", type=int, default=FULL.stage1_iterations)
    parser.add_argument("--iterations", type=int, default=FULL.stage2_iterations, help="of a mask head")
    parser.add_argument("--images", type=int, default=FULL.num_train, help="to train on")
    parser.add_argument("--test-images", type=int, default=FULL.num_test)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    json_path = args.output / "unseen_classes.json"
    results: dict[str, dict[str, dict[str, dict]]] = {}
    if json_path.is_file():
        results = load_json(json_path, what="results")
    for dataset in args.datasets:
        results.setdefault(dataset, {})
        for name in args.recipes:
            results[dataset].setdefault(name, {})
    sides = tuple(sorted({RECIPES[name].roi_side for name in args.recipes}))
    for dataset_name in args.datasets:
        for seed in args.seeds:
            to_do = [name for name in args.recipes if str(seed) not in results[dataset_name][name]]
            if not to_do:
                continue
            folder = args.output / dataset_name / f"seed_{seed}"
            dataset = GeneratedDataset(folder / "dataset")
            if not dataset.split_file.is_file():
                DATASETS[dataset_name].generate(
                    dataset.root, num_train=args.images, num_test=args.test_images, seed=seed
                )
            weights = detector(dataset, folder / "stage1", seed=seed, iterations=args.detector_iterations)
            frozen = Frozen(dataset, weights, seed=seed, sides=sides)
            trained: dict[str, nn.Module] = {}
            for name in tqdm(to_do, f"{dataset_name}, seed {seed}"):
                recipe = RECIPES[name]
                run = functools.partial(train, frozen=frozen, iterations=args.iterations, seed=seed)
                teacher = None
                if recipe.teacher is not None:
                    teacher = trained.get(recipe.teacher) or run(RECIPES[recipe.teacher], teacher=None)
                trained[name] = run(recipe, teacher=teacher)
                ap = frozen.average_precision(trained[name], recipe.roi_side)
                results[dataset_name][name][str(seed)] = ap
                tqdm.write(f"{dataset_name}, seed {seed}, {recipe.title}: {ap['A']:.1f} / {ap['B']:.1f}")
            write_json(json_path, results)
            del frozen  # before the next one takes as much memory
    for dataset_name, of_dataset in results.items():
        first = next(iter(of_dataset))
        print(f"\n{dataset_name}, {len(of_dataset[first])} seeds\n\n{table(of_dataset, first)}")
    figure = plot(results)
    figure.savefig(args.output / "unseen_classes.svg")
    figure.savefig(args.output / "unseen_classes.png", dpi=100)


if __name__ == "__main__":
    main()
