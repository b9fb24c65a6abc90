"""Functions that read a file at any fsspec URL in blocks of decompressed bytes.

The extension of the file's name decides how the file is decompressed: .gz, .bz2, .xz, .lzma, .zst, or a .zip that
contains one file. Except for .zip, a compressed file may consist of several members, one after another, as
`cat a.gz b.gz` writes them. Damaged content raises an error for which `is_damage_error` is true. Errors of the file
system and of the network are raised unchanged.
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

from data.sources.encodings import convert_to_utf8

BLOCK_BYTES = 1 << 20
_REMOTE_BLOCK_BYTES = 4 << 20  # size of one request to an object store
_INPUT_BYTES = 2048
"""Compressed bytes that a decompressor gets in one call. This bounds the output of one call to 64 MiB, because
Zstandard expands 4 bytes to at most 128 KiB. Only bzip2 is denser, as it expands 44 bytes to 46 MB. So its decompressor
also gets a maximum length of the output."""
_MAX_ZSTD_WINDOW = 1 << 31  # the largest window that zstd allows (`zstd --long=31`)
_UTF16_ENCODINGS = {codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}
_DAMAGE_ERRORS = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, zlib.error, zstandard.ZstdError)


class Codec(NamedTuple):
    """How files of one compression format are recognized and decompressed."""

    magic: bytes
    """The first bytes of every member."""
    make_decompressor: Callable[[], Any]
    """Returns an object that decompresses one member. The object has `decompress`, `eof` and `unused_data`."""


def zstd_decompressor(dictionary: zstandard.ZstdCompressionDict | None = None) -> Any:
    """Return an object that decompresses one zstd member. It accepts every window size."""
    return zstandard.ZstdDecompressor(dictionary, max_window_size=_MAX_ZSTD_WINDOW).decompressobj()


CODECS = {
    "gz": Codec(b"\x1f\x8b\x08", lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)),
    "bz2": Codec(b"BZh", bz2.BZ2Decompressor),
    "xz": Codec(b"\xfd7zXZ\0", lzma.LZMADecompressor),
    "lzma": Codec(b"\x5d\0\0", lzma.LZMADecompressor),
    "zst": Codec(b"\x28\xb5\x2f\xfd", zstd_decompressor),
}
"""The codec for each extension of a file name. Extensions are in lower case."""


def is_damage_error(error: Exception) -> bool:
    """Whether a decompressor raised the error because the content is damaged.

    Errors of the file system and of the network do not count as damage.
    """
    if isinstance(error, _DAMAGE_ERRORS):
        return True
    # bz2 reports damage by a plain OSError. Only its message distinguishes it from an error of the file system.
    return type(error) is OSError and error.args == ("Invalid data stream",)


def file_extension(url: str) -> str:
    """Return the extension of the file's name in lower case, such as `gz` for `zip://a/b.jsonl.GZ::s3://c/d.zip`.

    Returns "" for a name without a dot.
    """
    _, dot, extension = url.partition("::")[0].rpartition("/")[2].rpartition(".")
    return extension.lower() if dot else ""


def is_compressed(url: str) -> bool:
    """Whether the file's extension names a compression format that `read_blocks` decompresses."""
    return file_extension(url) in CODECS or file_extension(url) == "zip"


CONTENT_BYTES_PER_COMPRESSED_BYTE = 4
"""Estimated bytes of content for each byte of a compressed file. Only numbers of parts and the forecasts of `raymill
plan` depend on it."""


def estimate_content_bytes(url: str, num_bytes: int) -> int:
    """Estimate how many bytes of content a file of `num_bytes` has after it is decompressed."""
    return num_bytes * (CONTENT_BYTES_PER_COMPRESSED_BYTE if is_compressed(url) else 1)


@contextmanager
def open_file(url: str, block_bytes: int = _REMOTE_BLOCK_BYTES) -> Iterator[IO[bytes]]:
    """Open the file without decompressing it. A remote file is read ahead in requests of `block_bytes`."""
    if "://" not in url:
        with open(url, "rb", buffering=0) as file:
            yield file
        return
    # `fs` must stay referenced while the file is open: when nothing refers to the file system of an
    # archive any more, fsspec closes the archive.
    fs, path = fsspec.core.url_to_fs(url)
    options: dict[str, Any] = {"block_size": block_bytes, "cache_type": "readahead"}
    if "::" in url:  # the archive's file system decides how to fetch
        options = {}
    elif not supports_ranges(url):
        options = {"block_size": 0}  # makes fsspec read the file as one stream
    with fs.open(path, "rb", **options) as file:
        yield cast(IO[bytes], file)


def supports_ranges(url: str) -> bool:
    """Whether the file can be read from any position. Simple web servers send only complete files."""
    if not url.startswith(("http://", "https://")):
        return True
    fs, path = fsspec.core.url_to_fs(url)
    with fs.open(path, "rb", cache_type="none") as file:
        try:
            file.seek(1)
            file.read(1)
        except ValueError:  # fsspec raises it for a server without range requests
            return False
    return True


def read_blocks(url: str, start: int = 0) -> Iterator[bytes]:
    """Yield the content in blocks of about 1 MiB, decompressed and from byte `start` on.

    A block of a compressed file can have up to 65 MiB (`DecompressedBlocks`). `start` must be 0 for compressed files.
    """
    with open_file(url) as file:
        if file_extension(url) == "zip":
            yield from _read_zip_member(file)
            return
        if start:
            file.seek(start)
        codec = CODECS.get(file_extension(url))
        yield from read_raw_blocks(file) if codec is None else DecompressedBlocks(file, codec)


def read_raw_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of an open file in blocks of at most 1 MiB, without decompressing them."""
    while block := file.read(BLOCK_BYTES):
        yield block


def read_utf8_blocks(url: str, start: int = 0, *, encoding: str = "utf-8") -> Iterator[bytes]:
    """Return the blocks of `read_blocks`, converted to UTF-8.

    `encoding` is the name of the file's encoding (`find_encoding`). As in a browser, a byte order mark of UTF-8 or
    UTF-16 has priority over it. `start` must be 0 for an encoding other than UTF-8. With a `start` above 0, nothing is
    converted, because the byte order mark is not read.
    """
    following_blocks = read_blocks(url, start)
    if start:
        return following_blocks
    first_block = next(following_blocks, b"")
    blocks = chain([first_block], following_blocks) if first_block else iter(())
    name = "utf-8" if first_block.startswith(codecs.BOM_UTF8) else utf16_encoding(first_block) or encoding
    return blocks if name == "utf-8" else convert_to_utf8(blocks, name)


def first_block(read: Callable[[str], Iterator[bytes]], url: str) -> bytes:
    """Return the first block of a file, with `read_blocks` or a function like it.

    Returns nothing if the file is empty or damaged there.
    """
    try:
        return next(read(url), b"")
    except Exception as error:
        if not is_damage_error(error):
            raise
        return b""


def utf16_encoding(head: bytes) -> str | None:
    """Return the name of the UTF-16 encoding of a file that begins with the bytes `head`; None for other files.

    `head` needs four bytes, because the byte order mark of UTF-32-LE begins with that of UTF-16-LE.
    """
    return None if head[:4] == codecs.BOM_UTF32_LE else _UTF16_ENCODINGS.get(head[:2])


def _read_zip_member(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the blocks of the only member of a zip archive. Raises BadZipFile if it has no member or several."""
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise zipfile.BadZipFile(
                f"{len(members)} files in one .zip; a path to a .zip reads an archive of exactly one file; for "
                "several files, name them by zip://*::… in the path"
            )
        with archive.open(members[0]) as member:
            yield from read_raw_blocks(member)


class DecompressedBlocks:
    """Iterates over the decompressed content of all members of an open file, from its current position on.

    The content comes in blocks of at least 1 MiB, except for the last one and for the one before damage. A block has
    at most 65 MiB, because what a decompressor returns in one call is not divided.
    """

    def __init__(self, file: IO[bytes], codec: Codec):
        self._file = file
        self._codec = codec
        self.member_start = file.tell()
        """Position in the file at which the current member begins."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield the blocks.

        Raises EOFError if the file ends within a member. Raises the decompressor's error if a member is damaged.
        """
        pieces: list[bytes] = []
        num_bytes = 0
        try:
            for piece in self._decompress_pieces():
                pieces.append(piece)
                num_bytes += len(piece)
                if num_bytes >= BLOCK_BYTES:
                    yield b"".join(pieces)
                    pieces, num_bytes = [], 0
        except Exception:
            if num_bytes:
                yield b"".join(pieces)  # the content before the damage
            raise
        if num_bytes:
            yield b"".join(pieces)

    def _decompress_pieces(self) -> Iterator[bytes]:
        """Yield the decompressed bytes of `_INPUT_BYTES` of the file at a time, in one or several pieces."""
        block_start = self.member_start  # position of the block in the file
        decompressor: Any = None
        for block in read_raw_blocks(self._file):
            begin = 0
            while begin < len(block):
                if decompressor is None:
                    # Members may be padded with NUL bytes, by tape drives and by xz.
                    begin = len(block) - len(block[begin:].lstrip(b"\0"))
                    self.member_start = block_start + begin
                    decompressor = self._codec.make_decompressor() if begin < len(block) else None
                    continue
                compressed = block[begin : begin + _INPUT_BYTES]
                yield from _decompress(decompressor, compressed)
                begin += len(compressed)
                if decompressor.eof:
                    begin -= len(decompressor.unused_data)
                    decompressor = None
            block_start += len(block)
        if decompressor is not None:
            raise EOFError("the file ends within a compressed stream")


def _decompress(decompressor: Any, compressed: bytes) -> Iterator[bytes]:
    """Yield the decompressed bytes in one piece. Only those of bzip2 come in several pieces of at most 1 MiB."""
    if not isinstance(decompressor, bz2.BZ2Decompressor):
        yield decompressor.decompress(compressed)
        return
    yield decompressor.decompress(compressed, max_length=BLOCK_BYTES)
    while not (decompressor.needs_input or decompressor.eof):
        yield decompressor.decompress(b"", max_length=BLOCK_BYTES)
