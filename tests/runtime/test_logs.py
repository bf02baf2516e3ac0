import logging
import warnings

import pytest

from maskx_d2.runtime.logs import log_to_file


def test_what_hosts_log_and_print_goes_to_the_file_and_some_to_the_screen_too(tmp_path, capsys):
    shown, other = logging.getLogger("maskx_d2.shown"), logging.getLogger("detectron2.other")
    path = tmp_path / "run" / "log.txt"
    for number in (1, 2):
        with log_to_file(path, on_screen=["maskx_d2.shown"]):
            shown.info("seen %d", number)
            other.info("logged %d", number)
            print("printed", number)
            warnings.warn(f"warned {number}", stacklevel=1)
    out, err = capsys.readouterr()
    assert out == "seen 1\nseen 2\n" and err == ""
    log = path.read_text()
    for number in (1, 2):
        for said in ("seen", "logged", "printed", "warned"):
            assert f"{said} {number}" in log
    assert shown.handlers == [] and other.handlers == []


def test_an_error_before_anything_else_leaves_no_folder_and_one_after_leaves_the_log(tmp_path):
    for other, left in ((None, []), ("weights", ["log.txt", "weights"])):
        with pytest.raises(ZeroDivisionError), log_to_file(tmp_path / "run" / "log.txt"):
            if other:
                (tmp_path / "run" / other).touch()
            print("begun")
            raise ZeroDivisionError
        folder = tmp_path / "run"
        assert (sorted(path.name for path in folder.iterdir()) if folder.exists() else []) == left
    with pytest.raises(ZeroDivisionError), log_to_file(tmp_path / "own" / "log.txt"):
        raise ZeroDivisionError
    (tmp_path / "own").mkdir()
    with pytest.raises(ZeroDivisionError), log_to_file(tmp_path / "own" / "log.txt"):
        raise ZeroDivisionError
    assert (tmp_path / "own" / "log.txt").exists()  # the folder was the user's


def test_afterwards_loggers_are_as_they_were(tmp_path, capsys):
    logger = logging.getLogger("lightning.own")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    try:
        with (
            pytest.raises(ZeroDivisionError),
            log_to_file(tmp_path / "log.txt", on_screen=["lightning.own"]),
        ):
            raise ZeroDivisionError
        assert logger.handlers == [handler]
    finally:
        logger.removeHandler(handler)
    print("here")
    assert capsys.readouterr().out == "here\n"
