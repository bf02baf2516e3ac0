import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from maskx_d2.commands import main as cli
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.runtime import interrupt
from maskx_d2.runtime.exit_status import one_sentence

from ..data import awkward
from ..hidden import detectron2_hidden_in_processes


@pytest.fixture(scope="module", autouse=True)
def without_detectron2(tmp_path_factory):
    with detectron2_hidden_in_processes(tmp_path_factory.mktemp("hidden")):
        yield


def ends(capsys, error, *, show_traceback=False):
    """Exit status and what is printed."""
    with pytest.raises(SystemExit) as stopped, one_sentence("maskx", show_traceback=show_traceback):
        raise error
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("a is 3, expected 4"), 2, "maskx: a is 3, expected 4"),
        (MissingFileError("x is not a file"), 2, "maskx: x is not a file"),
        (FileNotFoundError(2, "No such file", "x"), 2, "maskx: [Errno 2] No such file: 'x'"),
        (OSError("no host"), 3, "maskx: OSError: no host (--traceback as the first option shows where)"),
        (
            ValueError("operands could not be broadcast together"),
            3,
            "maskx: ValueError: operands could not be broadcast together "
            "(--traceback as the first option shows where)",
        ),
        (FloatingPointError("the loss is not finite"), 2, "maskx: the loss is not finite"),
        (InputError("two\nlines \x1b[31m"), 2, r"maskx: two\nlines \x1b[31m"),
        (
            InputError(
                "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
                "last):\n  File ...\nmaskx_d2.data.errors.InputError: annotation 7 has no box\n"
            ),
            2,
            "maskx: annotation 7 has no box",
        ),
        (
            KeyError("a"),
            3,
            "maskx: KeyError: 'a' (--traceback as the first option shows where)",
        ),
        (
            RuntimeError(
                "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):"
                "\n  File ...\nmaskx_d2.data.errors.InputError: SEED is x, expected a number\n"
            ),
            2,
            "maskx: SEED is x, expected a number",
        ),
        (
            RuntimeError("Traceback (most recent call last):\n  File ...\ntorch.cuda.OtherError: no: more"),
            3,
            "maskx: OtherError: no: more (--traceback as the first option shows where)",
        ),
        (MemoryError(), 3, "maskx: MemoryError (--traceback as the first option shows where)"),
    ],
)
def test_an_error_is_one_line_and_a_status(capsys, error, status, sentence):
    assert ends(capsys, error) == (status, sentence + "\n")


def test_a_traceback_is_shown_to_those_who_ask(capsys):
    status, printed = ends(capsys, KeyError("a"), show_traceback=True)
    assert status == 3 and printed.startswith("Traceback (most recent call last)")
    assert printed.splitlines()[-1] == "maskx: KeyError: 'a'"


def test_handlers_of_signals_are_put_back(capsys):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ends(capsys, ValueError())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_with_its_status_and_no_partial_file(tmp_path, number, status):
    script = """
    import sys, time
    from pathlib import Path
    from maskx_d2.data.files import replacing
    from maskx_d2.runtime.exit_status import one_sentence
    with one_sentence("maskx", show_traceback=False), replacing(Path(sys.argv[1])):
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == status
    assert printed == f"\nmaskx: stopped by {number.name}\n"
    assert list(tmp_path.iterdir()) == []


class KillsItsProcess:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_that_loads_images_is_said_with_the_keys_that_help(capsys):
    with pytest.raises(SystemExit) as stopped, one_sentence("maskx", show_traceback=False):
        next(iter(DataLoader(KillsItsProcess(), num_workers=1)))
    (printed,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 3
    assert re.match(r"maskx: DataLoader worker \(pid.*\) .*memory.*--data.num_workers, DATALOADER", printed)


@pytest.mark.parametrize(("seconds", "status"), [(0, 0), (1.2, 143)])
def test_a_second_signal_ends_at_once_what_the_first_did_not_unless_it_came_with_it(seconds, status):
    script = f"""
    import os, signal, sys, time
    from maskx_d2.runtime.exit_status import DeferredSignals
    deferred = DeferredSignals()
    deferred.defer()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({seconds})
    os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(deferred.number - signal.SIGTERM)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == status


def test_processes_of_a_command_are_told_of_sigterm(tmp_path):
    script = """
    import multiprocessing, os, signal, time
    from maskx_d2.runtime.exit_status import one_sentence
    def wait():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ready.set()
        time.sleep(60)
    with one_sentence("maskx", show_traceback=False):
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        child = context.Process(target=wait)
        child.start()
        ready.wait()
        print("ready", flush=True)  # by the parent: until start() returns, it does not know its child
        child.join()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    process.communicate(timeout=20)  # that it ends: it waits for its processes
    assert process.returncode == 143


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m maskx_d2 splits voc | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


# ---- Commands ----


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1, printed
    return stopped.value.code, printed[0]


def test_outputs_that_are_no_files_or_inputs_are_refused_by_every_command(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    random = ["embeddings", "random", "--output"]
    assert failure(capsys, *random, "/dev/full") == (
        2,
        "maskx: /dev/full is a device or a pipe, expected a file or nothing",
    )
    assert failure(capsys, *random, tmp_path / "pipe")[0] == 2
    names = tmp_path / "names.txt"
    names.write_text("dog\n")
    assert "would overwrite its input" in failure(capsys, *random, names, "--classes", names)[1]
    assert names.read_text() == "dog\n"
    genome = [tmp_path / name for name in ("vg3k_train.json", "objects.json", "coco.json")]
    for path in genome:
        path.write_text("[]")
    status, sentence = failure(
        capsys,
        *("prepare", "vg3k", "--image-data", genome[0], "--objects", genome[1]),
        *("--coco-val", genome[2], "--output", tmp_path),
    )
    assert status == 2 and "would overwrite its input" in sentence
    assert genome[0].read_text() == "[]"
    (tmp_path / "comparison.html").mkdir()
    status, sentence = failure(capsys, "compare", tmp_path / "absent", "--output", tmp_path)
    assert status == 2 and "comparison.html is a folder, expected a file or nothing" in sentence


def test_json_that_python_cannot_read_is_named_by_every_command(capsys, tmp_path):
    path = tmp_path / "truth.json"
    genome = ["--image-data", path, "--objects", path, "--coco-val", path]
    for content in (b"[" * 100_000, b"[1" + b"0" * 5_000 + b"]", b"\xff\xfe", b"{}", b"3"):
        path.write_bytes(content)
        for command in (
            ["splits", "voc", path],
            ["check-dataset", path, tmp_path],
            ["embeddings", "random", "--output", tmp_path / "x.npy", "--classes", path],
            ["prepare", "vg3k", *genome, "--output", tmp_path / "genome"],
        ):
            status, sentence = failure(capsys, *command)
            assert status == 2 and "truth.json" in sentence


def test_a_list_of_classes_may_end_in_capitals(capsys, tmp_path):
    path = awkward.write(tmp_path).rename(tmp_path / "TRUTH.JSON")
    cli.main(["embeddings", "random", "--output", str(tmp_path / "x.npy"), "--classes", str(path)])
    assert np.load(tmp_path / "x.npy").shape == (2, 300)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_word_vectors_that_are_not_finite_are_named(capsys, tmp_path, number):
    (tmp_path / "vectors.txt").write_text(f"cow 1 2\ncat 1 {number}\n")
    (tmp_path / "names.txt").write_text("cat\n")
    status, sentence = failure(
        capsys,
        *("embeddings", "glove", "--vectors", tmp_path / "vectors.txt"),
        *("--classes", tmp_path / "names.txt", "--output", tmp_path / "x.npy"),
    )
    assert status == 2 and "line 2 has numbers that are not finite" in sentence
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("command", ["predict --weights a.ckpt --output out image.png", "compare run"])
def test_a_score_that_is_none_is_refused(capsys, command):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--min-score", "nan"])
    assert stopped.value.code == 2
    assert "nan is not between 0 and 1" in capsys.readouterr().err


def test_a_picture_in_16_bits_is_passed_over_with_a_sentence_by_check_dataset(capsys, tmp_path):
    path = awkward.write(tmp_path)
    Image.fromarray(np.full((50, 80), 300, np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check-dataset", str(path), str(tmp_path)])
    assert stopped.value.code == 1
    assert "1.png: its pixels have 16 bits, expected 8" in capsys.readouterr().out


def test_links_that_lead_to_themselves_are_named_by_every_command(capsys, tmp_path):
    loop, folder = tmp_path / "loop", tmp_path / "folder"
    loop.symlink_to("loop")
    folder.mkdir()
    path = awkward.write(tmp_path)
    model = ["--weights", path]
    for command in (
        ["predict", *model, "--output", folder, loop],
        ["predict", *model, "--output", loop, tmp_path / "1.png"],
        ["predict", "--weights", loop, "--output", folder, tmp_path / "1.png"],
        ["fill-masks", loop, folder, *model, "--output", tmp_path / "out.json"],
        ["fill-masks", path, folder, *model, "--output", loop],
        ["compare", loop, "--output", folder],
        ["compare", folder, "--baseline", loop],
        ["compare", folder, "--images-root", loop],
        ["check-dataset", loop, folder],
        ["check-dataset", path, loop],
        ["splits", "voc", loop],
        ["embeddings", "random", "--output", loop],
        ["embeddings", "random", "--output", loop / "x.npy"],
        ["embeddings", "random", "--classes", loop, "--output", tmp_path / "x.npy"],
        ["prepare", "shapes", "--output", loop],
    ):
        status, sentence = failure(capsys, *command)
        assert status == 2 and ("loop" in sentence or "expected --config-file" in sentence), sentence


# ---- Ctrl-C while libraries are imported ----


@pytest.mark.parametrize("command", ["module", "script", "train_net.py"])
def test_ctrl_c_during_imports_is_one_line(tmp_path, command):
    (tmp_path / "detectron2").mkdir()
    slow = "import time\nprint('importing', flush=True)\ntime.sleep(60)\n"
    (tmp_path / "detectron2" / "__init__.py").write_text(slow)
    script = Path(sys.executable).with_name("maskx")
    train_net = Path(__file__).parents[2] / "train_net.py"
    words = {"module": ["-m", "maskx_d2"], "script": [script], "train_net.py": [train_net]}[command]
    process = subprocess.Popen(
        [sys.executable, *words, "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path if command == "script" else train_net.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert (process.returncode, printed) == (130, "\nmaskx: stopped by SIGINT\n")


def test_other_programs_keep_their_ctrl_c():
    code = "import signal, maskx_d2; assert signal.getsignal(2) is signal.default_int_handler"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    for words, is_command in (
        (["python", "-m", "maskx_d2", "demo"], True),
        (["python", "/usr/bin/maskx", "demo"], True),
        (["python", "-m", "pytest", "maskx_d2"], False),
        (["python", "mine.py", "maskx"], False),
        (["python"], False),
    ):
        assert interrupt._is_command(words) is is_command, words


def test_a_very_long_error_is_cut(capsys):
    _, printed = ends(capsys, InputError("a" * 100_000 + "b"))
    assert len(printed) < 2100 and printed.startswith("maskx: aaa") and printed.endswith("aab\n")
