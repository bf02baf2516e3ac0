"""Repairs of annotation files that ``maskx check-dataset`` makes on request, in the content of the JSON."""

from maskx_d2.data.coco_format import category_names


def fix_crowd(content: dict) -> int:
    """
    Set ``iscrowd`` to 0, for files of tools that write 1 with every RLE mask.

    Returns:
        The number of annotations that are changed.
    """
    crowds = [annotation for annotation in content["annotations"] if annotation.get("iscrowd")]
    for annotation in crowds:
        annotation["iscrowd"] = 0
    return len(crowds)


def drop_unused_categories(content: dict) -> list[str]:
    """
    Remove categories that no annotation has, such as the "root" of a hierarchy.

    Returns:
        Their names.
    """
    used = {annotation["category_id"] for annotation in content["annotations"]}
    unused = [category for category in content["categories"] if category["id"] not in used]
    content["categories"] = [category for category in content["categories"] if category["id"] in used]
    return category_names(unused)
