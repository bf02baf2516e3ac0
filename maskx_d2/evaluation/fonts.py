"""Fonts that have the letters of class names."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

from PIL import ImageFont

_OF_SCORES = frozenset("0123456789%+")  # beside every name


class Font(NamedTuple):
    path: str | None
    """None for Pillow's own font, which has the letters of English."""

    missing: str
    """Characters that it lacks, which are drawn as boxes."""

    def of_size(self, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
        return ImageFont.load_default(size) if self.path is None else ImageFont.truetype(self.path, size)


def font_for(text: str) -> Font:
    """The first installed font that has all characters of a text, or else the one that lacks fewest."""
    letters = {character for character in text if character.isprintable() and not character.isspace()}
    return _font_with(frozenset(letters | _OF_SCORES))


def missing_letters(texts: Iterable[str]) -> str | None:
    """A sentence for users, if no installed font has some of the characters of texts."""
    missing = sorted({character for text in texts for character in font_for(text).missing})
    if not missing:
        return None
    few = "".join(missing[:10]) + ("..." if len(missing) > 10 else "")
    return f"no installed font has {few}, drawn as boxes: install one that has, such as Noto Sans CJK"


@functools.cache
def _font_with(characters: frozenset[str]) -> Font:
    if all(character.isascii() for character in characters):
        return Font(None, "")
    best = Font(None, "".join(sorted(c for c in characters if not c.isascii())))
    for path in _installed():
        found = _characters_of(path)
        missing = "".join(sorted(c for c in characters if ord(c) not in found))
        if len(missing) < len(best.missing):
            best = Font(path, missing)
        if not missing:
            break
    return best


@functools.cache
def _installed() -> list[str]:
    """Paths of fonts. The first is DejaVu Sans, which Matplotlib brings."""
    from matplotlib.font_manager import fontManager

    # The Last Resort font has a box for every character.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    fonts.sort(
        key=lambda f: (
            f.name != "DejaVu Sans",
            f.style != "normal",
            f.weight not in (400, "normal"),
            f.fname,
        )
    )
    return [font.fname for font in fonts]


@functools.cache
def _characters_of(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # Matplotlib's list is of another day
        return frozenset()
