"""Reading COCO JSON."""

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO

_PARTS = ("images", "annotations", "categories")


def read_coco(path: Path) -> COCO:
    """
    Read an annotation file in COCO's format.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or has not COCO's parts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotation file {path} is no file")
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotation file {path} is not JSON: {error}") from error
    missing = [part for part in _PARTS if not isinstance(content, dict) or part not in content]
    if missing:
        raise ValueError(
            f"annotation file {path} has no {missing[0]!r}, expected COCO's {', '.join(_PARTS)}"
        )
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def class_names(coco: COCO) -> list[str]:
    """Names of the categories in the order of their contiguous indices, which is that of their ids."""
    return [coco.cats[category_id]["name"] for category_id in sorted(coco.cats)]
