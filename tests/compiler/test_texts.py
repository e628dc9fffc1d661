"""Files of texts: one reader for run, calibration, verify and bench."""

import os

import pytest

from intformer.errors import IntformerError
from intformer.runtime.texts import read_texts, texts_in


def read(tmp_path, content):
    file = tmp_path / "texts.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_texts(file)


@pytest.mark.parametrize(
    "content, wanted",
    [
        ("one sentence\n\n  another \n", [("one sentence",), ("another",)]),
        ("one\u2028two\x85three\x0bfour\x1cfive\r\nsix", None),
        ("idx\tlabel\tsentence\n0\t1\ta b\n", [("a b",)]),
        ("idx\tlabel\tsentence1\tsentence2\n0\t1\ta\tb\n1\t0\tc\td\n", [("a", "b"), ("c", "d")]),
        ("Question\tcontext\nq\tc\n", [("q", "c")]),
        ("premise\thypothesis\nq\tc", [("q", "c")]),
        ("a\tb\nc\td\n", [("a", "b"), ("c", "d")]),  # pairs without a header
        ("sentence\nword\n", [("sentence",), ("word",)]),  # no tab: no header
        (b"\xef\xbb\xbfidx\tsentence\n0\ta\n", [("a",)]),  # a byte order mark
        (b"\xef\xbb\xbfplain\r\nlines\r\n", [("plain",), ("lines",)]),
        ("", []),
        ("\n \n", []),
        ("idx\tsentence\n", []),
    ],
)
def test_texts(tmp_path, content, wanted):
    if wanted is None:  # no line ends, whatever str.splitlines says
        wanted = [("one\u2028two\x85three\x0bfour\x1cfive",), ("six",)]
    assert read(tmp_path, content) == wanted


@pytest.mark.parametrize(
    "content, said",
    [
        ("a\nb\tc\n", r"some lines have a tab, some have none - .*texts.txt, line 2"),
        ("\na\tb\n\nc\n", r"some lines have a tab.*line 4"),
        ("a\tb\tc\n", r"3 columns and no header that names them - .*line 1"),
        ("idx\tsentence\n0\ta\n1\n", r"1 columns, the header names 2 or more - .*line 3"),
        (b"fine\nb\0d\n", r"a NUL byte: not text - .*line 2"),
        (b"fine\nb\xffd\n", r"not UTF-8: byte 0xff - .*line 2"),
        ("text".encode("utf-16"), r"not UTF-8"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, said):
    with pytest.raises(IntformerError, match=said):
        read(tmp_path, content)


def test_files_that_are_none(tmp_path):
    with pytest.raises(IntformerError, match=r"cannot read the texts: No such file.*absent"):
        read_texts(tmp_path / "absent")
    with pytest.raises(IntformerError, match="not a regular file"):
        read_texts(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntformerError, match="not a regular file"):
        read_texts(tmp_path / "pipe")


def test_text_that_was_read_elsewhere():
    assert list(texts_in(["\ufeffa\tb\n".encode()], "stdin")) == [("a", "b")]


def test_texts_come_as_they_are_read():
    found = texts_in(iter([b"a\n", b"b\n", b"c\xff\n"]), "stdin")
    assert [next(found), next(found)] == [("a",), ("b",)]
    with pytest.raises(IntformerError, match="not UTF-8: byte 0xff - stdin, line 3"):
        next(found)
