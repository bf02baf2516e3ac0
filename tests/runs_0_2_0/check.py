"""What the models of ``runs.tar.xz`` detected with 0.2.0, against what they detect now."""

import json
from pathlib import Path

import pytest
from PIL import Image


def check_finds_what_it_found(detector, backend):
    """In the folder that the archive is unpacked in."""
    assert detector.style.names == {3: "box", 7: "disk"} and detector.style.with_masks == {3}
    (found,) = detector.coco_results([Image.open("test/1.png").convert("RGB")], [1])
    expected = json.loads(Path("expected.json").read_text())[backend]
    assert len(found) >= len(expected) > 0
    for result, other in zip(found, expected, strict=False):
        assert result["category_id"] == other["category_id"]
        assert result["score"] == pytest.approx(other["score"], abs=1e-6)
        assert result["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert result["segmentation"]["counts"] == other["segmentation"]["counts"]
