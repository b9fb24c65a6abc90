"""JSONL and JSON files: every record is read exactly once, for ranges and blocks of any size."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data.document
import data.sources.compression


def test_bad_jsonl_records_are_quarantined_with_their_offset_and_reason(tmp_path: Path, find: Callable) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "broken',
        b'{"text": "caf\xe9"}',
        b'{"other": 1}',
        b'{"text": 7}',
        b'["text"]',
        b'{"text": "\\ud800"}',
        b'{"text": ' + b"[" * 100_000,
        b"",
        b'{"text": "last\\u0000"}',
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = find(path, "jsonl")
    assert found.texts == ["good", "last\0"]
    content = path.read_bytes()
    assert [content[record.offset :].split(b"\n")[0] for record in found.bad] == lines[1:8]
    expected = [
        "malformed JSON",
        "not UTF-8: invalid continuation byte 0xe9 at byte 13",
        "missing value",
        "must be a string, not int",
        "JSON object",
        "surrogate",
        "nested too deep",
    ]
    assert [part in record.reason for part, record in zip(expected, found.bad, strict=True)] == [True] * 7
    assert all(record.source == "s" and record.file.endswith("a.jsonl") for record in found.bad)


@pytest.mark.parametrize("range_bytes", [1, 2, 7, 16, 50, 1000])
def test_ranges_of_any_size_read_every_line_exactly_once_in_order(
    tmp_path: Path, find: Callable, range_bytes: int
) -> None:
    words = ["a" * n for n in (1, 30, 2, 0, 55, 3)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": word}) for word in words) + "\n\n")
    assert find(path, "jsonl", range_bytes=range_bytes).texts == words


@pytest.mark.parametrize("range_bytes", [7, 100, 1000])
def test_a_line_over_the_limit_is_quarantined_once_for_any_ranges(
    tmp_path: Path, find: Callable, range_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 200)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", 64)
    words = ["a", "b" * 3000, "c", "d" * 500]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    found = find(tmp_path / "a.jsonl", "jsonl", range_bytes=range_bytes)
    assert found.texts == ["a", "c"]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [
        (14, "record longer than 200 bytes"),
        (14 + 3013 + 14, "record longer than 200 bytes"),
    ]


def test_json_files_contain_an_array_or_an_object_of_records(tmp_path: Path, find: Callable) -> None:
    talk = {"turns": [[{"say": "hi"}, {"say": "there"}], [{"say": "yes"}]]}
    (tmp_path / "object.json").write_text(json.dumps({"k1": talk, "k2": 5}))
    found = find(tmp_path / "object.json", "json", text="turns[][].say", id="$key")
    assert [(document.id, document.text) for document in found.documents] == [("s/k1", "hi\nthere\nyes")]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [(1, "a record must be a JSON object")]
    (tmp_path / "array.json").write_text(json.dumps([{"text": "x"}]))
    assert find(tmp_path / "array.json", "json").texts == ["x"]
    for nothing in ("", " \n", "[]", " [ ] ", "{}", "\ufeff[]"):
        (tmp_path / "array.json").write_text(nothing)
        assert find(tmp_path / "array.json", "json").records == []


def random_value(depth: int) -> Any:
    kind = random.randrange(7 if depth else 5)
    if kind == 0:
        return random.choice([None, True, -1.5e3, 7])
    if kind == 5:
        return [random_value(depth - 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return {f"k{n}[": random_value(depth - 1) for n in range(random.randrange(4))}
    return "".join(random.choice('ab"\\{}[],:\n é😀\0') for _ in range(random.randrange(12)))


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 64, 1 << 20])
def test_records_equal_those_of_json_loads_for_any_block_size(
    tmp_path: Path, find: Callable, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(block_bytes)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "a.json"
    for number in range(40):
        records = [{"text": f"{n}", "m": random_value(4)} for n in range(random.randrange(1, 5))]
        whole: Any = records if number % 2 else {f"key {n}": record for n, record in enumerate(records)}
        path.write_text(json.dumps(whole, ensure_ascii=number % 3 == 0, indent=number % 4 or None))
        found = find(path, "json", metadata=["m"])
        assert not found.bad
        assert [document.metadata["m"] for document in found.documents] == [record["m"] for record in records]
        assert [document.offset for document in found.documents] == list(range(len(records)))


@pytest.mark.parametrize(
    ("content", "texts", "bad"),
    [
        (b'[{"text": "a"}, {"text": oops}, {"text": "c"}]', ["a", "c"], [(1, "malformed JSON")]),
        (b'[{"text": "a"}, {"text": "caf\xe9"}, {"text": "c"}]', ["a", "c"], [(1, "not UTF-8")]),
        (b'[{"text": "a"}, {"text": "b', ["a"], [(1, "ends before")]),
        (b'[{"text": "a"}, ]', ["a"], [(1, "malformed JSON")]),
        (b'[{"text": "a"}] {"text": "b"}', ["a"], [(1, "more text after the end")]),
        (b'[{"text": "a"}, [' + b"[" * 5000 + b"]" * 5000 + b'], {"text": "c"}]', ["a", "c"], [(1, "too deep")]),
        (b'"just a string"', [], [(0, "must be an array or an object")]),
        (b'{"k": {"text": "a"}, "l": {"text": 1,}}', ["a"], [(1, "malformed JSON")]),
    ],
)
def test_a_malformed_record_of_an_array_does_not_affect_other_records(
    tmp_path: Path, find: Callable, content: bytes, texts: list[str], bad: list[tuple[int, str]]
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    found = find(tmp_path / "a.json", "json")
    assert found.texts == texts
    assert [record.offset for record in found.bad] == [offset for offset, _ in bad]
    assert all(part in record.reason for record, (_, part) in zip(found.bad, bad, strict=True))


def test_a_record_of_an_array_over_the_limit_is_quarantined(
    tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", 64)
    records = [{"text": "a"}, {"text": 'b"]\\' * 500}, {"text": "c"}]
    (tmp_path / "a.json").write_text(json.dumps(records))
    found = find(tmp_path / "a.json", "json")
    assert found.texts == ["a", "c"]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [(1, "record longer than 100 bytes")]
