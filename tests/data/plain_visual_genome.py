"""
The conversion of Visual Genome written down plainly, by the original code's steps and with everything in
memory: what `maskx prepare vg3k` is timed against, and what its tests compare it with.
"""

import json
from collections import Counter
from pathlib import Path

from maskx_d2.data.class_names import coco_class_names

EXCEPTIONS = {
    "cell phone": "cellular_telephone.n.01",
    "couch": "sofa.n.01",
    "dining table": "dinner_table.n.01",
    "donut": "doughnut.n.02",
    "fire hydrant": "water_faucet.n.01",
    "hair drier": "hand_blower.n.01",
    "handbag": "bag.n.04",
    "hot dog": "hotdog.n.01",
    "orange": "orange.n.01",
    "potted plant": "plant.n.01",
    "remote": "remote_control.n.01",
    "skis": "ski.n.01",
    "sports ball": "ball.n.01",
    "stop sign": "sign.n.02",
    "suitcase": "bag.n.06",
    "teddy bear": "teddy.n.01",
    "tv": "television.n.01",
    "wine glass": "wineglass.n.01",
}
"""Of COCO's classes that have another name in Visual Genome, as in the original's table."""


def plainly(
    image_data: Path, objects: Path, coco_val: Path, *, num_classes: int, num_test: int
) -> dict[str, dict]:
    """The contents of the three files, by split."""
    with open(image_data) as file:
        images = json.load(file)
    with open(objects) as file:
        of_images = json.load(file)
    with open(coco_val) as file:
        coco_ids = {image["id"] for image in json.load(file)["images"]}
    counter = Counter(s for image in of_images for item in image["objects"] for s in item["synsets"])
    top = [synset for synset, _ in counter.most_common(num_classes)]
    clean = {synset[:-5].replace("_", " "): synset for synset in reversed(top)}
    names = coco_class_names()
    coco = [EXCEPTIONS.get(n, clean.get(n, n.replace(" ", "_") + ".n.01")) for n in names]
    joint = coco + sorted(set(top) - set(coco))
    number = {synset: i + 1 for i, synset in enumerate(joint)}
    category = {synset: number[synset] for synset in top}
    annotations = [
        {
            "id": item["object_id"],
            "image_id": image["image_id"],
            "category_id": category[item["synsets"][0]],
            "bbox": [item["x"], item["y"], item["w"], item["h"]],
            "area": item["w"] * item["h"],
            "iscrowd": 0,
        }
        for image in of_images
        for item in image["objects"]
        if len(item["synsets"]) == 1 and item["synsets"][0] in category
    ]
    rest = [image for image in images if image["coco_id"] not in coco_ids]
    test = [image for image in rest if image["coco_id"] is None][-num_test:]
    test_ids = {image["image_id"] for image in test}
    splits = {
        "train": [image for image in rest if image["image_id"] not in test_ids],
        "val": [image for image in images if image["coco_id"] in coco_ids],
        "test": test,
    }
    train_ids = {image["image_id"] for image in splits["train"]}
    counts = Counter(a["category_id"] for a in annotations if a["image_id"] in train_ids)
    categories = [
        {"id": i + 1, "name": synset, "instance_count": counts[i + 1]}
        | ({"coco_name": names[i]} if i < len(names) else {})
        for i, synset in enumerate(joint)
    ]
    contents = {}
    for split, of_split in splits.items():
        ids = {image["image_id"] for image in of_split}
        contents[split] = {
            "images": [
                {
                    "id": image["image_id"],
                    "width": image["width"],
                    "height": image["height"],
                    "file_name": image["url"].replace("https://cs.stanford.edu/people/rak248/", ""),
                    "coco_id": image["coco_id"],
                }
                for image in of_split
            ],
            "categories": categories,
            "annotations": [a for a in annotations if a["image_id"] in ids],
        }
    return contents
