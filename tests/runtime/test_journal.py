import msgspec
import pytest

from maskx_d2.runtime.journal import open_journal


class Piece(msgspec.Struct):
    number: int


WORK = {"input": "abc", "options": [1, None]}


def test_what_was_appended_is_there_when_it_is_opened_again(tmp_path):
    path = tmp_path / "journal"
    for start in range(3):
        with open_journal(path, work=WORK, kind=Piece) as journal:
            assert [piece.number for piece in journal.done] == list(range(start))
            journal.append(Piece(start))
    journal.delete()
    assert list(tmp_path.iterdir()) == []


def test_of_a_file_that_is_cut_off_anywhere_the_whole_lines_are_kept(tmp_path):
    path = tmp_path / "journal"
    with open_journal(path, work=WORK, kind=Piece) as journal:
        for number in (7, 8):
            journal.append(Piece(number))
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with open_journal(path, work=WORK, kind=Piece) as journal:
            assert len(journal.done) == max(content[:length].count(b"\n") - 1, 0)
            journal.append(Piece(9))
        assert path.read_bytes() == content[:first] + b"".join(
            msgspec.json.encode(piece) + b"\n" for piece in [*journal.done, Piece(9)]
        )


def test_of_work_of_which_nothing_was_done_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_journal(tmp_path / "journal", work=WORK, kind=Piece):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b'{"input": "other"}\n{"number": 1}\n', b"a file\nof somebody\nelse", b"x", b"\xff\n", b"\n\n"],
)
def test_other_files_are_left_as_they_are(tmp_path, content):
    path = tmp_path / "journal"
    path.write_bytes(content)
    with (
        pytest.raises(
            ValueError,
            match=r"journal belongs to a run with other inputs or options: delete",
        ),
        open_journal(path, work=WORK, kind=Piece),
    ):
        pass
    assert path.read_bytes() == content


def test_lines_that_are_no_pieces_are_refused(tmp_path):
    path = tmp_path / "journal"
    with open_journal(path, work=WORK, kind=Piece) as journal:
        journal.append(Piece(1))
    with path.open("ab") as file:
        file.write(b'{"number": "x"}\n')
    with pytest.raises(ValueError, match="other inputs"), open_journal(path, work=WORK, kind=Piece):
        pass
