"""Evaluation sets: every format gives the same strings, and unreadable files are errors."""

import csv
import gzip
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data.sources.evaluation_sets import read_strings

FIRST, SECOND = "a b c d e f g h", "One, two: three; four.\nFive six seven eight"


def test_every_format_gives_the_same_strings(tmp_path: Path) -> None:
    items = [{"text": FIRST, "label": "0"}, {"text": SECOND, "label": "1"}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "array.json").write_text(json.dumps(items))
    (tmp_path / "object.json").write_text(json.dumps(dict(enumerate(items))))
    with open(tmp_path / "table.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(items)
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "columns.parquet")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((tmp_path / "lines.jsonl").read_bytes()))
    with zipfile.ZipFile(tmp_path / "archive.whl", "w") as archive:
        archive.write(tmp_path / "lines.jsonl", "inside/member.jsonl")
    names = ["lines.jsonl", "array.json", "object.json", "table.csv", "columns.parquet", "packed.jsonl.gz"]
    urls = [str(tmp_path / name) for name in names] + [f"zip://inside/member.jsonl::file://{tmp_path}/archive.whl"]
    for url in urls:
        assert read_strings(url, ["text"]) == [FIRST, SECOND], url
        assert read_strings(url, []) == [FIRST, "0", SECOND, "1"], url
    (tmp_path / "plain.txt").write_text(f"{FIRST}\n \n{SECOND}")
    assert read_strings(str(tmp_path / "plain.txt"), []) == [FIRST, SECOND]


def test_strings_in_lists_and_mappings_of_the_named_columns_are_read(tmp_path: Path) -> None:
    item = {"question": "a", "answer": "b", "meta": {"choices": ["c", {"d": "d"}]}, "label": 3}
    (tmp_path / "set.jsonl").write_text(json.dumps(item) + "\n" + json.dumps({"answer": None}) + "\n")
    url = str(tmp_path / "set.jsonl")
    assert read_strings(url, []) == ["a", "b", "c", "d"]
    assert read_strings(url, ["meta", "question"]) == ["c", "d", "a"]
    with pytest.raises(ValueError, match=r"no item has the column 'anwser' \(columns: answer, label, meta, question\)"):
        read_strings(url, ["anwser"])


def test_strings_in_a_map_column_of_parquet_are_read(tmp_path: Path) -> None:
    choices = pa.array([[("a", FIRST), ("b", SECOND)]], type=pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"choices": choices}), tmp_path / "maps.parquet")
    assert read_strings(str(tmp_path / "maps.parquet"), []) == [FIRST, SECOND]


@pytest.mark.parametrize(("content", "kind"), [("5", "int"), ("null", "NoneType"), ('"a b c"', "str")])
def test_a_json_file_without_items_is_an_error(tmp_path: Path, content: str, kind: str) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(ValueError, match=f"not readable as .json .*array or an object of items, not {kind}"):
        read_strings(str(tmp_path / "set.json"), [])


def test_a_compressed_file_is_read_completely_or_is_an_error(tmp_path: Path) -> None:
    frames = [zstandard.compress(json.dumps({"text": text}).encode() + b"\n") for text in (FIRST, SECOND)]
    (tmp_path / "frames.jsonl.zst").write_bytes(b"".join(frames))
    assert read_strings(str(tmp_path / "frames.jsonl.zst"), []) == [FIRST, SECOND]
    for name, content in (("cut.jsonl.zst", frames[0]), ("cut.jsonl.gz", gzip.compress(b'{"text": "a b"}\n' * 99))):
        (tmp_path / name).write_bytes(content[:-5])
        with pytest.raises(ValueError, match=f"{name}: not readable as .jsonl"):
            read_strings(str(tmp_path / name), [])


def test_an_unknown_format_and_a_malformed_record_are_errors(tmp_path: Path) -> None:
    (tmp_path / "set.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=r"evaluation sets are read from .jsonl, .*, not from .xml"):
        read_strings(str(tmp_path / "set.xml"), [])
    (tmp_path / "bad.jsonl").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"bad.jsonl: not readable as .jsonl"):
        read_strings(str(tmp_path / "bad.jsonl"), [])
