"""A fingerprint is of the bytes, however often a file is written to, and is found again without reading them."""

import hashlib
import multiprocessing
import os
import time
import zipfile
from pathlib import Path

import pytest

import cluster.fingerprints
from cluster.fingerprints import fingerprint, fingerprints
from cluster.user_cache import UserCache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cluster.fingerprints, "_MIN_AGE_S", 0.01)
    return tmp_path / "cache" / "raymill" / "fingerprints.jsonl"


def write(path: Path, seed: int, num_bytes: int = 100_000) -> str:
    """The fingerprint that the file written must have."""
    content = hashlib.shake_128(str(seed).encode()).digest(num_bytes)
    path.write_bytes(content)
    time.sleep(0.05)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def refuse_to_read(*_: object) -> str:
    raise AssertionError("the file is read again")


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = write(tmp_path / "a", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a", "inside/a")
    time.sleep(0.05)
    names = [str(tmp_path / "a"), f"file://{tmp_path}/a", f"zip://inside/a::file://{tmp_path}/a.zip"]
    assert fingerprints(names, "test") == [expected] * 3
    monkeypatch.setattr(cluster.fingerprints, "_sha256", refuse_to_read)
    monkeypatch.setattr(cluster.fingerprints, "_cache", UserCache("fingerprints"))  # as in another process
    assert fingerprints(names, "test") == [expected] * 3


def test_a_file_that_changes_behind_equal_size_and_time_is_read_again(tmp_path: Path):
    path = tmp_path / "a"
    expected = write(path, 1)
    assert fingerprint(str(path)) == expected
    before = path.stat()
    expected = write(path, 2)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync --times and cp -p do
    time.sleep(0.05)
    assert fingerprint(str(path)) == expected
    moved = write(tmp_path / "b", 3)
    os.replace(tmp_path / "b", path)
    assert fingerprint(str(path)) == moved


def test_a_file_just_written_is_not_remembered(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cluster.fingerprints, "_MIN_AGE_S", 60.0)
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected
    assert not own_cache.exists()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\n", b'["a"]\n{}\n[[], 1]\n7\n', b'["torn", "sha2'])
def test_a_damaged_cache_is_no_error_and_is_written_on(tmp_path: Path, own_cache: Path, content: bytes):
    own_cache.parent.mkdir(parents=True)
    own_cache.write_bytes(content)
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected
    assert expected in own_cache.read_text(errors="replace")
    (key,) = [line.split(b'"')[1].decode() for line in own_cache.read_bytes().split(b"\n") if expected.encode() in line]
    assert UserCache("fingerprints").get(key) == expected


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder cannot be made inside a file
    expected = write(tmp_path / "a", 1)
    assert fingerprint(str(tmp_path / "a")) == expected


def _put_many(first: int) -> None:
    cache = UserCache("many")
    for number in range(first, first + 200):
        cache.put(f"key{number}", "x" * 200)


def test_what_several_processes_put_at_once_is_all_there():
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_put_many, args=(first,)) for first in (0, 200, 400)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = UserCache("many")
    assert all(cache.get(f"key{number}") == "x" * 200 for number in range(600))


def test_much_to_read_is_said_with_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(cluster.fingerprints, "_MIN_PROGRESS_BYTES", 300_000)
    expected = [write(tmp_path / name, number, 200_000) for number, name in enumerate("abc")]
    with caplog.at_level("INFO"):
        assert fingerprints([str(tmp_path / name) for name in "abc"], "corpus") == expected
    assert "corpus: reading files to identify them" in caplog.text


def test_a_user_without_a_home_has_no_cache_and_no_folder_of_that_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    cache = UserCache("machines")
    cache.put("key", 1)
    assert cache.get("key") == 1 and list(tmp_path.iterdir()) == [] and UserCache("machines").get("key") is None


def test_a_fingerprint_is_of_the_bytes_wherever_they_lie(archive: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("a")
    expected = f"sha256:{hashlib.sha256(b'a').hexdigest()}"
    assert fingerprint(str(tmp_path / "a.jsonl")) == expected
    assert fingerprint(f"zip://package/data/a.jsonl::file://{archive}") == expected
