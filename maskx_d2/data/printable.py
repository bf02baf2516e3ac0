"""Escapes names that come from files, so that they can be displayed safely."""

import re

_MARKDOWN = re.compile(r"([\\`*\[\]<>|$])")


def printable(text: str) -> str:
    """On one line of a terminal: what cannot be printed, line breaks too, stands as its escape sequence."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def in_markdown(text: str) -> str:
    """The same, and no character is markup."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def in_plot(text: str) -> str:
    """The same, and matplotlib takes no ``$`` for the begin of a formula."""
    return printable(text).replace("$", r"\$")
