"""Lines and buffers give the same results for blocks of any size, and keep nothing that is too long in memory."""

import random
import re

import pytest

import data.document
from data.document import BadRecord
from data.sources.records import Buffer, decode_utf8, split_lines


def blocks_of(content: bytes, size: int) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_lines_equal_those_of_splitlines_for_any_block_size(size: int) -> None:
    content = b"one\n\ntwo\r\n\x00three\nlast"
    found = list(split_lines(blocks_of(content, size)))
    assert [line for _, line in found] == content.splitlines(keepends=True)
    assert [offset for offset, _ in found] == [0, 4, 5, 10, 17]


@pytest.mark.parametrize("size", [1, 3, 8, 1000])
def test_a_line_over_the_limit_is_one_bad_record_and_other_lines_are_read(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 10)
    content = b"123456789\n1234567890\nshort\n" + b"x" * 99
    found = list(split_lines(blocks_of(content, size)))
    assert [(offset, str(line) if isinstance(line, BadRecord) else line) for offset, line in found] == [
        (0, b"123456789\n"),
        (10, "record longer than 10 bytes"),
        (21, b"short\n"),
        (27, "record longer than 10 bytes"),
    ]


def test_a_range_within_a_huge_line_does_not_read_the_line_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 10)
    taken = 0

    def endless():
        nonlocal taken
        while taken < 1000:
            taken += 1
            yield b"x" * 8

    assert [offset for offset, _ in split_lines(endless(), 0, 40)] == [0]
    assert taken == 5


def test_the_position_of_an_invalid_byte_counts_the_byte_order_mark() -> None:
    assert decode_utf8(b"\xef\xbb\xbfab") == "ab"
    with pytest.raises(BadRecord, match="0xe9 at byte 2 of the record"):
        decode_utf8(b"ab\xe9")
    with pytest.raises(BadRecord, match="0xe9 at byte 5 of the record"):
        decode_utf8(b"\xef\xbb\xbfab\xe9")


def test_a_buffer_finds_a_match_that_spans_blocks() -> None:
    random.seed(3)
    content = bytes(random.choice(b"ab\n") for _ in range(300)) + b"needle" + b"b" * 50
    for size in (1, 4, 17, 1000):
        buffer = Buffer(blocks_of(content, size))
        assert buffer.find(re.compile(b"needle"), 0, 10_000) == (300, 306)
        buffer.drop(300)
        assert buffer.offset == 300 and buffer.fill(6) and buffer.data[:6] == b"needle"
        assert buffer.skip(56) and not buffer.skip(1) and buffer.at_end
