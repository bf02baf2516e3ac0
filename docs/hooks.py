"""
For the site. Links out of this folder, and the roles of names in docstrings, are for those who read the
repository: the site has their text alone.
"""

import re

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code>)")
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Called by MkDocs with the text of each page."""
    return _OUTSIDE.sub(r"\1", markdown)


def on_page_content(html: str, **kwargs) -> str:
    """Called by MkDocs with each page as HTML."""
    return _ROLE.sub("", html)
