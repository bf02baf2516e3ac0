#!/usr/bin/env python3
"""
A small model on eight images of COCO, of which it shall know everything, while every other class has boxes
only: mask AP on A and B on these images with box supervision, against without.

End to end on Detectron2, on a CPU. Prints each seed, and mean and standard deviation.
"""

import argparse
import json
import tempfile
from pathlib import Path

from maskx_d2.backends.detectron2.command_line import read_config
from maskx_d2.backends.detectron2.trainer import Trainer
from maskx_d2.evaluation.tables import Results, gain_table
from maskx_d2.runtime.configs import config_file
from maskx_d2.runtime.logs import log_to_file

NUM_IMAGES = 8
SETTINGS = [
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [96], [128]]),
    *("MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE", 0),
    *("INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 144, "INPUT.RANDOM_FLIP", "none"),
    *("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 144),
    *("SOLVER.MASKX_OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.001, "SOLVER.IMS_PER_BATCH", 4),
    *("SOLVER.WARMUP_ITERS", 20),
]
BOX_SUPERVISION = "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION"
BOXES = [f"{BOX_SUPERVISION}.PROJECTION", 0.3, f"{BOX_SUPERVISION}.KNOWN_BACKGROUND", 0.3]
ROWS = {
    "without": [],
    "box supervision": BOXES,
    "box supervision and pairwise": [*BOXES, f"{BOX_SUPERVISION}.PAIRWISE", 0.3],
}


def subset(coco: Path, folder: Path) -> tuple[Path, Path, int]:
    """
    The images with the largest objects, no more than four, and their classes; every other class is in A.

    Args:
        coco: a folder in COCO's layout.
        folder: where to write.

    Returns:
        The annotation file, the split, and the number of classes.
    """
    content = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    size = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    of_image: dict[int, list[dict]] = {}
    for annotation in content["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    fit = {i: a for i, a in of_image.items() if len(a) <= 4 and not any(x["iscrowd"] for x in a)}
    chosen = sorted(fit, key=lambda i: -min(a["area"] for a in fit[i]) / size[i])[:NUM_IMAGES]
    annotations = [a for i in chosen for a in fit[i]]
    present = sorted({a["category_id"] for a in annotations})
    names = {c["id"]: c["name"] for c in content["categories"]}
    small = {
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": annotations,
        "categories": [{"id": i, "name": names[i]} for i in present],
    }
    (folder / "few.json").write_text(json.dumps(small))
    (folder / "split.txt").write_text("".join(f"{names[i]}\n" for i in present[::2]))
    return folder / "few.json", folder / "split.txt", len(present)


def overfit(
    coco: Path, folder: Path, *, seed: int, iterations: int, overrides: list | None = None
) -> tuple[list[float], Results]:
    """
    Train and evaluate on the same images.

    Args:
        coco: a folder in COCO's layout.
        folder: for the files of the run, of which there are none yet.
        seed: of the run.
        iterations: of 4 images.
        overrides: config keys over Mask^X with embeddings of the classifier alone and dropout.

    Returns:
        The mask losses that were logged, and AP on A, B and all.
    """
    folder.mkdir(parents=True)
    annotations, split, num_classes = subset(coco, folder)
    name = str(folder)
    data = [
        *("DATASETS.MASKX_REGISTER", [[name, str(annotations), str(coco / "train2017")]]),
        *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATASETS.CLASSES_WITH_MASKS", str(split)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "OUTPUT_DIR", str(folder), "SEED", seed),
        *("SOLVER.MAX_ITER", iterations),
        *(f"{BOX_SUPERVISION}.START", iterations * 2 // 5, f"{BOX_SUPERVISION}.WARMUP", iterations // 5),
    ]
    config = str(config_file("demo/maskx_R_18_FPN.yaml"))
    trainer = Trainer(read_config(config, [*SETTINGS, *data, *(overrides or [])]))
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [line["loss_mask"] for line in lines if "loss_mask" in line]
    return losses, json.loads((folder / "inference" / "ap_by_group.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, metavar="DIR", help="in COCO's layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    of_seeds = []
    with tempfile.TemporaryDirectory() as work:
        for seed in args.seeds:
            results = {}
            for row in args.rows:
                folder = Path(work) / f"{row}_{seed}"
                with log_to_file(Path(work) / "log.txt"):
                    _, results[row] = overfit(
                        args.coco, folder, seed=seed, iterations=args.iterations, overrides=ROWS[row]
                    )
            of_seeds.append(results)
            print(f"\nSeed {seed}\n\n{gain_table([results])}", flush=True)
    print(f"\n{args.iterations} iterations, mean ± standard deviation\n\n{gain_table(of_seeds)}")


if __name__ == "__main__":
    main()
