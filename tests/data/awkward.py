"""
Annotation files as people really have them: a small good one, and changes to it, each with what shall
become of it.
"""

import copy
import json

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

WIDTH, HEIGHT = 80, 50
POLYGON = [10, 5, 30, 5, 30, 15, 10, 15]


def compressed_rle():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:30] = 1
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def uncompressed_rle():
    # Column by column: 10 columns and 5 pixels of background, then 10 on and 40 off for 20 columns.
    counts = [10 * HEIGHT + 5, 10] + [HEIGHT - 10, 10] * 19 + [HEIGHT - 15 + (WIDTH - 30) * HEIGHT]
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def content():
    """Two images with two instances each; the first is what the changes change."""
    annotations = [
        {"id": i + 1, "image_id": 1 + i // 2, "category_id": 1 + i % 2, "bbox": [10, 5, 20, 10],
         "area": 200, "iscrowd": 0, "segmentation": [POLYGON]}
        for i in range(4)
    ]  # fmt: skip
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def write(folder, changed=None):
    """The annotation file and its images; returns the path of the file."""
    rng = np.random.default_rng(0)
    for i in (1, 2):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    path = folder / "truth.json"
    path.write_text(json.dumps(content() if changed is None else changed), encoding="utf-8")
    return path


def _first(**values):
    """A change to the first annotation; None takes a key away."""

    def change(changed):
        annotation = changed["annotations"][0]
        for key, value in values.items():
            annotation.pop(key, None)
            if value is not None:
                annotation[key] = value

    return change


def _image(**values):
    return lambda changed: changed["images"][0].update(values)


def changed(change):
    result = copy.deepcopy(content())
    change(result)
    return result


# Name -> change, instances of image 1 that training sees, whether the first of them has a mask.
WORKS = {
    "as it should be": (lambda changed: None, 2, True),
    "no segmentation": (_first(segmentation=None), 2, False),
    "empty segmentation": (_first(segmentation=[]), 2, False),
    "polygon of two points": (_first(segmentation=[[1, 2, 3, 4]]), 2, False),
    "polygon of two points and a whole one": (_first(segmentation=[[1, 2, 3, 4], POLYGON]), 2, True),
    "compressed RLE": (_first(segmentation=compressed_rle()), 2, True),
    "uncompressed RLE": (_first(segmentation=uncompressed_rle()), 2, True),
    "crowd": (_first(segmentation=uncompressed_rle(), iscrowd=1), 1, True),
    "keypoints of three numbers each": (_first(keypoints=[1, 2, 2] * 17), 2, True),
    "keypoints as pairs": (_first(keypoints=[[1, 2], [3, 4]]), 2, True),
    "keypoints as words": (_first(keypoints=["nose", "eye", "ear"]), 2, True),
    "keypoints as text": (_first(keypoints="1 2 2"), 2, True),
    "no iscrowd and no area": (_first(iscrowd=None, area=None), 2, True),
    "no value of iscrowd and area": (
        lambda c: c["annotations"][0].update(iscrowd=None, area=None),
        2,
        True,
    ),
    "ids from 0": (lambda c: [a.update(id=a["id"] - 1) for a in c["annotations"]], 2, True),
    "box without area": (_first(bbox=[10, 5, 0, 10]), 1, True),
    "box without a mask outside the image": (_first(bbox=[90, 5, 20, 10], segmentation=None), 1, True),
    "box partly outside the image": (
        _first(bbox=[70, 5, 20, 10], segmentation=[[70, 5, 90, 5, 90, 15, 70, 15]]),
        2,
        True,
    ),
    "box and mask outside the image": (
        _first(bbox=[90, 5, 20, 10], segmentation=[[90, 5, 110, 5, 110, 15, 90, 15]]),
        1,
        True,
    ),
    "mask with all signs flipped": (_first(segmentation=[[-v for v in POLYGON]]), 2, False),
    "polygon of three clicks on one point": (_first(segmentation=[[12, 8] * 3]), 2, False),
    "polygon drawn there and back": (_first(segmentation=[[10, 5, 30, 5, 20, 5]]), 2, False),
    "polygon drawn twice": (_first(segmentation=[POLYGON * 2]), 2, False),
    "RLE without a pixel": (_first(segmentation={"size": [50, 80], "counts": [4000]}), 2, False),
    "ignore": (_first(ignore=1), 1, True),
    "negative area": (_first(area=-200), 2, True),
    "object listed twice": (lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), 2, True),
    "ids and sizes with a point": (
        lambda c: [
            record.update({key: float(record[key]) for key in keys})
            for part, keys in (
                ("images", ("id", "width", "height")),
                ("annotations", ("id", "image_id", "category_id", "iscrowd")),
                ("categories", ("id",)),
            )
            for record in c[part]
        ],
        2,
        True,
    ),
    "RLE with points": (
        _first(segmentation={key: [float(v) for v in value] for key, value in uncompressed_rle().items()}),
        2,
        True,
    ),
    "a class with two ids": (
        lambda c: (
            c["categories"].insert(0, {"id": 0, "name": "cat"}),
            c["annotations"][2].update(category_id=0),
        ),
        2,
        True,
    ),
    "coco_url in place of file_name": (
        lambda c: [i.update(coco_url=f"http://host/here/./{i.pop('file_name')}") for i in c["images"]],
        2,
        True,
    ),
    "file name with a backslash": (_image(file_name=".\\1.png"), 2, True),
    "box without a mask that reaches far out": (
        _first(bbox=[-1e12, 5, 2e12, 10], segmentation=None),
        2,
        False,
    ),
    "polygon partly outside the image": (
        _first(bbox=[60, 5, 20, 10], segmentation=[[60, 5, 90, 5, 90, 15, 60, 15]]),
        2,
        True,
    ),
    "gaps in the category ids": (
        lambda c: (
            c["categories"].__setitem__(1, {"id": 90, "name": "dog"}),
            [a.update(category_id=90) for a in c["annotations"] if a["category_id"] == 2],
        ),
        2,
        True,
    ),
    "category without annotations": (lambda c: c["categories"].append({"id": 7, "name": "cow"}), 2, True),
}

# Name -> change, what the error says.
FAILS = {
    "no box": (_first(bbox=None), r"annotation 1 has the bbox None, expected \[x, y, width, height\]"),
    "box of three numbers": (_first(bbox=[1, 2, 3]), r"annotation 1 has the bbox \[1, 2, 3\], expected"),
    "box of NaN": (_first(bbox=[1, 2, 3, float("nan")]), r"annotation 1 has the bbox .*nan.*, expected"),
    "negative box": (
        _first(bbox=[1, 2, -3, 4]),
        r"annotation 1 has the bbox .*, expected a width and height",
    ),
    "unknown category": (_first(category_id=99), r"annotation 1 has category_id 99, which no category has"),
    "unknown image": (_first(image_id=99), r"annotation 1 has image_id 99, which no image has"),
    "duplicate annotation id": (_first(id=2), r"annotation 2 is the id of 2 annotations, expected of one"),
    "duplicate image id": (_image(id=2), r"image 2 is the id of 2 images, expected of one"),
    "duplicate category id": (
        lambda c: c["categories"][0].update(id=2),
        r"category 2 is the id of 2 categories, expected of one",
    ),
    "two images of one file": (_image(file_name="2.png"), r"file_name '2.png' is that of 2 images"),
    "box as x0, y0, x1, y1": (
        _first(bbox=[10, 5, 30, 15]),
        r"annotation 1 has the bbox .*, but its mask is at \(10, 5\) to \(30, 15\): .* seems to be x0, y0",
    ),
    "box as y, x, height, width": (
        _first(bbox=[5, 30, 10, 20], segmentation=[[30, 5, 50, 5, 50, 15, 30, 15]]),
        r"annotation 1 has the bbox .*: the bbox seems to be y, x, height, width, expected x, y",
    ),
    "box as centre and size": (
        _first(bbox=[20, 10, 20, 10]),
        r"annotation 1 has the bbox .*: the bbox seems to be centre x, centre y, width, height",
    ),
    "box in shares of the image": (
        _first(bbox=[0.125, 0.1, 0.25, 0.2]),
        r"annotation 1 has the bbox .*: the bbox seems to be fractions of the image's width and height",
    ),
    "box of another object": (
        lambda c: (
            c["annotations"][0].update(bbox=[50, 20, 9, 9]),
            c["annotations"][1].update(
                bbox=[50, 20, 9, 9], segmentation=[[50, 20, 59, 20, 59, 29, 50, 29]]
            ),
        ),
        r"annotation 1 has the bbox .*: the bbox seems to be that of annotation 2",
    ),
    "box outside the image": (
        _first(bbox=[90, 5, 20, 10]),
        r"annotation 1 has the bbox .*: they seem to be of different objects or sizes of the image",
    ),
    "all in shares of the image": (
        lambda c: [
            a.update(
                bbox=[v / 80 for v in a["bbox"]], segmentation=[[v / 80 for v in a["segmentation"][0]]]
            )
            for a in c["annotations"]
        ],
        r"annotation 1 has the bbox .*; 4 of 4 boxes have coordinates from 0 to 1",
    ),
    "no categories": (lambda c: c.update(categories=[]), r"categories are empty, expected at least one"),
    "polygon of an odd number": (
        _first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        r"annotation 1 has a polygon that is not a list of x, y",
    ),
    "polygon that reaches far out": (
        _first(segmentation=[POLYGON, [0, 0, 1e9, 0, 1e9, 10]]),
        r"annotation 1 has a polygon that reaches far outside its image or is too long for it",
    ),
    "polygon that is far away": (
        _first(segmentation=[[1e12, 0, 1e12 + 1, 0, 1e12 + 1, 10]]),
        r"annotation 1 has a polygon that reaches far outside its image or is too long for it",
    ),
    "polygon that goes to and fro for ever": (
        _first(segmentation=[[0, 0, 79, 49] * 500]),
        r"annotation 1 has a polygon that reaches far outside its image or is too long for it",
    ),
    "polygon of two points that is infinitely far away": (
        _first(segmentation=[[1e300, 0, 1e300, 1], POLYGON]),
        r"annotation 1 has a polygon that is not a list of x, y",
    ),
    "polygon of words": (_first(segmentation=[["a"] * 6]), r"annotation 1 has a polygon that is not"),
    "mask as text": (_first(segmentation="1 2 3"), r"annotation 1 has a str as segmentation, expected"),
    "RLE without size": (
        _first(segmentation={"counts": [1]}),
        r"annotation 1 has RLE without counts and size",
    ),
    "RLE of another size": (
        _first(segmentation={"size": [80, 50], "counts": [4000]}),
        r"annotation 1 has RLE of size \[80, 50\], expected \[50, 80\]",
    ),
    "RLE that does not add up": (
        _first(segmentation={"size": [50, 80], "counts": [17]}),
        r"annotation 1 has RLE whose counts do not add up to 50 x 80 pixels",
    ),
    "RLE that is cut off": (
        _first(segmentation={**compressed_rle(), "counts": compressed_rle()["counts"][:-1]}),
        r"annotation 1 has (compressed RLE that is cut off|RLE whose counts do not add up to 50 x 80)",
    ),
    "RLE of fractions": (
        _first(segmentation={"size": [50, 80], "counts": [1.5, 3998.5]}),
        r"annotation 1 has RLE whose counts are not whole numbers of 0 or more",
    ),
    "RLE of negative counts": (
        _first(segmentation={"size": [50, 80], "counts": [4010, -10]}),
        r"annotation 1 has RLE whose counts are not whole numbers of 0 or more",
    ),
    "true as id": (_first(id=True), r"annotation number 1 has the id True, expected a whole number"),
    "id of 40 digits": (_first(id=10**40), r"annotation number 1 has the id 1000.*, expected a whole"),
    "box of 400 digits": (_first(bbox=[1, 2, 3, 10**400]), r"annotation 1 has the bbox .*, expected"),
    "image of 10 billion pixels": (_image(width=10**5, height=10**5), r"image 1 has width 100000 and"),
    "instance_count as text": (
        lambda c: c["categories"][0].update(instance_count="9"),
        r"category 1 has the instance_count '9', expected a whole number of 0 or more",
    ),
    "list as coco_name": (
        lambda c: c["categories"][0].update(coco_name=["cat"]),
        r"category 1 has the coco_name \['cat'\], expected a name",
    ),
    "annotation without id": (_first(id=None), r"annotation number 1 has the id None, expected a whole"),
    "image with text as id": (_image(id="a"), r"image number 1 has the id 'a', expected a whole number"),
    "list as category": (
        _first(category_id=[1]),
        r"annotation 1 has category_id \[1\], which no category has",
    ),
    "list as image": (_first(image_id=[1]), r"annotation 1 has image_id \[1\], which no image has"),
    "list as name": (lambda c: c["categories"][0].update(name=["a"]), r"category 1 has the name \['a'\]"),
    "iscrowd as text": (_first(iscrowd="0"), r"annotation 1 has iscrowd '0', expected 0 or 1"),
    "area as text": (_first(area="9"), r"annotation 1 has the area '9', expected a number of pixels"),
    "category without id": (
        lambda c: c["categories"][0].pop("id"),
        r"category number 1 has the id None, expected a whole number",
    ),
    "category with text as id": (
        lambda c: c["categories"][0].update(id="1"),
        r"category number 1 has the id '1', expected a whole number",
    ),
    "image without size": (_image(width=None), r"image 1 has width None and height 50, expected numbers"),
    "image with a name of 5,000 characters": (
        _image(file_name="x" * 5000),
        r"image 1 has the file_name 'xx",
    ),
    "image without name": (_image(file_name=None), r"image 1 has the file_name None"),
}
