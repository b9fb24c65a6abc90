"""The bytes of any file on an fsspec URL, block by block and decompressed.

The name says how a file is compressed: .gz, .bz2, .xz, .lzma, .zst (each with any number of members one after another,
as `cat a.gz b.gz` makes them) and a .zip of one file. For damaged content a reader raises an error for which
`is_damage_error` is true. Errors of the file system and of the network pass through unchanged.
"""

import bz2
import codecs
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, NamedTuple, cast

import fsspec
import zstandard

BLOCK_BYTES = 1 << 20
_REMOTE_BLOCK_BYTES = 4 << 20  # one request of an object store
_INPUT_BYTES = 2048
"""Fed to a decompressor at once. Zstandard, the densest, makes 128 KiB of 4 bytes, so at most 64 MiB come out."""
_MAX_ZSTD_WINDOW = 1 << 31  # what `zstd --long=31` asks for, the most there is
_UTF16_ENCODINGS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_DAMAGE_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error, zstandard.ZstdError)


class Codec(NamedTuple):
    magic: bytes
    """The first bytes of each member."""
    decompressor: Callable[[], Any]
    """Makes an object that decompresses one member (`decompress`, `eof`, `unused_data`)."""


def zstd_decompressor(dictionary: zstandard.ZstdCompressionDict | None = None) -> Any:
    """An object that decompresses one zstd member, whatever window it was compressed with."""
    return zstandard.ZstdDecompressor(dictionary, max_window_size=_MAX_ZSTD_WINDOW).decompressobj()


CODECS = {
    "gz": Codec(b"\x1f\x8b\x08", lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)),
    "bz2": Codec(b"BZh", bz2.BZ2Decompressor),
    "xz": Codec(b"\xfd7zXZ\0", lzma.LZMADecompressor),
    "lzma": Codec(b"\x5d\0\0", lzma.LZMADecompressor),
    "zst": Codec(b"\x28\xb5\x2f\xfd", zstd_decompressor),
}
"""By the extension of a file's name, in lower case."""


def is_damage_error(error: Exception) -> bool:
    """Whether an error means damaged content, as decompressors report it, and not a failing file system or network."""
    if isinstance(error, _DAMAGE_ERRORS):
        return True
    return type(error) is OSError and error.args == ("Invalid data stream",)  # all that bz2 says


def file_extension(url: str) -> str:
    """The extension of the file's name, in lower case: `gz` for `zip://a/b.jsonl.GZ::s3://c/d.zip`."""
    return url.partition("::")[0].rpartition("/")[2].rpartition(".")[2].lower()


def is_compressed(url: str) -> bool:
    return file_extension(url) in CODECS or file_extension(url) == "zip"


@contextmanager
def open_file(url: str, block_bytes: int = _REMOTE_BLOCK_BYTES) -> Iterator[IO[bytes]]:
    """The file as it is stored; a remote one is fetched while it is read, `block_bytes` ahead."""
    if "://" not in url:
        with open(url, "rb", buffering=0) as file:
            yield file
        return
    fs, path = fsspec.core.url_to_fs(url)  # an archive closes with the last reference to its file system
    options: dict[str, Any] = {"block_size": block_bytes, "cache_type": "readahead"}
    if "::" in url:  # the archive's file system decides how it fetches
        options = {}
    elif not supports_ranges(url):
        options = {"block_size": 0}  # as one stream
    with fs.open(path, "rb", **options) as file:
        yield cast(IO[bytes], file)


def supports_ranges(url: str) -> bool:
    """Whether reading may begin within the file; simple web servers send files only whole."""
    if not url.startswith(("http://", "https://")):
        return True
    fs, path = fsspec.core.url_to_fs(url)
    with fs.open(path, "rb", cache_type="none") as file:
        try:
            file.seek(1)
            file.read(1)
        except ValueError:  # raised by fsspec
            return False
    return True


def read_blocks(url: str, start: int = 0) -> Iterator[bytes]:
    """The decompressed content from byte `start` on, in blocks of about 1 MiB; `start` is for uncompressed files."""
    with open_file(url) as file:
        if file_extension(url) == "zip":
            yield from _read_zip_member(file)
            return
        if start:
            file.seek(start)
        codec = CODECS.get(file_extension(url))
        yield from read_raw_blocks(file) if codec is None else DecompressedBlocks(file, codec)


def read_raw_blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


def read_utf8_blocks(url: str, start: int = 0) -> Iterator[bytes]:
    """The blocks of `read_blocks`; a file whose byte order mark says UTF-16 is converted to UTF-8."""
    rest = read_blocks(url, start)
    first = next(rest, b"")
    content = chain([first], rest) if first else iter(())
    encoding = utf16_encoding(first) if not start else None
    return content if encoding is None else _as_utf8(content, encoding)


def utf16_encoding(head: bytes) -> str | None:
    """The byte order of a UTF-16 file, by its first four bytes; None for other files. UTF-32 begins like UTF-16."""
    return None if head[:4] == codecs.BOM_UTF32_LE else _UTF16_ENCODINGS.get(head[:2])


def _as_utf8(content: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """The content as UTF-8. Invalid UTF-16 becomes invalid UTF-8, so it costs only the record that holds it."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    for block in content:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    if decoder.getstate()[0]:
        yield b"\xff"  # half a character at the end; no UTF-8 holds this byte


def _read_zip_member(file: IO[bytes]) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise zipfile.BadZipFile(f"{len(members)} files in one .zip; name them by zip://*::… in the source's path")
        with archive.open(members[0]) as member:
            yield from read_raw_blocks(member)


class DecompressedBlocks:
    """Iterator over the decompressed blocks of every member of a file, from the file's position on."""

    def __init__(self, file: IO[bytes], codec: Codec):
        self._file = file
        self._codec = codec
        self.member = file.tell()
        """Position in the file at which the current member begins."""

    def __iter__(self) -> Iterator[bytes]:
        """Raises EOFError where the file ends within a member, and the decompressor's error for a damaged one."""
        held: list[bytes] = []
        size = 0
        try:
            for part in self._parts():
                held.append(part)
                size += len(part)
                if size >= BLOCK_BYTES:
                    yield b"".join(held)
                    held, size = [], 0
        except Exception:
            if size:
                yield b"".join(held)  # the content before the damage
            raise
        if size:
            yield b"".join(held)

    def _parts(self) -> Iterator[bytes]:
        position = self.member  # of the block in the file
        engine: Any = None
        for block in read_raw_blocks(self._file):
            begin = 0
            while begin < len(block):
                if engine is None:
                    begin = len(block) - len(block[begin:].lstrip(b"\0"))  # tapes and xz pad with NULs
                    self.member = position + begin
                    engine = self._codec.decompressor() if begin < len(block) else None
                    continue
                packed = block[begin : begin + _INPUT_BYTES]
                yield engine.decompress(packed)
                begin += len(packed)
                if engine.eof:
                    begin -= len(engine.unused_data)
                    engine = None
            position += len(block)
        if engine is not None:
            raise EOFError("the file ends within a compressed stream")
