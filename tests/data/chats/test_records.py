"""Files of records, and the errors that name the file and line of a record that cannot be read."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from data.chats.records import RangeEnd, read_located, read_numbered, read_prompts, read_records
from data.document import BadRecord


def write(path: Path, *lines: object) -> list[str]:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return [str(path)]


def test_blank_lines_are_skipped_and_bad_lines_are_in_their_place(tmp_path: Path) -> None:
    urls = write(tmp_path / "a.jsonl", {"a": 1}, "", "{broken", [1], {"b": 2})
    locations, records = zip(*read_located(urls), strict=True)
    locations = [location.rsplit(":")[-1] for location in locations]
    assert locations == ["1", "3", "4", "5"] and records[0] == {"a": 1} and records[3] == {"b": 2}
    assert isinstance(records[1], BadRecord) and str(records[1]).startswith("malformed JSON")
    assert isinstance(records[2], BadRecord) and "not list" in str(records[2])
    with pytest.raises(ValueError, match=r"a\.jsonl:3: malformed JSON"):
        list(read_records(urls))


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": 2}]', '[\n  {"a": 1},\n  {"a": 2}\n]\n'])
def test_a_json_array_is_read_record_by_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    records = list(read_records([str(tmp_path / "a.json")]))
    assert records == [(f"{tmp_path}/a.json:1", {"a": 1}), (f"{tmp_path}/a.json:2", {"a": 2})]


def test_ranges_of_a_file_give_every_line_once_with_its_number(tmp_path: Path) -> None:
    lines = [{"n": number, "text": "x" * (number % 7)} for number in range(50)]
    (url,) = write(tmp_path / "a.jsonl", *lines)
    size = Path(url).stat().st_size
    for step in (1, 17, 100, size):
        records, first = [], 0
        for start in range(0, size, step):
            *items, end = read_numbered(url, start, start + step)
            records += [(first + item.number, item.record) for item in items if not isinstance(item, RangeEnd)]
            assert isinstance(end, RangeEnd)
            first += end.num_lines
        assert records == list(enumerate(lines, start=1)), step


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl: no record found"):
        list(read_located(write(tmp_path / "a.jsonl")))


def test_the_error_of_a_damaged_file_names_the_last_readable_line(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": f"{n} {hash((n, 'noise'))}", "response": "x"}) + "\n" for n in range(2000))
    whole = gzip.compress(lines.encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: the file cannot be read after line [1-9]\d\d+ "):
        list(read_located([str(tmp_path / "a.jsonl.gz")]))


def test_a_zip_file_with_two_members_is_not_called_damaged(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", "{}")
        archive.writestr("b.jsonl", "{}")
    with pytest.raises(ValueError, match=r"a\.zip: the file cannot be read after line 0 \(2 files in one \.zip"):
        list(read_located([str(tmp_path / "a.zip")]))


def test_the_error_of_a_malformed_prompt_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl:2: prompt is missing"):
        list(read_prompts(write(tmp_path / "a.jsonl", {"prompt": "1+1?"}, {"answer": "2"})))
