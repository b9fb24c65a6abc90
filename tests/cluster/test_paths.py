"""Tests of local paths in URLs, and of glob patterns on every kind of store and inside archives."""

import os
import uuid
from pathlib import Path

import fsspec
import pytest

from cluster.paths import absolute_url, list_files, list_files_with_sizes, local_path
from cluster.storage import Storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/data/a.txt", "/data/a.txt"),
        ("data/*.txt", "data/*.txt"),
        ("file:///data/a.txt", "/data/a.txt"),
        ("file://data/a.txt", "data/a.txt"),
        ("local://data/a.txt", "data/a.txt"),
        ("file:/data/a.txt", "/data/a.txt"),
        ("zip://a/b.json::file:///data/x.whl", "/data/x.whl"),
        ("zip://a.json::file://x.whl", "x.whl"),
        ("zip://a::gzip://b::/data/x.gz", "/data/x.gz"),
        ("s3://bucket/a", None),
        ("zip://a::s3://bucket/x.zip", None),
        ("hf://datasets/a/b", None),
    ],
)
def test_local_path_returns_the_path_in_any_local_url(url: str, expected: str | None):
    assert local_path(url) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("runs/tiny", "{here}/runs/tiny"),
        ("/data/*.txt", "/data/*.txt"),
        ("~/runs", "{home}/runs"),
        ("file://x.jsonl", "file://{here}/x.jsonl"),
        ("local://x.jsonl", "local://{here}/x.jsonl"),
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("zip://a/*.json::file://x.whl", "zip://a/*.json::file://{here}/x.whl"),
        ("zip://a/*.json::x.whl", "zip://a/*.json::{here}/x.whl"),
        ("zip://a::s3://bucket/x.zip", "zip://a::s3://bucket/x.zip"),
    ],
)
def test_relative_paths_become_absolute_and_other_urls_stay_unchanged(location: str, expected: str):
    whole = expected.format(here=os.getcwd(), home=os.path.expanduser("~"))
    assert absolute_url(location) == whole
    if "::" not in location and "*" not in location:
        assert Storage(location).url == whole  # a worker has a different working directory


def test_glob_patterns_list_files_in_sorted_order(tmp_path: Path):
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.txt").mkdir()
    assert list_files([f"{tmp_path}/*.txt"]) == [f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"]


def test_glob_patterns_list_files_on_an_object_store():
    storage = Storage(f"memory://sources-{uuid.uuid4().hex[:8]}")
    storage.write_bytes("a.txt", b"a")
    storage.write_bytes("b.txt", b"b")
    urls = list_files([f"{storage.url}/*.txt"])
    assert [url.rsplit("/", 1)[1] for url in urls] == ["a.txt", "b.txt"]
    assert [storage.fs.cat_file(url) for url in urls] == [b"a", b"b"]


def test_glob_patterns_list_members_of_a_zip_file_which_can_be_opened(archive: Path):
    urls = list_files([f"zip://package/data/*.jsonl::file://{archive}"])
    assert urls == [f"zip://package/data/{name}.jsonl::file://{archive}" for name in "ab"]
    with fsspec.open(urls[1]) as file:
        assert file.read() == b"bb"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_path_of_an_archive_may_be_relative(archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(archive.parent)
    assert list_files(["zip://package/readme.txt::file://archive.whl"]) == [
        f"zip://package/readme.txt::file://{archive}"
    ]


def test_the_error_for_a_pattern_without_a_match_names_the_pattern(archive: Path):
    for pattern in (
        f"{archive.parent}/*.csv",
        f"zip://*.csv::file://{archive}",
        f"{archive.parent}/no/a.txt",
    ):
        with pytest.raises(ValueError, match="matches no file; check the path") as caught:
            list_files([pattern])
        assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("scheme", ["zip", "tar"])
def test_the_error_for_a_damaged_archive_names_the_pattern(tmp_path: Path, scheme: str):
    (tmp_path / "not-an-archive").write_text("text " * 200)
    pattern = f"{scheme}://x::file://{tmp_path}/not-an-archive"
    with pytest.raises(ValueError, match="this file is damaged or is not an archive") as caught:
        list_files([pattern])
    assert repr(pattern) in str(caught.value)


def test_list_files_with_sizes_returns_sizes_in_bytes(storage: Storage):
    for number in range(3):
        storage.write_bytes(f"in/{number}.txt", b"x" * number)
    storage.write_bytes("in/below/3.txt", b"xxx")
    found = list_files_with_sizes([f"{storage.url}/in/*"])
    assert [(url.rsplit("/in/")[1], size) for url, size in found] == [(f"{number}.txt", number) for number in range(3)]


def test_list_files_with_sizes_follows_links_and_lists_archives(archive: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("four")
    (tmp_path / "folder").mkdir()
    for name, goal in (("link.txt", "a.txt"), ("folder.txt", "folder"), ("nowhere.txt", "none")):
        (tmp_path / name).symlink_to(tmp_path / goal)
    assert list_files_with_sizes([f"{tmp_path}/*.txt"]) == [(f"{tmp_path}/a.txt", 4), (f"{tmp_path}/link.txt", 4)]
    assert [size for _, size in list_files_with_sizes([f"zip://package/data/*::file://{archive}"])] == [1, 2]
