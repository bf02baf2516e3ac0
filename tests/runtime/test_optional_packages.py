import re
from pathlib import Path

import pytest

from maskx_d2.commands import main as cli
from maskx_d2.data.errors import InputError
from maskx_d2.runtime import optional_packages
from maskx_d2.runtime.optional_packages import REQUIREMENTS, need

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def hide(monkeypatch, *modules):
    find_spec = optional_packages.find_spec
    monkeypatch.setattr(
        optional_packages, "find_spec", lambda name: None if name in modules else find_spec(name)
    )


def test_what_is_installed_is_not_asked_for():
    need("this", "lightning", "jinja2")


def test_what_is_missing_is_named_with_its_install_line(monkeypatch):
    hide(monkeypatch, "jinja2", "cv2")
    expected = r"^this needs jinja2 and cv2, which are not installed: pip install 'jinja2' 'opencv-python'$"
    with pytest.raises(InputError, match=expected):
        need("this", "jinja2", "lightning", "cv2")
    with pytest.raises(
        InputError, match=r"needs cv2, which is not installed: pip install 'opencv-python'$"
    ):
        need("this", "cv2")


def test_requirements_are_those_of_the_extras():
    """Read as text: Python 3.10 has no parser of TOML."""
    text = PYPROJECT.read_text()
    extras = text[text.index("[project.optional-dependencies]") : text.index("docs = ")]
    listed = set(re.findall(r'"([^"]+)"', extras)) - {"maskx_d2[tools]"}
    assert listed == set(REQUIREMENTS.values())


@pytest.mark.parametrize(
    ("hidden", "arguments"),
    [
        ("jinja2", ["compare", "run"]),
        ("supervision", ["compare", "run"]),
        ("matplotlib", ["demo"]),
        ("lightning", ["demo", "--backend", "torchvision"]),
        ("jsonargparse", ["torchvision", "fit", "--help"]),
        ("supervision", ["predict", "--weights", __file__, "--output", "out", __file__]),
        ("contourpy", ["fill-masks", "--weights", __file__, "--output", "out.json", __file__, "."]),
        ("gradio", ["app"]),
        ("ray", ["predict", "--weights", __file__, "--output", "out", "--ray", "--", __file__]),
    ],
)
def test_a_command_that_lacks_a_package_ends_with_the_install_line(
    hidden, arguments, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    hide(monkeypatch, hidden)
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    what = f"maskx {arguments[0]}"
    assert line.startswith(f"maskx: {what}")
    assert line.endswith(f"needs {hidden}, which is not installed: pip install '{REQUIREMENTS[hidden]}'")
