"""A small Visual Genome in the layout of the real one."""

import json
import random

from maskx_d2.data.class_names import coco_class_names

from .plain_visual_genome import EXCEPTIONS

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
