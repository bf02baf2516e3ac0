"""Fixed class embeddings: tables of word vectors or of random numbers, a row for each class."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from maskx_d2.data.class_names import name_of_synset
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import replacing


def glove_embeddings(vectors: Path, class_names: Sequence[str]) -> np.ndarray:
    """
    Embeddings of class names from word vectors; a name of several words has the mean of its words.

    Args:
        vectors: a text file in GloVe's format, a word and its numbers on each line.
        class_names: names of the K classes. They are looked up in lower case, synsets ("fire_truck.n.01")
            without part of speech and number.

    Returns:
        (K, D) float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another format, or words are missing in it: they are named.
    """
    if not vectors.is_file():
        raise MissingFileError(f"word vectors {vectors} are not a file")
    words_of = _words(class_names)
    wanted = {word for words in words_of for word in words}
    found: dict[str, np.ndarray] = {}
    with vectors.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            word, _, numbers = line.rstrip().partition(" ")
            if word not in wanted or word in found:
                continue
            try:
                found[word] = np.array(numbers.split(), dtype=np.float32)
            except ValueError as error:
                raise InputError(
                    f"word vectors {vectors}: line {number} is {line[:40]!r}, expected a word and numbers"
                ) from error
            if not np.isfinite(found[word]).all():
                raise InputError(f"word vectors {vectors}: line {number} has numbers that are not finite")
            if len(found) == len(wanted):
                break
    missing = sorted(wanted - set(found))
    if missing:
        of_names = [n for n, words in zip(class_names, words_of, strict=True) if set(words) & set(missing)]
        raise InputError(
            f"word vectors {vectors} have no {', '.join(map(repr, missing))}, which {len(of_names)} class "
            f"names need: {', '.join(map(repr, of_names[:5]))}{', ...' if len(of_names) > 5 else ''}"
        )
    sizes = {len(vector) for vector in found.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            f"word vectors {vectors} have lines of {' and '.join(map(str, sorted(sizes)))} numbers, "
            "expected the same on all"
        )
    return _means(words_of, found)


def random_embeddings(class_names: Sequence[str], *, dim: int = 300, seed: int = 0) -> np.ndarray:
    """
    Embeddings of class names from random vectors of words, as in the original's ``randn`` table: a word has
    a vector of length 1 or so, and a name of several words has their mean.

    Args:
        class_names: names of the K classes.
        dim: D.
        seed: of the vectors.

    Returns:
        (K, D) float32.
    """
    words_of = _words(class_names)
    vocabulary = dict.fromkeys(word for words in words_of for word in words)
    vectors = np.random.default_rng(seed).standard_normal((len(vocabulary), dim)) / np.sqrt(dim)
    return _means(words_of, dict(zip(vocabulary, vectors.astype(np.float32), strict=True)))


def _words(class_names: Sequence[str]) -> list[list[str]]:
    """Of each name, in lower case; of a synset ("fire_truck.n.01") without part of speech and number."""
    return [name_of_synset(name).lower().replace("_", " ").split() for name in class_names]


def _means(words_of: Sequence[Sequence[str]], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.stack([np.mean([vectors[word] for word in words], axis=0) for words in words_of])


def write_table(path: Path, table: np.ndarray) -> None:
    """Write a .npy file, and make its folder if need be; a file that is there is replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # numpy's own writing to a full disk raises an error that names neither
    np.save(content, table)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
