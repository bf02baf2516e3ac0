import collections
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import settings

from maskx_d2.runtime.pickles import RefusedPickle, read_array_pickle

from .forged_pickles import name, number, raw, text

CODE = (
    b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR(K\x03X\x01\x00"
)
CODE += b"\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbC\x08AAAAAAAA\x86R."
"""Makes an object of whatever lies at an address."""

SWAPPED = pickle.dumps(np.array([None, 1]), protocol=3).replace(b"|NNN", b">NNN")


def written(folder, content):
    (folder / "a.pkl").write_bytes(content)
    return folder / "a.pkl"


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_and_plain_values_are_read_as_they_were_written(tmp_path, protocol):
    arrays = {
        "swapped": np.arange(12.0, dtype=">f4").reshape(3, 4),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.float32(3),
        "nothing": np.zeros((0, 3)),
        "flags": np.array([True, False]),
        "half": np.array(0.5, np.float16),
        "bytes": np.arange(256, dtype=np.uint8),
    }
    content = {
        "blobs": collections.OrderedDict(arrays),
        "cfg": "é\n" * 10,
        "list": [1, (2.5, None), {3: -(2**70)}, b"\xff\x00", b""],
    }
    read = read_array_pickle(written(tmp_path, pickle.dumps(content, protocol)))
    assert read["list"] == content["list"] and read["cfg"] == content["cfg"]
    assert read["blobs"].keys() == arrays.keys()
    for key, value in arrays.items():
        found = read["blobs"][key]
        assert np.array_equal(found, value) and found.shape == value.shape
        assert found.dtype == value.dtype.newbyteorder("=")
        if found.ndim:
            found[...] = 0  # it is a copy that may be changed


def test_the_strings_of_python_2_are_arrays_too(tmp_path):
    content = np.arange(3.0, dtype="<f4")
    state = b"(K\x01(K\x03t" + name("numpy dtype") + b"(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN"
    state += b"J\xff\xff\xff\xff" * 2 + b"K\x00tb\x89U\x0c" + content.tobytes() + b"tb"
    made = name("numpy.core.multiarray _reconstruct") + name("numpy ndarray") + b"K\x00\x85U\x01b\x87R"
    assert read_array_pickle(written(tmp_path, b"\x80\x02" + made + state + b".")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CODE, "an array of 'O8', expected numbers"),
        (SWAPPED, "an array of 'O8', expected numbers"),
        (pickle.dumps(np.array(["a"]), 3), "an array of 'U1', expected numbers"),
        (pickle.dumps(np.zeros(2, [("a", "f4")]), 3), "an array of 'V4', expected numbers"),
        (pickle.dumps(os.system, 3), "it holds posix.system, expected tensors, arrays and plain values"),
        (pickle.dumps({1}, 3), "it holds builtins.set"),
        (b"\x80\x03" + name("numpy dtype") + b"(X\x02\x00\x00\x00f4tRN\x86.", "a _Type, expected arrays"),
        (
            b"\x80\x03" + name("collections OrderedDict") + b"}X\x01\x00\x00\x00aK\x01sb.",
            "changes a function",
        ),
        (b"\x80\x03X\x01\x00\x00\x00aQ.", "it refers to something outside itself"),
    ],
    ids=["code", "swapped", "text", "fields", "function", "set", "type", "attribute", "reference"],
)
def test_what_is_neither_a_numeric_array_nor_a_plain_value_is_refused(tmp_path, content, reason):
    with pytest.raises(RefusedPickle, match=reason):
        read_array_pickle(written(tmp_path, content))


TYPE = name("numpy dtype") + b"(X\x02\x00\x00\x00f4\x89\x88tR"
ARRAY = name("numpy.core.multiarray _reconstruct") + name("numpy ndarray") + b"K\x00\x85C\x01b\x87R"
LATIN = name("_codecs encode") + b"h\x01" + text("latin1") + b"\x86R"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            ARRAY + b"(K\x01(" + number(10**12) + b"t" + TYPE + b"\x89C\x04abcdtb",
            "in 4 bytes, expected 4 by",
        ),
        (ARRAY + b"(K\x01(" + number(-1) + b"t" + TYPE + b"\x89C\x04abcdtb", "an array in an unknown form"),
        (text("61" * 500) + b"q\x01" + LATIN * 50 + b"(\x85", "more memory than its size allows"),
        (name("_codecs encode") + text("6161") + text("hex") + b"\x86R", "encodes text as 'hex'"),
        (name("builtins bytearray") + number(4 * 10**9) + b"\x85R", "it holds builtins.bytearray"),
        (
            b"Nr" + (2**32 - 1).to_bytes(4, "little"),
            "saves a value at place 4294967295, expected at most 2",
        ),
        (b"]" + b"]" * 2000 + b"a" * 2000, "nested deeper than 100 levels"),
        (b"})" + b"\x85" * 200_000 + b"K\x01s", "nested deeper than 100 levels"),
        (b"(" + b"\x8f" * 1_000_000 + b"l", "it has more than 1,000,000 values"),
        (b"]q\x01h\x01a", "contain each other too often or too deep"),
        (raw(b"")[:1] + (2**31).to_bytes(4, "little"), "expected 2147483648 bytes in a bytes4, but only"),
    ],
    ids=[
        *("shape", "negative", "copies", "codec", "bytearray", "place", "lists", "key", "sets", "itself"),
        "length",
    ],
)
def test_kilobytes_do_not_take_gigabytes(tmp_path, content, reason):
    with pytest.raises(Exception, match=reason):
        read_array_pickle(written(tmp_path, b"\x80\x04" + content + b"."))


def test_lists_that_double_are_refused(tmp_path):
    twice = [0]
    for _ in range(60):
        twice = [twice, twice]
    with pytest.raises(RefusedPickle, match="contain each other too often or too deep"):
        read_array_pickle(written(tmp_path, pickle.dumps(twice)))


@pytest.mark.fuzz
def test_no_forged_pickle_ends_the_process_or_takes_its_memory():
    fuzzing = settings().max_examples >= 1000
    seed, count = (int.from_bytes(os.urandom(4), "big"), 10_000) if fuzzing else (0, 300)
    command = [sys.executable, "-m", "tests.runtime.forged_pickles", str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.returncode, done.stderr[-2000:])
    read = int(done.stdout.split()[2])
    assert done.stdout.startswith(f"{count} pickles") and 0 < read < count
