import xml.etree.ElementTree as ElementTree
from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from maskx_d2.data.printable import in_markdown, in_plot, printable


def test_what_a_terminal_would_obey_is_shown_as_its_escape_sequence():
    assert printable("a\x1b[31mb\nc\td\u202e\ud800é猫") == r"a\x1b[31mb\nc\td\u202e\ud800é猫"


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_that_can_be_written(text):
    shown = printable(text)
    assert shown.isprintable() and len(shown.splitlines()) <= 1
    shown.encode("utf-8")


def test_markdown_takes_no_name_for_markup():
    assert in_markdown("a|b <i> `c` [d](e) *f* $g$ h_i") == (r"a\|b \<i\> \`c\` \[d\](e) \*f\* \$g\$ h_i")


def test_matplotlib_draws_dollars_as_dollars():
    figure = Figure()
    figure.text(0, 0, in_plot(r"price $\frac{ of $1"))
    buffer = BytesIO()
    figure.savefig(buffer, format="svg")
    ElementTree.fromstring(buffer.getvalue())
