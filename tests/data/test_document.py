"""Ids of documents, column paths, and values that a document cannot contain."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.document import (
    MAX_NESTING,
    BadRecord,
    Document,
    Source,
    column_value,
    content_id,
    document_from_record,
    unit_hash,
)


def write_jsonl(path: Path, records: list[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_an_id_depends_on_the_source_and_the_text_and_not_on_the_file(tmp_path: Path, find: Callable) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "moved").mkdir()
    write_jsonl(tmp_path / "moved/x.jsonl", [{"text": "two"}])
    write_jsonl(tmp_path / "moved/y.jsonl", [{"text": "one"}])
    here = find(tmp_path / "a.jsonl", "jsonl").documents
    there = find(tmp_path / "moved/*.jsonl", "jsonl").documents
    assert {r.id for r in here} == {r.id for r in there} == {content_id("s", "one"), content_id("s", "two")}
    assert content_id("s", "one") != content_id("t", "one")
    assert [(d.file, d.offset) for d in here] == [(f"{tmp_path}/a.jsonl", 0), (f"{tmp_path}/a.jsonl", 16)]
    assert here[0] == there[1], "where a document was found is no part of what it is"


def test_column_value_prefers_a_column_with_the_exact_name_and_follows_objects_and_lists() -> None:
    record = {"a.b": 1, "a": {"b": 2, "c": [{"d": 3}, {"d": 4}, {}]}}
    assert column_value(record, "a.b") == 1
    assert column_value(record, "a.c[].d") == [3, 4, None]
    assert column_value(record, "a.x") is None
    assert column_value(record, "a.b.c") is None
    assert column_value(record, "a.b[]") is None


def test_a_record_with_a_lone_surrogate_is_quarantined_and_its_column_named(tmp_path: Path, find: Callable) -> None:
    lines = [
        '{"text": "a", "id": "1", "meta": {"by": ["x"]}}',
        '{"text": "b", "id": "2", "meta": {"by": ["\\ud800"]}}',
        '{"text": "c", "id": "3", "meta": {"\\udfff": 1}}',
        '{"text": "d", "id": "\\ud800", "meta": 1}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found = find(tmp_path / "a.jsonl", "jsonl", id="id", metadata=["meta"])
    assert found.texts == ["a"]
    assert [bad.reason.partition(": lone surrogate")[0] for bad in found.bad] == ["meta", "meta", "id"]


def test_metadata_can_be_nested_a_hundred_levels_deep() -> None:
    source = Source(name="s", path="x", format="jsonl", metadata=["m"])

    def nested(depth: int) -> Document:
        return document_from_record(source, {"text": "t", "m": json.loads("[" * depth + "]" * depth)})

    assert nested(MAX_NESTING).text == "t"
    with pytest.raises(BadRecord, match="m: nested deeper than 100"):
        nested(MAX_NESTING + 1)


def test_unit_hash_is_uniform_and_independent_for_different_purposes() -> None:
    values = [(unit_hash(str(n), "split"), unit_hash(str(n), "fraction")) for n in range(4000)]
    assert abs(sum(a < 0.25 for a, _ in values) / 4000 - 0.25) < 0.03
    assert abs(sum(a < 0.5 and b < 0.5 for a, b in values) / 4000 - 0.25) < 0.03


@pytest.mark.parametrize(
    ("format", "content", "content_type"),
    [
        ("text", b"if a<b: <b>", "text/plain"),
        ("html", b"<p>x", "text/html"),
        ("jsonl", b'{"text": "<p>x", "content_type": "text/html"}\n', ""),
        ("csv", b"text,content_type\n<p>x,text/html\n", ""),
        (
            "warc",
            b"WARC/1.1\r\nWARC-Type: response\r\nContent-Length: 57\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Type: application/xhtml+xml\r\n\r\nx\r\n\r\n",
            "application/xhtml+xml",
        ),
    ],
)
def test_a_document_knows_its_media_type_if_its_format_says_it(
    tmp_path: Path, find: Callable, format: str, content: bytes, content_type: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    assert [document.content_type for document in find(tmp_path / "a", format).documents] == [content_type]
