import errno
import multiprocessing
import os
import re
import time
from contextlib import contextmanager

import pytest

from maskx_d2.runtime import lock
from maskx_d2.runtime.lock import LOCK_FILE, locked_file, locked_folder

FORK = multiprocessing.get_context("fork")


def hold(path, kind, ready):
    with (locked_file if kind == "file" else locked_folder)(path):
        if kind == "with a worker":
            FORK.Process(target=time.sleep, args=(20,)).start()
        ready.set()
        time.sleep(60)


@contextmanager
def held(path, kind="folder"):
    """By another process, which is killed (-9) at the end."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(path, kind, ready))
    process.start()
    try:
        assert ready.wait(30)
        yield process
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(("kind", "locked"), [("folder", locked_folder), ("file", locked_file)])
def test_what_another_process_holds_is_refused_by_its_name_until_it_is_killed(tmp_path, kind, locked):
    output = tmp_path / "out"
    with held(output, kind) as process:
        message = rf"out is being written to by process {process.pid} on .* since 2.*: wait for it, or give"
        for _ in range(2):
            with pytest.raises(ValueError, match=message), locked(output):
                pytest.fail("two have it")
    with locked(output):
        inside = output / LOCK_FILE if kind == "folder" else output.with_name(f"out{LOCK_FILE}")
        assert re.match(rf"process {os.getpid()} on ", inside.read_text())
    # Nothing stays but the folder, which is that of the process that was killed.
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if kind == "folder" else [])


def test_workers_of_a_process_that_was_killed_do_not_keep_its_lock(tmp_path):
    with (
        held(tmp_path, "with a worker"),
        pytest.raises(ValueError, match="is being written"),
        locked_folder(tmp_path),
    ):
        pass
    with locked_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]


def test_a_folder_that_nothing_came_into_goes_and_others_stay(tmp_path):
    for name in (None, "result"):
        folder = tmp_path / "a" / "b"
        with pytest.raises(ZeroDivisionError), locked_folder(folder):
            if name is not None:
                (folder / name).touch()
            raise ZeroDivisionError
        assert sorted(p.name for p in tmp_path.rglob("*")) == ([] if name is None else ["a", "b", "result"])
    (tmp_path / "own").mkdir()
    with locked_folder(tmp_path / "own"):
        pass
    assert list((tmp_path / "own").iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_a_lock_file_is_no_link_and_no_pipe(tmp_path, make):
    make(tmp_path / LOCK_FILE)
    with (
        pytest.raises(ValueError, match=rf"{LOCK_FILE} is a (link|device or a pipe)"),
        locked_folder(tmp_path),
    ):
        pass


def test_who_holds_a_lock_cannot_write_to_the_terminal(tmp_path):
    with held(tmp_path):
        (tmp_path / LOCK_FILE).write_bytes(b"\x1b[2J\xff" + b"x" * 1000)
        with pytest.raises(ValueError) as refused, locked_folder(tmp_path):
            pass
    assert r"by \x1b[2J" in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_written_to(tmp_path, monkeypatch, caplog, number):
    def lockf(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    with locked_folder(tmp_path / "out"):
        (tmp_path / "out" / "result").touch()
    (record,) = caplog.records
    assert (
        "out is on a file system without locks: do not run another command that writes there"
        in record.message
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_of_many_that_begin_at_once_one_at_a_time_has_it(tmp_path):
    processes = [FORK.Process(target=take_turns, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def take_turns(folder):
    done = 0
    while done < 30:
        try:
            with locked_folder(folder / "out"):
                (folder / "alone").touch(exist_ok=False)
                (folder / "alone").unlink()
                done += 1
        except ValueError:
            time.sleep(0.001)
