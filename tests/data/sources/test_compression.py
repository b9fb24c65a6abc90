"""Reading compressed files: decompression, damage, UTF-16, archives and web servers."""

import bz2
import functools
import gzip
import http.server
import io
import lzma
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

import data.sources.compression
from data.document import Source
from data.sources.compression import file_extension, is_damage_error, read_blocks, read_utf8_blocks
from data.sources.readers import check_source, plan_ranges


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", content)
    return buffer.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda content: lzma.compress(content, format=lzma.FORMAT_ALONE),
    "zst": zstandard.ZstdCompressor().compress,
    "zip": zipped,
}


def noise(number: int) -> bytes:
    return b"".join(b"%d %d\n" % (n, zlib.crc32(b"%d" % n)) for n in range(number))


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("block_bytes", [10, 1 << 20])
def test_every_member_of_a_compressed_file_is_read(
    tmp_path: Path, ending: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    path, compress = tmp_path / f"a.{ending}", COMPRESSORS[ending]
    path.write_bytes(compress(noise(2000)))
    assert b"".join(read_blocks(str(path))) == noise(2000)
    if ending != "zip":
        path.write_bytes(compress(noise(2000)) + compress(b"") + b"\0" * 512 + compress(b"end"))
        assert b"".join(read_blocks(str(path))) == noise(2000) + b"end"
        path.write_bytes(b"")
        assert list(read_blocks(str(path))) == []


@pytest.mark.parametrize("ending", [ending for ending in COMPRESSORS if ending != "zip"])
def test_the_content_of_a_truncated_file_is_read_and_then_damage_is_reported(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSORS[ending](noise(50)) + COMPRESSORS[ending](noise(50_000))
    path = tmp_path / f"a.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    found = b""
    with pytest.raises(EOFError, match="ends within a compressed stream"):
        for block in read_blocks(str(path)):
            found += block
    assert (noise(50) + noise(50_000)).startswith(found)
    assert len(found) > 200_000 or ending == "bz2" and found == noise(50)  # a block of bz2 is 900 kB


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_a_flipped_byte_is_damage(tmp_path: Path, ending: str) -> None:
    content = bytearray(COMPRESSORS[ending](noise(2000)))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / f"a.{ending}").write_bytes(content)
    # Zstandard writes no checksum by default, so a wrong byte may be read without an error.
    with pytest.raises(Exception) as raised:
        assert b"".join(read_blocks(str(tmp_path / f"a.{ending}"))) == noise(2000)
    assert is_damage_error(raised.value) or ending == "zst"


def test_errors_of_decompressors_are_damage_and_errors_of_disks_and_networks_are_not() -> None:
    assert is_damage_error(zstandard.ZstdError("corrupted block")) and is_damage_error(OSError("Invalid data stream"))
    assert not any(map(is_damage_error, (TimeoutError(), OSError("no route to the bucket"), OSError(5, "I/O error"))))


@pytest.mark.parametrize(
    ("ending", "compress", "largest_mib"),
    [("zst", zstandard.ZstdCompressor(level=19).compress, 65), ("bz2", bz2.compress, 2)],
)
def test_a_small_file_that_expands_to_a_huge_one_is_read_in_small_blocks(
    tmp_path: Path, ending: str, compress: Callable[[bytes], bytes], largest_mib: int
) -> None:
    giant = compress(bytes(300 << 20))
    assert len(giant) < 100_000
    (tmp_path / f"a.{ending}").write_bytes(giant)
    sizes = [len(block) for block in read_blocks(str(tmp_path / f"a.{ending}"))]
    assert sum(sizes) == 300 << 20 and max(sizes) <= largest_mib << 20


def test_a_file_without_an_extension_is_not_decompressed(tmp_path: Path) -> None:
    (tmp_path / "gz").write_bytes(b"text")
    assert b"".join(read_blocks(str(tmp_path / "gz"))) == b"text"
    assert file_extension("folder.zip/README") == "" and file_extension("zip://a.b/c.JSONL::s3://d/e.zip") == "jsonl"


def test_a_zip_of_several_files_is_an_error_that_says_how_to_name_them(tmp_path: Path, find: Callable) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", '{"text": "a"}')
        archive.writestr("b.jsonl", '{"text": "b"}')
    with pytest.raises(ValueError, match=r"2 files in one .zip; .* name them by zip://"):
        check_source(Source(name="s", path=f"{tmp_path}/a.zip", format="jsonl"))
    assert find(f"zip://*::file://{tmp_path}/a.zip", "jsonl").texts == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
@pytest.mark.parametrize("block_bytes", [4, 5, 7, 1 << 20])
def test_utf16_is_recognized_by_its_mark_and_invalid_utf16_affects_one_record(
    tmp_path: Path, find: Callable, encoding: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    text = '\ufeff{"text": "naïve Ж 😀"}\n{"text": "\ud800"}\n{"text": "\u0a0a"}\n'
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding, "surrogatepass"))
    found = find(tmp_path / "a.jsonl", "jsonl", range_bytes=10)
    assert found.texts == ["naïve Ж 😀", "\u0a0a"]
    offset = len(text.splitlines(keepends=True)[0].encode())
    assert [(bad.offset, bad.reason[:9]) for bad in found.bad] == [(offset, "not UTF-8")]


def test_a_utf16_file_that_ends_within_a_character_is_quarantined(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffab".encode("utf-16-le") + b"c")
    assert b"".join(read_utf8_blocks(str(tmp_path / "a.txt"))) == "\ufeffab".encode() + b"\xff"
    assert "not UTF-8" in find(tmp_path / "a.txt", "text").bad[0].reason


def test_utf32_is_not_mistaken_for_utf16(tmp_path: Path, find: Callable) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffab".encode("utf-32-le"))
    assert "not UTF-8: invalid start byte 0xff at byte 0" in find(tmp_path / "a.txt", "text").bad[0].reason


def test_files_in_a_zip_are_read_without_extracting_them(tmp_path: Path, find: Callable) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.writestr("pkg/a.jsonl", '{"text": "one"}\n')
        archive.writestr("pkg/b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    path = f"zip://pkg/*.jsonl*::file://{tmp_path}/w.whl"
    check_source(Source(name="s", path=path, format="jsonl"))
    found = find(path, "jsonl")
    assert found.texts == ["one", "two"]
    assert found.documents[0].file == f"zip://pkg/a.jsonl::file://{tmp_path}/w.whl"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a server for `tmp_path` that, like simple servers, sends only complete files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_on_a_web_server_without_ranges_is_read(
    tmp_path: Path, find: Callable, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    check_source(Source(name="s", path=f"{web}/a.jsonl", format="jsonl"))
    assert find(f"{web}/a.jsonl", "jsonl", range_bytes=5).texts == ["one", "two"]
    assert find(f"{web}/b.jsonl.gz", "jsonl").texts == ["three"]
    assert find(f"{web}/*.jsonl", "jsonl").texts == ["one", "two"]
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>four"
    head = f"WARC/1.1\r\nWARC-Type: response\r\nContent-Length: {len(page)}\r\n\r\n".encode()
    (tmp_path / "c.warc.zst").write_bytes(zstandard.compress(head + page + b"\r\n\r\n"))
    assert find(f"{web}/c.warc.zst", "warc").texts == ["<p>four"]
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(OSError, match="sends only complete files"):
        find(f"{web}/c.parquet", "parquet")


def test_files_of_an_in_memory_file_system_are_read_in_ranges(find: Callable) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/opening/a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    assert find("memory://opening/*.jsonl", "jsonl", range_bytes=5).texts == ["one", "two"]
    assert len(plan_ranges([Source(name="s", path="memory://opening/*.jsonl", format="jsonl")], 5)) == 7
    fs.rm("/opening", recursive=True)


def test_an_error_of_the_disk_is_raised(tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.json", "a.txt", "a.html", "a.warc", "a.warc.gz"):
        (tmp_path / name).write_bytes(b"x")

    def fail(file: object) -> Iterator[bytes]:
        raise OSError(5, "Input/output error")
        yield b""

    monkeypatch.setattr(data.sources.compression, "read_raw_blocks", fail)
    for name, format in (
        ("a.jsonl", "jsonl"),
        ("a.jsonl.gz", "jsonl"),
        ("a.csv", "csv"),
        ("a.json", "json"),
        ("a.txt", "text"),
        ("a.html", "html"),
        ("a.warc", "warc"),
        ("a.warc.gz", "warc"),
    ):
        with pytest.raises(OSError, match="Input/output error"):
            find(tmp_path / name, format)
