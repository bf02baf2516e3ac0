"""A small Visual Genome in the layout of the real one, and its conversion written down plainly."""

import json
import random
from collections import Counter

from maskx_d2.data.class_names import coco_class_names
from maskx_d2.data.visual_genome import _SYNSET_OF_COCO as EXCEPTIONS

URL = "https://cs.stanford.edu/people/rak248/VG_100K_2/{}.jpg"


def write(folder, *, num_images=60, num_synsets=120, test_images=None, seed=0):
    """image_data.json, objects.json and instances_val2017.json; returns their paths."""
    rng = random.Random(seed)
    names = [name.replace(" ", "_") for name in coco_class_names() if name not in EXCEPTIONS][:40]
    pool = [f"{name}.n.01" for name in names] + list(EXCEPTIONS.values())[:-1]
    pool += [f"{rng.choice('abc')}thing{i}.n.0{rng.randint(1, 3)}" for i in range(num_synsets - len(pool))]
    # "truck.n.01" and a rarer "truck.n.02": the more frequent one is COCO's truck.
    pool += ["truck.n.02"]
    weights = [1 / (1 + i % 17) for i in range(len(pool))]
    images, objects, identifier = [], [], 1000
    for i in range(1, num_images + 1):
        images.append(
            {
                "width": 800, "url": URL.format(i), "height": 600, "image_id": i,
                "coco_id": i * 7 if i % 3 == 0 else None, "flickr_id": None,
            }
        )  # fmt: skip
        of_image = []
        for _ in range(rng.randint(0, 9)):
            identifier += 1
            count = rng.choices([0, 1, 2], [1, 12, 1])[0]
            x, y = rng.randint(0, 700), rng.randint(0, 500)
            of_image.append(
                {
                    "synsets": rng.choices(pool, weights, k=count), "h": rng.randint(1, 99),
                    "object_id": identifier, "merged_object_ids": [], "names": ["thing"],
                    "w": rng.randint(1, 99), "y": y, "x": x,
                }
            )  # fmt: skip
        objects.append({"image_id": i, "objects": of_image, "image_url": URL.format(i)})
    coco = {"images": [{"id": i * 7} for i in range(1, num_images) if i % 6 == 0], "annotations": []}
    paths = []
    for name, content in (("image_data", images), ("objects", objects), ("instances_val2017", coco)):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def plainly(image_data, objects, coco_val, num_classes, num_test):
    """What the three files shall hold, by the original code's steps, with everything in dicts and lists."""
    with open(image_data) as file:
        images = json.load(file)
    with open(objects) as file:
        of_images = json.load(file)
    with open(coco_val) as file:
        coco_ids = {image["id"] for image in json.load(file)["images"]}
    counter = Counter(s for image in of_images for item in image["objects"] for s in item["synsets"])
    top = [synset for synset, _ in counter.most_common(num_classes)]
    clean = {synset[:-5].replace("_", " "): synset for synset in reversed(top)}
    coco = [EXCEPTIONS.get(n, clean.get(n, n.replace(" ", "_") + ".n.01")) for n in coco_class_names()]
    joint = coco + sorted(set(top) - set(coco))
    category = {synset: joint.index(synset) + 1 for synset in top}
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
    result = {}
    train_ids = {image["image_id"] for image in splits["train"]}
    in_training = Counter(a["category_id"] for a in annotations if a["image_id"] in train_ids)
    for name, of_split in splits.items():
        ids = {image["image_id"] for image in of_split}
        result[name] = {
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
            "annotations": [a for a in annotations if a["image_id"] in ids],
            "names": joint,
            "counts": [in_training[i + 1] for i in range(len(joint))],
        }
    return result
