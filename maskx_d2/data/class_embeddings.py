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
    Embeddings of class names from word vectors; a name of several words gets the mean of their vectors.

    Args:
        vectors: a text file in GloVe's format, a word and its numbers on each line.
        class_names: names of the K classes. They are looked up in lower case, synsets ("fire_truck.n.01")
            without part of speech and number.

    Returns:
        (K, D) float32.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format, or words are missing; the message names them.
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
    Embeddings of class names from random word vectors, as in the ``randn`` table of the original code: each
    word has a vector of length about 1, and a name of several words gets the mean of their vectors.

    Args:
        class_names: names of the K classes.
        dim: D.
        seed: random seed of the vectors.

    Returns:
        (K, D) float32.
    """
    words_of = _words(class_names)
    vocabulary = dict.fromkeys(word for words in words_of for word in words)
    vectors = np.random.default_rng(seed).standard_normal((len(vocabulary), dim)) / np.sqrt(dim)
    return _means(words_of, dict(zip(vocabulary, vectors.astype(np.float32), strict=True)))


def _words(class_names: Sequence[str]) -> list[list[str]]:
    """The words of each name in lower case; of synsets ("fire_truck.n.01"), only those of the name."""
    return [name_of_synset(name).lower().replace("_", " ").split() for name in class_names]


def _means(words_of: Sequence[Sequence[str]], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.stack([np.mean([vectors[word] for word in words], axis=0) for words in words_of])


def write_table(path: Path, table: np.ndarray) -> None:
    """Write a .npy file, and create its folder if necessary. An existing file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # on a full disk NumPy's error names neither disk nor file
    np.save(content, table)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())
