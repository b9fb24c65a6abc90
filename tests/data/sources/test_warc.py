"""WARC: pages are compared with those that fastwarc finds, and broken records do not affect other records."""

import bz2
import gzip
import io
import random
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from fastwarc.warc import ArchiveIterator, WarcRecordType

import data.document
import data.sources.compression
from data.document import Source
from data.sources.http_message import sniff_page
from data.sources.readers import check_source


def record(kind: str, block: bytes, **headers: str) -> bytes:
    named = {"WARC_Type": kind, "Content_Length": str(len(block)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"WARC/1.1\r\n{head}\r\n".encode() + block + b"\r\n\r\n"


def response(number: int, body: bytes, *http: str, status: str = "200 OK", kind: str = "text/html") -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", f"Content-Type: {kind}", *http))
    return record(
        "response",
        head.encode() + b"\r\n" + body,
        WARC_Target_URI=f"http://example.org/{number}",
        WARC_Date="2024-01-02T03:04:05Z",
        WARC_Record_ID=f"<urn:uuid:{number:032d}>",
        Content_Type="application/http; msgtype=response",
    )


def page(number: int, size: int = 40) -> bytes:
    rng = random.Random(number)
    return f"<p>{number} é ".encode() + bytes(rng.choice(b"abc \r\n") for _ in range(size)) + b"</p>"


def request(number: int) -> bytes:
    return record("request", b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", Content_Type="application/http")


def crawl() -> list[bytes]:
    """Return a record about the crawl, then 12 requests, each with its response. Every third response is a picture."""
    records = [record("warcinfo", b"software: test\r\n", Content_Type="application/warc-fields")]
    for number in range(12):
        kind = "image/png" if number % 3 == 2 else "text/html; charset=utf-8"
        records += [request(number), response(number, page(number, 40 * number), kind=kind)]
    return records


def pack_gzip(records: list[bytes]) -> bytes:
    return b"".join(gzip.compress(one) for one in records)


def pack_zstd(records: list[bytes]) -> bytes:
    return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(one) for one in records)


def pack_zstd_with_dictionary(records: list[bytes]) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(b"".join(records)[:2000])
    engine = zstandard.ZstdCompressor(dict_data=dictionary)
    content = zstandard.ZstdCompressor().compress(dictionary.as_bytes())
    head = b"\x5d\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content
    return head + b"".join(engine.compress(one) for one in records)


PACKED: dict[str, tuple[str, Callable[[list[bytes]], bytes]]] = {
    "bare": ("a.warc", b"".join),
    "gzip by record": ("a.warc.gz", pack_gzip),
    "gzip as a whole": ("a.warc.gz", lambda records: gzip.compress(b"".join(records))),
    "zstd by record": ("a.warc.zst", pack_zstd),
    "zstd with a dictionary": ("a.warc.zst", pack_zstd_with_dictionary),
}


def by_fastwarc(content: bytes) -> list[tuple[int, str, str, bytes]]:
    found = ArchiveIterator(io.BytesIO(content), record_types=WarcRecordType.response)
    return [
        (one.stream_pos, one.headers["WARC-Target-URI"], one.headers["WARC-Record-ID"], one.reader.read())
        for one in found
        if one.http_content_type in ("text/html", "application/xhtml+xml")
    ]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_pages_equal_those_that_fastwarc_finds(
    tmp_path: Path, find: Callable, packed: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    name, pack = PACKED[packed]
    records = crawl()
    (tmp_path / name).write_bytes(pack(records))
    columns = ["url", "id", "date", "status", "headers.content-type", "http.content-type"]
    found = find(tmp_path / name, "warc", metadata=columns)
    expected = by_fastwarc(b"".join(records))
    assert len(expected) == 8 and not found.bad
    assert [(d.offset, d.metadata["url"], d.metadata["id"], d.text.encode()) for d in found.documents] == expected
    first = found.documents[0].metadata
    assert (first["date"], first["status"]) == ("2024-01-02T03:04:05Z", 200)
    assert first["http.content-type"] == "text/html; charset=utf-8"
    kinds = [other.kind for other in found.others]
    assert kinds == ["warcinfo", *(["request"] * 3 + ["response image/png"]) * 4]
    assert len(found.records) == len(records)


def chunked(body: bytes) -> bytes:
    parts = [body[:7], body[7:9], body[9:]]
    return b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


def bare_deflate(body: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(body) + engine.flush()


BODY = "<p>naïve page</p>".encode() * 3
BODIES = {
    "chunked": (chunked(BODY), ["Transfer-Encoding: chunked"]),
    "gzip": (gzip.compress(BODY), ["content-encoding:gzip"]),
    "gzip in chunks": (chunked(gzip.compress(BODY)), ["Transfer-Encoding: chunked", "Content-Encoding: gzip"]),
    "deflate": (zlib.compress(BODY), ["Content-Encoding: deflate"]),
    "bare deflate": (bare_deflate(BODY), ["Content-Encoding: deflate"]),
    "zstd": (zstandard.ZstdCompressor().compress(BODY), ["Content-Encoding: zstd"]),
    "stored unpacked": (BODY, ["Transfer-Encoding: chunked", "Content-Encoding: br, gzip"]),
    "folded header": (BODY, ["X-Long: a", "  b"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_decoded_as_http_specifies(tmp_path: Path, find: Callable, name: str) -> None:
    body, http = BODIES[name]
    (tmp_path / "a.warc").write_bytes(response(1, body, *http))
    assert find(tmp_path / "a.warc", "warc").texts == [BODY.decode()]


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip", "zstd"])
def test_an_encoded_body_may_be_empty_or_stored_as_text(tmp_path: Path, find: Callable, encoding: str) -> None:
    header = f"Content-Encoding: {encoding}"
    (tmp_path / "a.warc").write_bytes(response(1, b"", header) + response(2, b"<p>page", header))
    assert find(tmp_path / "a.warc", "warc").texts == ["", "<p>page"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_without_the_first_bytes_of_its_encoding_is_stored_as_text(
    tmp_path: Path, find: Callable, encoding: str
) -> None:
    (tmp_path / "a.warc").write_bytes(response(1, b"A <b>page</b>", f"Content-Encoding: {encoding}"))
    assert find(tmp_path / "a.warc", "warc").texts == ["A <b>page</b>"]


def test_a_body_that_cannot_be_decoded_is_quarantined(
    tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = bytearray(gzip.compress(page(1, 500)))
    records = [
        response(0, b"\x0b\x02\x80abc\x03", "Content-Encoding: br"),
        response(1, bytes(packed[:-20]), "Content-Encoding: gzip"),
        response(2, gzip.compress(bytes(100_000)), "Content-Encoding: gzip"),
        response(3, BODY),
    ]
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 10_000)
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = find(tmp_path / "a.warc", "warc")
    assert found.texts == [BODY.decode()]
    assert [bad.reason for bad in found.bad] == [
        "page with the content encoding br, which is not supported",
        "page whose compressed body is truncated",
        "record longer than 10000 bytes",
    ]


def test_the_charset_of_http_has_priority_over_that_of_the_page(tmp_path: Path, find: Callable) -> None:
    body = b"<meta charset=koi8-r>\xc6"
    (tmp_path / "a.warc").write_bytes(response(1, body, kind='Text/HTML; charset="windows-1251"') + response(2, body))
    assert [text[-1] for text in find(tmp_path / "a.warc", "warc").texts] == ["Ж", "ф"]


def untyped(body: bytes, *http: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *http))
    return record("response", head.encode() + b"\r\n" + body, WARC_Target_URI="http://example.org/")


def test_the_texts_of_a_wet_file_are_plain_text(tmp_path: Path, find: Callable) -> None:
    texts = ["if a<b and b<c: <b>no tag</b>\n", "Ж &amp; 漢字\n", "caf\u00e9 ε ø"]
    records = [record("warcinfo", b"")]
    for number, text in enumerate(texts):
        records.append(
            record(
                "conversion",
                text.encode(),
                Content_Type="text/plain",
                WARC_Target_URI=f"http://example.org/{number}",
                WARC_Record_ID=f"<urn:uuid:{number}>",
            )
        )
    records += [
        record("conversion", b"%PDF-1.4", Content_Type="application/pdf"),
        record("metadata", b"fetchTimeMs: 1"),
    ]
    (tmp_path / "a.warc.wet.gz").write_bytes(pack_gzip(records))
    check_source(Source(name="s", path=f"{tmp_path}/*.wet.gz", format="warc", metadata=["url"], id="id"))
    found = find(tmp_path / "a.warc.wet.gz", "warc", metadata=["url", "status", "content_type"])
    assert found.texts == texts and not found.bad
    assert {document.content_type for document in found.documents} == {"text/plain"}
    first = {"url": "http://example.org/0", "status": None, "content_type": "text/plain"}
    assert found.documents[0].metadata == first
    assert [other.kind for other in found.others] == ["warcinfo", "conversion application/pdf", "metadata"]


def test_a_resource_is_the_content_itself(tmp_path: Path, find: Callable) -> None:
    records = [
        record("resource", "<p>Ж".encode("cp1251"), Content_Type="text/html; charset=windows-1251"),
        record("resource", b"<!DOCTYPE html><p>untyped"),
        record("resource", b"\x89PNG", Content_Type="image/png"),
        record("resource", b"name,value", Content_Type="text/plain"),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = find(tmp_path / "a.warc", "warc")
    assert found.texts == ["<p>Ж", "<!DOCTYPE html><p>untyped"]
    assert [other.kind for other in found.others] == ["resource image/png", "resource text/plain"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<html><p>x", "text/html"),
        (b"\r\n\t <!DocType HTML><p>x", "text/html"),
        (b"<title>x</title>", "text/html"),
        (b"<!-- note --><p>x", "text/html"),
        (b"<P >x", "text/html"),
        (
            b"<?xml version='1.0'?>\n<!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0'><html>x</html>",
            "application/xhtml+xml",
        ),
        (b"<?xml version='1.0'?><rss>x</rss>", None),
        (b"plain <p>x", None),
        (b"<pre>x", None),
        (b"<people>x", None),
        (b"%PDF-1.7", None),
        (b"", None),
    ],
)
def test_a_page_without_a_content_type_is_recognized_as_in_a_browser(
    tmp_path: Path, find: Callable, body: bytes, content_type: str | None
) -> None:
    for headers in ([], ["Content-Type: html"], ["Content-Type:"], ["Content-Type: charset=utf-8"]):
        (tmp_path / "a.warc").write_bytes(untyped(body, *headers))
        found = find(tmp_path / "a.warc", "warc")
        if content_type is None:
            assert [other.kind for other in found.others] == ["response without Content-Type"]
        else:
            assert [(document.text, document.content_type) for document in found.documents] == [
                (body.decode(), content_type)
            ]


def test_comments_before_another_element_are_read_in_linear_time() -> None:
    start = time.process_time()
    assert sniff_page(b"<?xml version='1.0'?>" + b"<!-- a -->" * 26 + b"<svg>") == ""
    assert sniff_page(b"<?xml version='1.0'?>" + b"<!-- a -->\n" * 26 + b"<html>") == "application/xhtml+xml"
    assert time.process_time() - start < 0.5


def test_of_several_content_types_the_last_valid_one_counts(tmp_path: Path, find: Callable) -> None:
    kinds = [
        "text/plain, text/html",
        "text/html;charset=koi8-r, text/html",
        'text/html; a="x,y", nonsense',
        "image/png",
    ]
    (tmp_path / "a.warc").write_bytes(
        b"".join(response(number, b"\xf6", kind=kind) for number, kind in enumerate(kinds))
    )
    found = find(tmp_path / "a.warc", "warc")
    assert found.texts == ["ö", "Ж", "ö"]
    assert [other.kind for other in found.others] == ["response image/png"]


def test_error_pages_and_redirects_are_counted_unless_the_source_wants_them(tmp_path: Path, find: Callable) -> None:
    statuses = ["200 OK", "404 Not Found", "301 Moved", "206 Partial Content", "503", "304 Not Modified", "nonsense"]
    (tmp_path / "a.warc").write_bytes(b"".join(response(n, b"<p>x", status=s) for n, s in enumerate(statuses)))
    found = find(tmp_path / "a.warc", "warc", metadata=["status"])
    assert [document.metadata["status"] for document in found.documents] == [200, 206, None]
    assert [other.kind for other in found.others] == [f"response with status {n}" for n in (404, 301, 503, 304)]
    found = find(tmp_path / "a.warc", "warc", metadata=["status"], error_pages=True)
    assert [document.metadata["status"] for document in found.documents] == [200, 404, 301, 206, 503, 304, None]
    with pytest.raises(ValueError, match=r"sources\.s\.error_pages: this field is only for format warc"):
        check_source(Source(name="s", path=f"{tmp_path}/*", format="html", error_pages=True))


LONG_BODY = b"<p>" + b"".join(b"line %d of a longer page\r\n" % number for number in range(40)) + b"</p>"


def wrongly_chunked(body: bytes, errors: list[int], *, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return the body in as many chunks as there are errors, each with its size changed by the error."""
    step = -(-len(body) // len(errors))
    parts = [body[start : start + step] for start in range(0, len(body), step)]
    return (
        b"".join(b"%x\r\n%b\r\n" % (len(part) + error, part) for part, error in zip(parts, errors, strict=True)) + end
    )


@pytest.mark.parametrize(
    "errors", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1], [2, -2, 1], [1, 1, 1], [-30, 30, 0], [5]]
)
@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nExpires: never\r\n\r\n"])
def test_a_body_with_wrong_chunk_sizes_is_read_whole(
    tmp_path: Path, find: Callable, errors: list[int], end: bytes
) -> None:
    body = wrongly_chunked(LONG_BODY, errors, end=end)
    (tmp_path / "a.warc").write_bytes(response(1, body, "Transfer-Encoding: chunked") + response(2, b"<p>y"))
    assert find(tmp_path / "a.warc", "warc").texts == [LONG_BODY.decode(), "<p>y"]
    packed = wrongly_chunked(gzip.compress(LONG_BODY, mtime=0), [max(-5, min(error, 5)) for error in errors])
    headers = ("Transfer-Encoding: chunked", "Content-Encoding: gzip")
    (tmp_path / "a.warc").write_bytes(response(1, packed, *headers))
    assert find(tmp_path / "a.warc", "warc").texts == [LONG_BODY.decode()]


@pytest.mark.parametrize("errors", [[500, 0, 0], [0, -200, 0], [0, 0, 5000]])
def test_a_body_whose_chunks_cannot_be_found_is_quarantined(tmp_path: Path, find: Callable, errors: list[int]) -> None:
    body = wrongly_chunked(LONG_BODY, errors)
    (tmp_path / "a.warc").write_bytes(response(1, body, "Transfer-Encoding: chunked") + response(2, b"<p>y"))
    found = find(tmp_path / "a.warc", "warc")
    assert found.texts == ["<p>y"]
    assert [bad.reason.partition(":")[0] for bad in found.bad] == ["page with a wrong chunk size"]


def test_a_body_that_the_crawl_cut_is_read_up_to_its_end(tmp_path: Path, find: Callable) -> None:
    whole = wrongly_chunked(LONG_BODY, [0, 1, 0], end=b"")
    for body in (whole, whole[:-2], whole[:-100]):
        (tmp_path / "a.warc").write_bytes(response(1, body, "Transfer-Encoding: chunked"))
        (text,) = find(tmp_path / "a.warc", "warc").texts
        assert LONG_BODY.decode().startswith(text) and len(text) >= len(LONG_BODY) - 98


def test_chunks_may_be_separated_by_line_feeds(tmp_path: Path, find: Callable) -> None:
    body = wrongly_chunked(b"<p>" + b"x" * 90, [0, 1, -1]).replace(b"\r\n", b"\n")
    (tmp_path / "a.warc").write_bytes(response(1, body, "Transfer-Encoding: chunked"))
    assert find(tmp_path / "a.warc", "warc").texts == ["<p>" + "x" * 90]


def test_a_body_that_only_looks_like_a_chunk_is_not_changed(tmp_path: Path, find: Callable) -> None:
    body = b"Dad\r\ncame home"
    (tmp_path / "a.warc").write_bytes(response(1, body, "Transfer-Encoding: chunked"))
    assert find(tmp_path / "a.warc", "warc").texts == [body.decode()]


def test_responses_without_html_or_http_are_not_pages(tmp_path: Path, find: Callable) -> None:
    records = [response(1, b"{}", kind="application/json"), record("response", b"dns"), record("revisit", b"")]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = find(tmp_path / "a.warc", "warc")
    assert [other.kind for other in found.others] == ["response application/json", "response without HTTP", "revisit"]
    assert len(found.records) == 3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda one: one.replace(b"WARC/1.1", b"XARC/1.1", 1), "no WARC record begins here"),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: 1", 1), "does not lead to the record's end"),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: 99", 1), "the file ends within the record"),
        (lambda one: one.replace(b"Content-Length: ", b"Content-Length: x", 1), "is not a number"),
        (lambda one: one.replace(b"Content-Length: ", b"Length: ", 1), "Content-Length '' is not a number"),
        (lambda one: one[:-30], "does not lead to the record's end"),
        (lambda one: one[:60], "another record begins within the record's header"),
        (lambda one: one[:30], "another record begins within the record's header"),
        (lambda one: one[:-4] + b"more of it" + one[-4:], "does not lead to the record's end"),
    ],
)
@pytest.mark.parametrize("place", [0, 5, 9])
@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_a_broken_record_does_not_affect_other_records(
    tmp_path: Path,
    find: Callable,
    spoil: Callable[[bytes], bytes],
    reason: str,
    place: int,
    block_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", block_bytes)
    records = [response(number, page(number, 300)) for number in range(10)]
    offsets = [sum(map(len, records[:number])) for number in range(10)]
    records[place] = spoil(records[place])
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = find(tmp_path / "a.warc", "warc")
    (bad,) = found.bad
    assert bad.offset == offsets[place]
    assert reason in bad.reason or place == 9, "a broken last record may only be reported as truncated"
    assert found.texts == [page(number, 300).decode() for number in range(10) if number != place]


@pytest.mark.parametrize(("name", "pack"), [("a.warc.gz", pack_gzip), ("a.warc.zst", pack_zstd)])
@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_damaged_member_does_not_affect_other_members(
    tmp_path: Path, find: Callable, name: str, pack: Callable[[list[bytes]], bytes], place: int
) -> None:
    records = [response(number, page(number, 300)) for number in range(10)]
    start, stop = len(pack(records[:place])), len(pack(records[: place + 1]))
    for at in range(start, stop, 7):
        content = bytearray(pack(records))
        content[at] ^= 0xFF
        (tmp_path / name).write_bytes(content)
        found = find(tmp_path / name, "warc")
        assert set(found.texts) >= {page(number, 300).decode() for number in range(10) if number != place}
        assert len(found.records) == 10 or found.texts == [page(number, 300).decode() for number in range(10)]
    (tmp_path / name).write_bytes(pack(records)[: stop - 40])
    found = find(tmp_path / name, "warc")
    assert found.texts == [page(number, 300).decode() for number in range(place)] and len(found.bad) == 1


@pytest.mark.parametrize(("name", "compress"), [("a.warc.bz2", bz2.compress), ("a.warc.zst", zstandard.compress)])
def test_after_damage_members_with_long_compressed_blocks_are_found(
    tmp_path: Path, find: Callable, name: str, compress: Callable[[bytes], bytes]
) -> None:
    members = [compress(response(number, page(number, 20_000))) for number in range(3)]
    assert min(map(len, members)) > 3000
    members[1] = members[1][:3] + b"\xff" + members[1][4:]
    (tmp_path / name).write_bytes(b"".join(members))
    found = find(tmp_path / name, "warc")
    assert found.texts == [page(0, 20_000).decode(), page(2, 20_000).decode()] and len(found.bad) == 1


def test_a_record_over_the_limit_is_quarantined(
    tmp_path: Path, find: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.document, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(data.sources.compression, "BLOCK_BYTES", 64)
    records = [response(0, page(0)), response(1, page(1, 3000)), record("resource", bytes(5000)), response(2, page(2))]
    (tmp_path / "a.warc").write_bytes(b"".join(records))
    found = find(tmp_path / "a.warc", "warc")
    assert found.texts == [page(0).decode(), page(2).decode()]
    assert [(bad.offset, bad.reason) for bad in found.bad] == [(len(records[0]), "record longer than 1000 bytes")]
    assert [other.kind for other in found.others] == ["resource"]


def test_the_check_knows_the_columns_of_a_page(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"".join(crawl()))

    def check(**fields: object) -> None:
        check_source(Source(name="s", path=f"{tmp_path}/a.warc", format="warc", **fields))  # type: ignore[arg-type]

    check(id="url", metadata=["http.last-modified", "headers.warc-ip-address", "date"])
    with pytest.raises(ValueError, match="column 'uri' is in none .*did you mean 'url'"):
        check(metadata=["uri"])
    with pytest.raises(
        ValueError, match=r"sources\.s\.text: 'html' cannot be chosen, because the text of a WARC record"
    ):
        check(text="html")
