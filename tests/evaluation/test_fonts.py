import numpy as np
import pytest
from matplotlib.ft2font import FT2Font
from PIL import Image

from maskx_d2.evaluation import fonts
from maskx_d2.evaluation.fonts import font_for, missing_letters
from maskx_d2.evaluation.pictures import ClassStyle, draw_detections


def test_english_names_keep_pillows_font():
    assert font_for("cat 90%") == (None, "") and missing_letters(["cat", "dog"]) is None


@pytest.mark.parametrize("name", ["Größe", "żółć", "собака", "σκύλος"])
def test_a_font_that_everybody_has_has_the_letters_of_european_names(name):
    font = font_for(name)
    assert font.missing == "" and missing_letters([name]) is None
    assert {ord(c) for c in name + "0123456789%"} <= set(FT2Font(font.path).get_charmap())


def test_what_no_font_has_is_said(monkeypatch):
    everything = fonts._installed()
    monkeypatch.setattr(fonts, "_installed", lambda: everything[:1])  # DejaVu Sans alone
    fonts._font_with.cache_clear()
    try:
        assert "DejaVu" in everything[0]
        assert missing_letters(["cat", "猫", "Größe"]) == (
            "no installed font has 猫, drawn as boxes: install one that has, such as Noto Sans CJK"
        )
        monkeypatch.setattr(fonts, "_installed", list)
        fonts._font_with.cache_clear()
        assert font_for("Größe").path is None and "ß" in missing_letters(["Größe"])
    finally:
        fonts._font_with.cache_clear()


def test_labels_of_different_letters_are_drawn_in_their_own_font():
    boxes = {1: [5, 40, 40, 30], 2: [105, 40, 40, 30]}

    def drawn(first, second):
        style = ClassStyle({1: first, 2: second}, frozenset({1}))
        detections = [{"category_id": i, "bbox": box, "score": 0.9} for i, box in boxes.items()]
        return np.asarray(draw_detections(Image.new("RGB", (200, 90)), detections, style))

    plain, mixed = drawn("cat", "dog"), drawn("cat", "дом")
    assert np.array_equal(plain[:, :100], mixed[:, :100])
    assert not np.array_equal(plain[:, 100:], mixed[:, 100:])
