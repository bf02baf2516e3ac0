from pathlib import Path

import numpy as np
import pytest

from maskx_d2.data.class_embeddings import glove_embeddings, random_embeddings, write_table
from maskx_d2.data.class_names import coco_class_names, read_class_names

GLOVE_OF_COCO = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco80_glove300.npy"


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(
        "the 1 1 1\nhot 1 2 3\ndog 3 2 -1\n. . . 9 9 9\ntv 0.5 0 0.25\nhot 7 7 7\n", encoding="utf-8"
    )
    return path


def test_a_name_of_several_words_has_the_mean_of_its_words(vectors):
    table = glove_embeddings(vectors, ["dog", "hot_dog.n.01", "TV", "hot dog"])
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [[3, 2, -1], [2, 2, 1], [0.5, 0, 0.25], [2, 2, 1]])


def test_the_originals_table_comes_out_of_vectors_that_it_can_be_made_of(tmp_path):
    """
    The vectors of the words of its one-word names, and for its names of two words vectors of the second
    word that make the mean what the table has.
    """
    if not GLOVE_OF_COCO.is_file():
        pytest.skip("the original's table is not beside this checkout")
    expected = np.load(GLOVE_OF_COCO)
    names = coco_class_names()
    words = {
        name: row.astype(np.float64) for name, row in zip(names, expected, strict=True) if " " not in name
    }
    for name, row in zip(names, expected, strict=True):
        if " " in name:
            first, second = name.split()
            known, other = (first, second) if first in words else (second, first)
            words.setdefault(known, np.ones(expected.shape[1]))
            assert other not in words
            words[other] = 2 * row.astype(np.float64) - words[known]
    lines = [f"{word} {' '.join(map(repr, map(float, vector)))}" for word, vector in words.items()]
    (tmp_path / "vectors.txt").write_text("\n".join(lines), encoding="utf-8")
    table = glove_embeddings(tmp_path / "vectors.txt", names)
    assert table.shape == expected.shape == (80, 300)
    np.testing.assert_allclose(table, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "dog 1 2\n",
            ["dog", "big cat", "cow"],
            r"have no 'big', 'cat', 'cow', which 2 class names need: 'big cat', 'cow'",
        ),
        ("dog 1 2\ncat 1\n", ["dog", "cat"], r"have lines of 1 and 2 numbers, expected the same on all"),
        ("dog 1 x\n", ["dog"], r"line 1 is 'dog 1 x.*', expected a word and numbers"),
        ("dog\n", ["dog"], r"have lines of 0 numbers"),
    ],
)
def test_errors_name_the_file_and_what_is_missing(tmp_path, text, names, message):
    (tmp_path / "vectors.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"word vectors .*vectors.txt.*{message}"):
        glove_embeddings(tmp_path / "vectors.txt", names)
    with pytest.raises(FileNotFoundError, match=r"word vectors .*absent.txt are not a file"):
        glove_embeddings(tmp_path / "absent.txt", names)


def test_random_embeddings_are_normal_of_length_one_and_repeatable():
    names = [f"word{i}" for i in range(400)]
    table = random_embeddings(names, dim=300, seed=1)
    assert table.shape == (400, 300) and table.dtype == np.float32
    assert abs(table.mean()) < 0.002 and abs(table.std() - 300**-0.5) < 0.001
    lengths = np.linalg.norm(table, axis=1)
    assert abs(lengths.mean() - 1) < 0.01 and 0.85 < lengths.min() < lengths.max() < 1.15
    assert np.array_equal(table, random_embeddings(names, dim=300, seed=1))
    assert not np.array_equal(table, random_embeddings(names, dim=300, seed=2))


def test_random_embeddings_have_a_vector_for_each_word_as_those_of_the_original():
    """There names of two words have length 0.71, and "dog" and "hot dog" a cosine of 0.70."""
    names = read_class_names(None)
    tables = np.stack([random_embeddings(names, seed=seed) for seed in range(20)])
    lengths = np.linalg.norm(tables, axis=2)
    num_words = np.array([len(name.split()) for name in names])
    assert abs(lengths[:, num_words == 1].mean() - 1) < 0.01
    assert abs(lengths[:, num_words == 2].mean() - 0.5**0.5) < 0.01
    # The original's table for COCO has a standard deviation of 0.0548.
    assert abs(tables.std() - 0.0548) < 0.0005
    unit = tables / lengths[..., None]
    cosines = (unit[:, names.index("dog")] * unit[:, names.index("hot dog")]).sum(1)
    assert abs(cosines.mean() - 0.70) < 0.03
    unrelated = (unit[:, names.index("dog")] * unit[:, names.index("cat")]).sum(1)
    assert abs(unrelated.mean()) < 0.05


def test_a_table_is_written_whole(tmp_path):
    table = random_embeddings(["a", "b", "c"], dim=4)
    write_table(tmp_path / "new" / "table.npy", table)
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "table.npy"), table)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["table.npy"]
