"""Local folders and object stores behave alike, and a file is never visible before it is complete.

The S3 server is a real one, behind a proxy that rejects, drops, cuts off and delays requests.
"""

import errno
import gc
import hashlib
import os
import pickle
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from botocore.exceptions import ClientError

import cluster.retry
import cluster.storage
from cluster.fingerprints import fingerprint
from cluster.paths import list_files_with_sizes
from cluster.storage import Storage


def test_written_files_can_be_read_listed_and_removed(storage: Storage):
    storage.write_bytes("a/one.bin", b"1")
    storage.write_json("b.json", {"ü": [1, None]})
    (storage / "a").write_bytes("two.bin", b"22")
    assert storage.read_bytes("a/two.bin") == b"22"
    assert storage.read_bytes("b.json", 3, 7) == storage.read_bytes("b.json")[3:7] != b""
    assert storage.read_json("b.json") == {"ü": [1, None]}
    assert storage.files() == ["a/one.bin", "a/two.bin", "b.json"]
    assert storage.glob("a/*.bin") == ["a/one.bin", "a/two.bin"]
    storage.remove("a")
    assert storage.files() == ["b.json"] and not storage.exists("a")
    storage.remove("never-there")


def test_a_missing_file_does_not_exist(storage: Storage):
    assert not storage.exists("nothing") and not storage.exists()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("nothing")


def test_create_bytes_succeeds_for_exactly_one_of_many_callers(storage: Storage):
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: storage.create_bytes("lease", b"%d" % n) and won.append(n))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [b"%d" % n for n in won] == [storage.read_bytes("lease")]
    assert storage.files() == ["lease"]


def test_put_folder_copies_all_files(storage: Storage, tmp_path: Path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "a.txt").write_text("a")
    (tmp_path / "folder" / "b.txt").write_text("b")
    storage.put_folder(tmp_path / "folder", "copy")
    assert storage.files() == ["copy/b.txt", "copy/deep/a.txt"]
    local = (storage / "copy").local()
    assert (local / "deep" / "a.txt").read_text() == "a" and (local / "b.txt").read_text() == "b"


def test_a_storage_can_be_pickled(storage: Storage):
    storage.write_bytes("x", b"x")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("x") == b"x"


def test_a_failed_write_leaves_the_old_bytes_and_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage = Storage(str(tmp_path))
    storage.write_bytes("a", b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        storage.write_bytes("a", b"new")
    assert storage.read_bytes("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_never_sees_a_partial_write(tmp_path: Path):
    storage = Storage(str(tmp_path))
    versions = [bytes([n]) * 200_000 for n in range(4)]
    storage.write_bytes("a", versions[0])
    seen: set[bytes] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(storage.read_bytes("a"))

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions * 10:
        storage.write_bytes("a", version)
    done.set()
    reader.join()
    assert seen <= set(versions)


def test_a_partly_written_file_of_a_killed_process_is_not_listed(tmp_path: Path):
    (tmp_path / "a.1234.partial").write_text("half")
    assert Storage(str(tmp_path)).files() == []


def test_check_writable_rejects_a_store_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="store: cannot write to .*; use a location with write permission"):
        Storage(str(tmp_path / "file" / "below")).check_writable()


def test_check_writable_removes_all_that_it_created(storage: Storage, tmp_path: Path):
    storage.check_writable()
    assert not storage.exists()
    (tmp_path / "exists").mkdir()
    Storage(str(tmp_path / "exists/deep/deeper")).check_writable()
    Storage(str(tmp_path / "exists")).check_writable()
    assert list((tmp_path / "exists").iterdir()) == []


def test_a_changed_remote_folder_is_downloaded_again():
    remote = Storage(f"memory://changing-{uuid.uuid4().hex[:8]}/model")
    remote.write_bytes("config.json", b"one")
    first = remote.local()
    assert remote.local() == first and (first / "config.json").read_bytes() == b"one"
    remote.write_bytes("config.json", b"two")  # has the same size as before
    assert (remote.local() / "config.json").read_bytes() == b"two"
    assert (first / "config.json").read_bytes() == b"one"  # a process that reads the old copy can continue
    remote.write_bytes("more.json", b"")
    assert {path.name for path in remote.local().iterdir()} == {"config.json", "more.json"}


def test_a_line_of_json_may_contain_unicode_line_separators(tmp_path: Path):
    values = [{"text": "one\u2028two\u0085three\n"}, {"text": "four"}, {"file": "not UTF-8: \udc80"}]
    storage = Storage(str(tmp_path))
    storage.write_jsonl("lines.jsonl", values)
    assert storage.read_jsonl("lines.jsonl") == values


def test_put_folder_copies_config_json_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    written: list[str] = []
    monkeypatch.setattr(Storage, "copy", lambda self, name, target, target_name: written.append(target_name))
    Storage(str(tmp_path / "to")).put_folder(tmp_path, "model")
    assert written == ["model/model.safetensors", "model/tokenizer.json", "model/config.json"]


def test_put_folder_without_a_name_copies_into_the_directory_itself(storage: Storage, tmp_path: Path):
    (tmp_path / "from" / "below").mkdir(parents=True)
    (tmp_path / "from" / "below" / "a.bin").write_bytes(b"a")
    storage.put_folder(tmp_path / "from")
    assert storage.files() == ["below/a.bin"]  # on an object store `root//below/a.bin` would be another key
    assert storage.read_bytes("below/a.bin") == b"a"


def test_a_file_that_is_written_in_pieces_appears_when_it_is_complete(storage: Storage):
    pieces = [bytes([number]) * (3 << 20) for number in range(7)]  # 21 MiB: three parts of an upload
    with storage.writing("deep/a.bin") as file:
        for piece in pieces:
            file.write(piece)
        assert storage.files() == []
    assert storage.files() == ["deep/a.bin"]
    assert storage.read_bytes("deep/a.bin") == b"".join(pieces)
    with storage.writing("empty"):
        pass
    assert storage.read_bytes("empty") == b""


def test_an_exception_while_writing_leaves_the_old_file(storage: Storage):
    storage.write_bytes("a", b"old")
    with pytest.raises(KeyError), storage.writing("a") as file:
        file.write(b"new" * (4 << 20))
        raise KeyError
    gc.collect()  # garbage collection must not complete the upload
    assert storage.read_bytes("a") == b"old" and storage.files() == ["a"]


@pytest.mark.parametrize("prefetch", [False, True])
def test_an_open_file_can_seek(storage: Storage, prefetch: bool):
    content = os.urandom(1 << 16) * 300  # 19 MiB: three blocks
    storage.write_bytes("a", content)
    with storage.open("a", prefetch=prefetch) as file:
        file.seek(9_000_000)
        assert file.read(5) == content[9_000_000:9_000_005]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(1_000_000), b"")) == content


def test_copy_works_within_a_store_and_between_stores(storage: Storage, tmp_path: Path):
    storage.write_bytes("a", b"content")
    storage.copy("a", storage / "below", "b")
    storage.copy("a", Storage(str(tmp_path / "other")))
    assert storage.read_bytes("below/b") == (tmp_path / "other/a").read_bytes() == b"content"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["internal", "dropped", "answer_lost", "broken_off"])
def test_every_operation_survives_a_transient_fault(s3: str, fault: str):
    """The proxy makes the first request to each key below this name fail."""
    storage = Storage(f"{s3}/{fault}")
    large = os.urandom(1 << 20) * 12
    assert not storage.exists() and storage.files() == []
    storage.write_bytes("a", b"bytes")
    assert storage.exists("a") and storage.exists() and not storage.exists("b")
    assert storage.read_bytes("a") == b"bytes"
    assert storage.create_bytes("lease", b"mine") and not storage.create_bytes("lease", b"theirs")
    assert storage.read_bytes("lease") == b"mine"
    with storage.writing("large") as file:
        file.write(large)
    assert storage.read_bytes("large") == large
    for prefetch in (False, True):
        with storage.open("large", prefetch=prefetch) as file:
            assert b"".join(iter(lambda: file.read(1 << 20), b"")) == large
    storage.copy("a", storage / "copy")
    assert storage.glob("*") == ["a", "copy", "large", "lease"]
    assert list_files_with_sizes([f"{storage.url}/l*"]) == [
        (f"{storage.url}/large", 12 << 20),
        (f"{storage.url}/lease", 4),
    ]
    assert fingerprint(f"{storage.url}/a") == f"etag:{hashlib.md5(b'bytes').hexdigest()}"
    assert (storage / "copy").local().joinpath("a").read_bytes() == b"bytes"
    storage.remove("copy")
    assert storage.files() == ["a", "large", "lease"]
    storage.remove()
    assert not storage.exists()


@pytest.mark.slow
def test_more_than_a_thousand_files_are_listed_and_removed_while_the_store_fails(s3: str, object_store: Any):
    storage = Storage(s3)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: storage.write_bytes(f"many/{number:04d}", b"%d" % number), range(1100)))
    assert storage.files() == [f"many/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(storage.read_bytes, storage.files())) == [b"%d" % number for number in range(1100)]
    storage.remove("many")
    assert storage.files() == []
    assert all(object_store.faults()[fault] > 5 for fault in ("slow_down", "internal", "dropped", "answer_lost"))


@pytest.mark.slow
def test_files_of_another_process_are_visible_at_once(s3: str):
    reader, writer = Storage(s3), Storage(s3)
    assert not reader.exists("a/b") and reader.files() == []
    writer.fs.pipe_file(writer.path("a/b"), b"")
    assert reader.exists("a/b") and reader.exists("a") and reader.files() == ["a/b"] and reader.glob("*/*") == ["a/b"]


@pytest.mark.slow
def test_rejected_or_missing_credentials_are_an_error(s3: str, monkeypatch: pytest.MonkeyPatch):
    files = fsspec.get_filesystem_class("s3")
    for answer in ("signature", "Unable to locate credentials"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        if answer != "signature":
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        files.clear_instance_cache()  # an instance keeps the credentials that it was created with
        with pytest.raises(ValueError, match=f"store: cannot write to {s3} .*{answer}"):
            Storage(s3).check_writable()
        with pytest.raises(OSError):
            Storage(s3).exists("a")
    files.clear_instance_cache()


def test_the_error_for_an_existing_file_is_recognized_on_every_store():
    error = OSError(errno.EINVAL, "a precondition does not hold")
    assert not cluster.storage._is_exists_error(error)
    error.__cause__ = ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")
    assert cluster.storage._is_exists_error(error) and cluster.storage._is_exists_error(FileExistsError())
