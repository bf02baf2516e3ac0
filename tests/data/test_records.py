import os
import pickle

import numpy as np
import pytest

from maskx_d2.data.records import Records

ELEMENTS = [{"a": [1.5, 2]}, None, "x" * 1000, {"array": np.arange(3).tolist()}, []]


def test_elements_come_as_they_went_in():
    records = Records.of(iter(ELEMENTS))
    assert len(records) == 5 and list(records) == ELEMENTS
    assert records[-1] == [] and records[2] == "x" * 1000
    for index in (5, -6):
        with pytest.raises(IndexError):
            records[index]
    assert list(Records.of([])) == []
    # Each time anew: whoever gets one may change it.
    records[0]["a"].append(3)
    assert records[0] == ELEMENTS[0]


def test_a_file_is_read_whole_shared_and_outlives_its_name(tmp_path):
    for elements in (ELEMENTS, ELEMENTS[:1], []):
        path = tmp_path / "records"
        Records.of(elements).write(path)
        records = Records.read(path)
        path.unlink()
        assert list(records) == elements
    Records.of(ELEMENTS).write(path)
    records = Records.read(path)
    assert isinstance(records.content.base, np.memmap) or isinstance(records.content, np.memmap)
    assert records.content.size == os.path.getsize(path) - 8 * 6
    assert list(pickle.loads(pickle.dumps(records))) == ELEMENTS
