"""The paths of a source: several of them, brackets in names, and the columns that folders give."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.document import Source, partition_columns
from data.sources.readers import check_paths, check_source


def write(path: Path, text: str, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"text": text, **columns}) + "\n")


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("[2024]/a.jsonl", ["bracket"]),
        ("[2024]/*.jsonl", ["bracket"]),
        ("[2024]/[ab].jsonl", ["bracket"]),
        ("[24]/a.jsonl", ["two", "four"]),
        ("2/a[1].jsonl", ["file"]),
        ("*/a[[]1].jsonl", ["file"]),
        ("Ж[ж]/x[y][z].jsonl", ["more"]),
    ],
)
def test_brackets_are_part_of_a_name_that_exists(
    tmp_path: Path, find: Callable, pattern: str, texts: list[str]
) -> None:
    contents = {"[2024]/a": "bracket", "2/a": "two", "4/a": "four", "2/a[1]": "file", "Ж[ж]/x[y][z]": "more"}
    for name, text in contents.items():
        write(tmp_path / f"{name}.jsonl", text)
    assert find(tmp_path / pattern, "jsonl").texts == texts
    with zipfile.ZipFile(tmp_path / "a[1].zip", "w") as archive:
        for name, text in contents.items():
            archive.writestr(f"{name}.jsonl", json.dumps({"text": text}) + "\n")
    found = find(f"zip://{pattern}::file://{tmp_path}/a[1].zip", "jsonl")
    assert sorted(found.texts) == sorted(texts)


def test_a_source_may_have_several_paths(tmp_path: Path, find: Callable) -> None:
    for name in ("b/1", "a/1", "a/2"):
        write(tmp_path / f"{name}.jsonl", name)
    paths = [f"{tmp_path}/b/*.jsonl", f"{tmp_path}/a/2.jsonl"]
    source = Source(name="s", path=paths, format="jsonl")
    check_paths([source])
    check_source(source)
    assert find(paths, "jsonl").texts == ["b/1", "a/2"]
    with pytest.raises(ValueError, match=r"sources\.s\.path: two of the paths match .*a/2\.jsonl"):
        check_source(replace(source, path=[*paths, f"{tmp_path}/a/*.jsonl"]))
    with pytest.raises(ValueError, match="matches no file"):
        check_source(replace(source, path=[*paths, f"{tmp_path}/c/*.jsonl"]))
    for wrong in ([], [""], "", [1], [paths[0], paths[0]]):
        with pytest.raises(ValueError, match=r"sources\.s\.path: "):
            check_paths([replace(source, path=wrong)])


def test_folders_give_columns_to_the_files_of_every_format(tmp_path: Path, find: Callable) -> None:
    for year, lang in (("2024", "de"), ("2025", "zh-%E4%B8%AD"), ("2025", "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / "user=me" / f"year={year}" / f"lang={lang}"
        folder.mkdir(parents=True)
        text = f"{year} {lang}"
        (folder / "a.txt").write_text(text)
        (folder / "a.html").write_text(text)
        (folder / "a.csv").write_text(f"text\n{text}\n")
        write(folder / "a.jsonl", text)
        pq.write_table(pa.table({"text": [text], "other": [1]}), folder / "a.parquet")
    for name, format in (("txt", "text"), ("html", "html"), ("csv", "csv"), ("jsonl", "jsonl"), ("parquet", "parquet")):
        path = f"{tmp_path}/user=me/*/*/a.{name}"
        check_source(Source(name="s", path=path, format=format, metadata=["year", "lang"]))  # type: ignore[arg-type]
        found = find(path, format, metadata=["year", "lang"])
        assert {(document.metadata["year"], document.metadata["lang"]) for document in found.documents} == {
            ("2024", "de"),
            ("2025", "zh-中"),
            ("2025", None),
        }
        with pytest.raises(ValueError, match="region"):
            check_source(Source(name="s", path=path, format=format, metadata=["region"]))  # type: ignore[arg-type]


def test_a_column_of_the_file_has_priority_over_its_folder(tmp_path: Path, find: Callable) -> None:
    write(tmp_path / "year=2024/a.jsonl", "x", year=1999)
    assert find(tmp_path / "*/a.jsonl", "jsonl", metadata=["year"]).documents[0].metadata == {"year": 1999}


def test_only_columns_that_the_source_names_are_read_from_the_path() -> None:
    source = Source(name="s", path="x", format="jsonl", metadata=["year", "part"])
    url = "zip://part=1/a=b.jsonl::s3://bucket/year=2024/user=me/x.zip"
    assert partition_columns(source, url) == {"year": "2024", "part": "1"}
    assert partition_columns(source, "/year/x=1/part=.jsonl") == {}
    assert partition_columns(replace(source, metadata=[]), url) == {}
