"""
The same two images and four objects as labelling tools export them to COCO's format, by what their own docs
and exporters write: ids, keys, kinds of mask, and habits.
"""

import pycocotools.mask as mask_util

from . import awkward

IMAGES = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": "2.png"}]
SIZE = {"width": awkward.WIDTH, "height": awkward.HEIGHT}
POLYGON = [10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 12.0]
CORNERS = [10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 15.0]
BOX = [10.0, 5.0, 20.0, 10.0]


def export(*, image=(), annotation=(), categories=None, first_id=1, first_category=1, **parts):
    """Four objects, two of each of two classes; ``image`` and ``annotation`` are keys that each has."""
    names = ["cat", "dog"]
    categories = categories or [
        {"id": first_category + i, "name": name, "supercategory": ""} for i, name in enumerate(names)
    ]
    ids = [category["id"] for category in categories if category["name"] in names]
    annotations = [
        {
            "id": first_id + i,
            "image_id": 1 + i // 2,
            "category_id": ids[i % 2],
            "bbox": BOX,
            "area": 185.0,
            "iscrowd": 0,
            "segmentation": [POLYGON],
            **dict(annotation),
        }
        for i in range(4)
    ]
    images = [{**record, **SIZE, **dict(image)} for record in IMAGES]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
        **parts,
    }


def cvat_polygons():
    """CVAT, "COCO 1.0", of polygons."""
    return export(
        image={"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        annotation={"attributes": {"occluded": False, "rotation": 0.0}},
    )


def cvat_masks():
    """CVAT of masks drawn with the brush, and of rectangles: RLE with iscrowd 1, and no segmentation."""
    content = cvat_polygons()
    for annotation in content["annotations"][:2]:
        annotation.update(iscrowd=1, segmentation=awkward.uncompressed_rle(), area=200.0)
    for annotation in content["annotations"][2:]:
        annotation["segmentation"] = []
    return content


def datumaro():
    """Datumaro: masks as RLE, which are crowd regions."""
    return export(
        image={"license": 0, "flickr_url": "", "coco_url": "", "date_captured": 0},
        annotation={"iscrowd": 1, "segmentation": awkward.uncompressed_rle(), "attributes": {}},
    )


def label_studio():
    """Label Studio: ids from 0, and on Windows backslashes."""
    content = export(annotation={"ignore": 0}, first_id=0, first_category=0)
    for image in content["images"]:
        image["file_name"] = f".\\{image['file_name']}"
    return content


def roboflow():
    """Roboflow: a root category without annotations, ids from 0."""
    root = {"id": 0, "name": "animals", "supercategory": "none"}
    classes = [{"id": i, "name": n, "supercategory": "animals"} for i, n in ((1, "cat"), (2, "dog"))]
    return export(
        image={"license": 1, "date_captured": "2024-01-01T00:00:00+00:00", "extra": {"name": "1.png"}},
        categories=[root, *classes],
        first_id=0,
    )


def roboflow_of_one_class():
    """Roboflow, of a project that has the name of a class: the name twice."""
    root = {"id": 0, "name": "cat", "supercategory": "none"}
    classes = [{"id": i, "name": n, "supercategory": "cat"} for i, n in ((1, "cat"), (2, "dog"))]
    content = export(categories=[root, *classes], first_id=0)
    for i, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + i % 2
    return content


def labelme():
    """labelme2coco.py of labelme: a background category, no sizes of areas as whole numbers."""
    background = {"supercategory": None, "id": 0, "name": "_background_"}
    classes = [{"supercategory": None, "id": i, "name": n} for i, n in ((1, "cat"), (2, "dog"))]
    return export(
        image={"license": 0, "url": None, "date_captured": None},
        categories=[background, *classes],
        first_id=0,
    )


def via_flat():
    """VGG Image Annotator: a polygon as a flat list."""
    return export(annotation={"segmentation": POLYGON})


def via_text_ids():
    """VGG Image Annotator 3: ids of images are text."""
    content = export()
    for image in content["images"]:
        image["id"] = str(image["id"])
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    return content


def fiftyone():
    """FiftyOne: categories from 0, keys of its own."""
    return export(image={"license": None, "coco_url": None}, annotation={"score": None}, first_category=0)


def supervisely():
    """Supervisely."""
    return export(image={"license": 0, "date_captured": "", "flickr_url": ""}, type="instances")


def make_sense():
    """makesense.ai."""
    return export(info={"description": "my-project"})


def coco_annotator_boxes():
    """COCO Annotator, of boxes: polygons of their four corners."""
    return export(
        image={"dataset_id": 1, "path": "/datasets/1.png", "annotated": True, "deleted": False},
        annotation={
            "isbbox": True,
            "color": "#fff",
            "metadata": {},
            "segmentation": [CORNERS],
            "area": 200,
        },
        first_id=10,
    )


def labelbox():
    """Labelbox: ids are text."""
    content = export()
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = f"ckrazctum0002{number}"
    return content


def v7():
    """V7 Darwin: category ids are checksums."""
    categories = [{"id": 3386823473, "name": "cat"}, {"id": 1014565230, "name": "dog"}]
    return export(image={"darwin_url": "https://"}, annotation={"extra": {}}, categories=categories)


def segments():
    """Segments.ai: compressed RLE."""
    polygon = mask_util.frPyObjects([POLYGON], awkward.HEIGHT, awkward.WIDTH)[0]
    rle = {"size": polygon["size"], "counts": polygon["counts"].decode()}
    return export(annotation={"segmentation": rle})


def encord():
    """Encord, of boxes: a list with an empty polygon."""
    return export(annotation={"segmentation": [[]], "rotation": 0, "track_id": "a"})


def x_anylabeling():
    """X-AnyLabeling: ``ignore`` for difficult objects."""
    content = export(annotation={"ignore": 0})
    content["annotations"][0]["ignore"] = 1
    return content


def isat():
    """ISAT: a background class, and objects drawn in several parts."""
    background = {"id": 0, "name": "__background__", "supercategory": None}
    classes = [{"id": i, "name": n, "supercategory": None} for i, n in ((1, "cat"), (2, "dog"))]
    parts = [[10, 5, 18, 5, 18, 15, 10, 15], [22, 5, 30, 5, 30, 15, 22, 15]]
    return export(
        annotation={"segmentation": parts, "area": 160, "note": ""}, categories=[background, *classes]
    )


def yolo_converter():
    """A script that turned YOLO's labels into COCO: relative, by centres."""
    share = [20 / 80, 10 / 50, 20 / 80, 10 / 50]
    return export(annotation={"bbox": share, "segmentation": [], "area": share[2] * share[3]})


def voc_converter():
    """A script that turned PASCAL VOC into COCO: two corners as the box."""
    return export(annotation={"bbox": [10, 5, 30, 15]})


def lvis():
    """LVIS: no file names."""
    content = export()
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/./{image.pop('file_name')}"
    return content


# Tool -> exit status, kinds of errors and remarks that check-dataset must name, and no others.
EXPECTED = {
    cvat_polygons: (0, []),
    cvat_masks: (0, ["with an empty segmentation", "crowd regions", "masks that are crowd regions"]),
    datumaro: (0, ["crowd regions", "masks that are crowd regions"]),
    label_studio: (0, ["category ids other than", "file names with backslashes"]),
    roboflow: (0, ["category ids other than", "categories without annotations"]),
    roboflow_of_one_class: (0, ["category ids other than", "names of several categories"]),
    labelme: (0, ["category ids other than", "categories without annotations"]),
    via_flat: (1, ["segmentations of an unknown form"]),
    via_text_ids: (1, ["images whose id is not"]),
    fiftyone: (0, ["category ids other than"]),
    supervisely: (0, []),
    make_sense: (0, []),
    coco_annotator_boxes: (0, ["classes whose masks are rectangles"]),
    labelbox: (1, ["annotations whose id is not"]),
    v7: (0, ["category ids other than"]),
    segments: (0, ["compressed RLE masks"]),
    encord: (0, ["with an empty segmentation"]),
    x_anylabeling: (0, ["annotations to ignore"]),
    isat: (0, ["category ids other than", "categories without annotations"]),
    yolo_converter: (
        1,
        ["files with relative coordinates", "with an empty segmentation"],
    ),
    voc_converter: (1, ["boxes that do not fit their mask"]),
    lvis: (0, ["images without file_name"]),
}
