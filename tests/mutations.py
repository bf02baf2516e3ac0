"""Strategies for ``hypothesis``: JSON that was valid, with something changed in it."""

import copy

from hypothesis import strategies as st

ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(10**30), 0.5, -1e308, float("nan"), float("inf")),
    *("", "a", "0", "\x1b[2J", "\ud800", "$\\frac", "../../etc", "x" * 300),
    *([], {}, [None], [1, 2, 3, 4], [[]], [[0, 0, 5, 5, 0, 5]], {"a": 1}),
    *({"size": [160, 160], "counts": "P"}, {"size": [10**5, 10**5], "counts": [10**10]}),
)


@st.composite
def mutated(draw, content):
    """``content`` after one to three changes: a value replaced, taken away, doubled or moved."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(("replace", "take away", "double", "move")))
        if change == "replace":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
        elif change == "take away":
            del parent[key]
        elif change == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            other, other_key = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[other_key])
    return content


def _places(content, depth=0):
    """(parent, key) of all values; of long lists the first few."""
    if isinstance(content, dict):
        keys = list(content)
    elif isinstance(content, list):
        keys = list(range(min(len(content), 4)))
    else:
        return
    for key in keys:
        yield content, key
        if depth < 6:
            yield from _places(content[key], depth + 1)
