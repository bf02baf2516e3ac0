"""Escapes names that come from files, so that they can be displayed safely."""

import re

_MARKDOWN = re.compile(r"([\\`*\[\]<>|$])")


def printable(text: str) -> str:
    """Text for one line of a terminal. Unprintable characters and line breaks become escape sequences."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def in_markdown(text: str) -> str:
    """Like :func:`printable`, and no character is markup."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def in_plot(text: str) -> str:
    """Like :func:`printable`, and matplotlib does not take ``$`` for the start of a formula."""
    return printable(text).replace("$", r"\$")
