#!/usr/bin/env python3
"""
From raw files to masks of 3,001 classes, at a size for a CPU: maskx prepare vg3k, stage 1, stage 2 and
inference with pictures, and a mixed end-to-end run, all by the commands and configs that users have.

The raw files are generated in the layout of Visual Genome's, around the images of a small COCO: the objects
that COCO has there, and as many others, boxes in the same images with names drawn from the list of 3,001.
So many classes cannot be learnt from so few boxes: it shows that everything fits together, and how long it
takes. (--iterations 3000 overfits the images, which gives pictures to look at.)
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from maskx_d2.data.class_names import coco_class_names, visual_genome_class_names
from maskx_d2.data.coco_format import in_order
from maskx_d2.data.visual_genome import joint_classes
from maskx_d2.evaluation.pictures import by_image

REPOSITORY = Path(__file__).resolve().parents[3]
NOT_IN_VISUAL_GENOME = "hand_blower.n.01"  # COCO's hair drier
URL = "https://cs.stanford.edu/people/rak248/VG_100K/{}.jpg"


# ---- Raw files ----


def synsets_of_the_list() -> list[str]:
    """A synset for each of the 3,001 classes, in their order. The real ones have other numbers."""
    synsets = joint_classes([f"{name.replace(' ', '_')}.n.01" for name in coco_class_names()])[:80]
    numbers: Counter[str] = Counter()
    for name in visual_genome_class_names()[80:]:
        while True:
            numbers[name] += 1
            synset = f"{name}.n.{numbers[name]:02}"
            if synset not in synsets[:80]:
                break
        synsets.append(synset)
    return synsets


def random_box(rng: random.Random, width: int, height: int) -> tuple[float, float, float, float]:
    """x, y, width, height of a box in an image of this size."""
    w, h = rng.uniform(0.2, 0.6) * width, rng.uniform(0.2, 0.6) * height
    return rng.uniform(0, width - w), rng.uniform(0, height - h), w, h


def write_raw_files(coco: Path, folder: Path, datasets: Path) -> list[Path]:
    """
    image_data.json and objects.json, and links to the images where Visual Genome has its own.

    Returns:
        The paths of image_data.json, objects.json and COCO's instances_val2017.json.
    """
    rng = random.Random(0)
    synsets = synsets_of_the_list()
    counts = Counter(visual_genome_class_names())
    # Names that only one class has: of those of several COCO's must be the most frequent.
    unique = [counts[name] == 1 for name in visual_genome_class_names()]
    others = [synset for synset, is_unique in zip(synsets[80:], unique[80:], strict=True) if is_unique]
    images_of_genome = datasets / "visual_genome" / "VG_100K"
    images_of_genome.mkdir(parents=True)
    folder.mkdir(parents=True)
    images, objects, identifier = [], [], 0
    for split in ("train2017", "val2017"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        class_of = {category["id"]: i for i, category in enumerate(in_order(content["categories"]))}
        annotations = by_image(content["annotations"])
        for number, image in enumerate(content["images"]):
            image_id = len(images) + 1
            (images_of_genome / f"{image_id}.jpg").symlink_to((coco / split / image["file_name"]).resolve())
            images.append(
                {
                    "image_id": image_id, "width": image["width"], "height": image["height"],
                    "url": URL.format(image_id), "flickr_id": None,
                    "coco_id": image["id"] if split == "val2017" or number % 8 else None,
                }
            )  # fmt: skip
            found = []
            for annotation in annotations.get(image["id"], []):
                synset = synsets[class_of[annotation["category_id"]]]
                if synset != NOT_IN_VISUAL_GENOME:
                    found.append((synset, annotation["bbox"]))
                    found.append((rng.choice(others), random_box(rng, image["width"], image["height"])))
            items = []
            for synset, (x, y, width, height) in found:
                identifier += 1
                items.append(
                    {
                        "object_id": identifier, "synsets": [synset], "names": [synset.split(".")[0]],
                        "x": int(x), "y": int(y), "w": max(1, int(width)), "h": max(1, int(height)),
                    }
                )  # fmt: skip
            objects.append({"image_id": image_id, "objects": items, "image_url": URL.format(image_id)})
    # An object of all names at once makes all 3,000 classes, and no box.
    every = [synset for synset in synsets if synset != NOT_IN_VISUAL_GENOME]
    objects[0]["objects"].insert(
        0, {"object_id": 10**6, "synsets": every, "names": ["all"], "x": 0, "y": 0, "w": 9, "h": 9}
    )
    paths = [folder / "image_data.json", folder / "objects.json"]
    for path, content in zip(paths, (images, objects), strict=True):
        path.write_text(json.dumps(content))
    return [*paths, coco / "annotations" / "instances_val2017.json"]


# ---- Commands ----


class Runner:
    """Runs commands on datasets in a folder, and times them."""

    def __init__(self, output: Path):
        self.output = output
        self.environment = {**os.environ, "DETECTRON2_DATASETS": str(output / "datasets")}

    def run(self, title: str, *command) -> str:
        """Standard output; what is logged is in a file of the title's name."""
        words = list(map(str, command))
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=REPOSITORY, env=self.environment
        )
        (self.output / f"{title}.log").write_text(done.stdout + done.stderr)
        if done.returncode != 0:
            sys.exit(f"{title} failed: see {self.output / title}.log\n{done.stderr[-3000:]}")
        print(f"{title:18} {time.perf_counter() - start:6.1f} s", flush=True)
        return done.stdout

    def train_net(self, title: str, config: str, *keys, eval_only: bool = False) -> Path:
        """Runs train_net.py with a config of configs/visual_genome; returns the folder of its results."""
        folder = self.output / title
        path = f"configs/visual_genome/{config}.yaml"
        options = ["--eval-only"] * eval_only
        self.run(title, "train_net.py", "--config-file", path, *options, *keys, "OUTPUT_DIR", folder)
        return folder


def small(side: int, iterations: int) -> list:
    """Config keys that make a run on a CPU short, without trained weights to start from."""
    return [
        *("INPUT.MIN_SIZE_TRAIN", f"({side},)", "INPUT.MAX_SIZE_TRAIN", 2 * side),
        *("INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", 2 * side),
        *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "GN"),
        *("MODEL.FPN.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.ROI_BOX_HEAD.FC_DIM", 128, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 200),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 100),
        *("SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.IMS_PER_BATCH", 4),
        *("SOLVER.WARMUP_ITERS", iterations // 5),
        *("SOLVER.MAX_ITER", iterations, "SOLVER.STEPS", f"({iterations * 4 // 5},)"),
        *("SOLVER.BASE_LR", 0.02, "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
    ]  # fmt: skip


SMALL_MASK_HEAD = [
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_MASK_HEAD.NUM_CONV", 2),
    *("MODEL.ROI_MASK_HEAD.TRANSFER.HIDDEN_DIM", 64, "MODEL.ROI_MASK_HEAD.MLP_BRANCH.REDUCED_CHANNELS", 8),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="as datasets/coco, of a few images")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--iterations", type=int, default=100, help="of each training run")
    parser.add_argument("--side", type=int, default=160, help="of the images, in pixels")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--min-score", type=float, default=0.1, help="of what is drawn")
    args = parser.parse_args()
    coco, output = args.coco.resolve(), args.output.resolve()
    if output.exists():
        parser.error(f"{output} exists: give a new folder")
    datasets = output / "datasets"
    datasets.mkdir(parents=True)
    (datasets / "coco").symlink_to(coco)
    runner = Runner(output)

    image_data, objects, coco_val = write_raw_files(coco, output / "raw", datasets)
    summary = runner.run(
        "prepare",
        *("-m", "maskx_d2", "prepare", "vg3k", "--image-data", image_data, "--objects", objects),
        *("--coco-val", coco_val, "--output", datasets / "visual_genome"),
    )
    print(summary)
    keys = small(args.side, args.iterations)
    with_masks = [*keys, *SMALL_MASK_HEAD]
    no_test = ("DATASETS.TEST", "()")
    stage_1 = runner.train_net("stage_1", "faster_rcnn_R_50_FPN", *keys, *no_test, "MODEL.WEIGHTS", "")
    weights = ("MODEL.WEIGHTS", stage_1 / "model_final.pth")
    stage_2 = runner.train_net("stage_2", "maskx_stage_wise_R_50_FPN", *with_masks, *no_test, *weights)
    weights = ("MODEL.WEIGHTS", stage_2 / "model_final.pth")
    inference = runner.train_net(
        "inference", "maskx_inference_R_50_FPN", *with_masks, *weights, eval_only=True
    )
    images = sorted((coco / "train2017").iterdir())[: args.pictures]
    runner.run(
        "pictures",
        *("-m", "maskx_d2", "predict", "--config-file", inference / "config.yaml"),
        *("--weights", stage_2 / "model_final.pth", "--output", output / "pictures"),
        *("--min-score", args.min_score, *images),
        *("--opts", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", min(0.05, args.min_score)),
    )
    runner.train_net("mixed", "maskx_end_to_end_R_50_FPN", *with_masks, *no_test, "MODEL.WEIGHTS", "")
    for name in ("vg3k_val", "coco_2017_val_vg3k"):
        folder = inference / "inference" / ("" if name == "vg3k_val" else name)
        results = json.loads((folder / "ap_by_group.json").read_text())
        ap = {task: {g: values["AP"] for g, values in by.items()} for task, by in results.items()}
        print(f"AP on {name}: {json.dumps(ap)}")
    print(f"pictures: {output / 'pictures'}")


if __name__ == "__main__":
    main()
