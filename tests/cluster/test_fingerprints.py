"""A fingerprint identifies a file's present bytes. The fingerprint of an unchanged file comes from the cache."""

import hashlib
import multiprocessing
import os
import time
import zipfile
from pathlib import Path

import pytest

import cluster.fingerprints
from cluster.fingerprints import fingerprint, fingerprints
from cluster.progress import Progress
from cluster.user_cache import UserCache


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cluster.fingerprints, "_MIN_AGE_S", 0.01)
    return tmp_path / "cache" / "raymill" / "fingerprints.jsonl"


def write(path: Path, seed: int, num_bytes: int = 100_000) -> str:
    """Write a file and return the fingerprint that it must have."""
    content = hashlib.shake_128(str(seed).encode()).digest(num_bytes)
    path.write_bytes(content)
    time.sleep(0.05)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def refuse_to_read(*_: object) -> str:
    raise AssertionError("the file was read again")


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = write(tmp_path / "a", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a", "inside/a")
    time.sleep(0.05)
    names = [str(tmp_path / "a"), f"file://{tmp_path}/a", f"zip://inside/a::file://{tmp_path}/a.zip"]
    assert fingerprints(names, "test") == [expected] * 3
    monkeypatch.setattr(cluster.fingerprints, "_sha256", refuse_to_read)
    monkeypatch.setattr(
        cluster.fingerprints, "_cache", UserCache("fingerprints")
    )  # A new cache object, as in another process.
    assert fingerprints(names, "test") == [expected] * 3


def test_a_changed_file_with_the_old_size_and_time_is_read_again(tmp_path: Path):
    path = tmp_path / "a"
    expected = write(path, 1)
    assert fingerprint(str(path)) == expected
    before = path.stat()
    expected = write(path, 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # rsync --times and cp -p set the time like this.
    time.sleep(0.05)
    assert fingerprint(str(path)) == expected
    moved = write(tmp_path / "b", 3)
    os.replace(tmp_path / "b", path)
    assert fingerprint(str(path)) == moved


def test_a_recently_changed_file_is_not_cached(tmp_path: Path, cache_file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster.fingerprints, "_MIN_AGE_S", 60.0)
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected
    assert not cache_file.exists()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\n", b'["a"]\n{}\n[[], 1]\n7\n', b'["torn", "sha2'])
def test_a_damaged_cache_is_no_error_and_is_appended_to(tmp_path: Path, cache_file: Path, content: bytes):
    cache_file.parent.mkdir(parents=True)
    cache_file.write_bytes(content)
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected
    assert expected in cache_file.read_text(errors="replace")
    (key,) = [
        line.split(b'"')[1].decode() for line in cache_file.read_bytes().split(b"\n") if expected.encode() in line
    ]
    assert UserCache("fingerprints").get(key) == expected


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # A folder cannot be created inside a file.
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected


def _put_200_keys(first: int) -> None:
    cache = UserCache("many")
    for number in range(first, first + 200):
        cache.put(f"key{number}", "x" * 200)


def test_no_entry_of_processes_that_write_at_the_same_time_is_lost():
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_put_200_keys, args=(first,)) for first in (0, 200, 400)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = UserCache("many")
    assert all(cache.get(f"key{number}") == "x" * 200 for number in range(600))


def test_reading_many_bytes_shows_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(cluster.fingerprints, "_MIN_PROGRESS_BYTES", 300_000)
    expected = [write(tmp_path / name, number, 200_000) for number, name in enumerate("abc")]
    with caplog.at_level("INFO"):
        assert fingerprints([str(tmp_path / name) for name in "abc"], "corpus") == expected
    assert "corpus: reading files to identify them" in caplog.text


def test_the_progress_counts_only_the_files_of_its_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[float] = []
    monkeypatch.setattr(cluster.fingerprints, "_MIN_PROGRESS_BYTES", 100_000)
    monkeypatch.setattr(Progress, "update", lambda self, done: shown.append(done))
    write(tmp_path / "a", 1, 200_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a", "a")
    time.sleep(0.05)
    fingerprints([str(tmp_path / "a"), f"zip://a::file://{tmp_path}/a.zip"], "test")
    assert shown == [0.2]


def test_a_user_without_a_home_folder_has_no_cache_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    cache = UserCache("machines")
    cache.put("key", 1)
    assert cache.get("key") == 1 and list(tmp_path.iterdir()) == [] and UserCache("machines").get("key") is None


def test_a_file_and_its_copy_in_an_archive_have_the_same_fingerprint(archive: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("a")
    expected = f"sha256:{hashlib.sha256(b'a').hexdigest()}"
    assert fingerprint(str(tmp_path / "a.jsonl")) == expected
    assert fingerprint(f"zip://package/data/a.jsonl::file://{archive}") == expected
