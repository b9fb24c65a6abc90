"""Decodes web pages in the character encoding that a browser would choose.

The HTML Living Standard, 13.2.3.2, tries these in order: the byte order mark, the charset in HTTP's Content-Type, and
the declaration in the first 1024 bytes of the page. For a page with none of them the standard leaves the choice to the
browser. Here it is UTF-8 if the page is valid UTF-8, or would be without the characters that were cut or damaged. For
other pages it is a declaration further down, or else what uchardet (Li and Momoi 2001) detects in the bytes.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding

from data.document import BadRecord
from data.sources.encodings import INVALID, REPLACEMENT, decode, find_encoding

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}
_XML_IN_UTF16 = {b"<\0?\0x\0": "utf-16le", b"\0<\0?\0x": "utf-16be"}
_PRESCAN_BYTES = 1024
_LATE_PRESCAN_BYTES = 64 << 10
"""A browser reads a page again when it meets a declaration after the first 1024 bytes. We look no further than this."""
_TAG = re.compile(rb"<(?:(?P<comment>!--)|(?P<meta>meta[\s/])|(?P<element>/?[a-z][^\s>]*)|[!/?])", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rb"""[\s/]*+(?:(?P<end>>)|(?P<name>[^\s/>][^\s/>=]*)"""
    rb"""(?:\s*=\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>(?!["'])[^\s>]*)))?)"""
)
_CHARSET = re.compile(rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|(?!["'])([^\s;]+))""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""\A<\?xml[^>]*?encoding\s*=\s*["']([^"'>]+)["']""")
_JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@")
_CHARACTERS_PER_ERROR = 20
"""A page is taken for damaged UTF-8 if it has at least so many valid characters of several bytes for each invalid
sequence. Text in another encoding has fewer than one: two of its bytes rarely look like a character of UTF-8."""
_DETECTED = {
    "ascii": "windows-1252",
    "cp949": "euc-kr",
    "euc_jp": "euc-jp",
    "euc_kr": "euc-kr",
    "iso2022_jp": "iso-2022-jp",
    "koi8-r": "koi8-u",  # differs only in letters that replace box-drawing characters, and these are rare in pages
    "mac-cyrillic": "x-mac-cyrillic",
    "mac-roman": "macintosh",
}
"""Name of the encoding for those results of resiliparse that are not labels of it."""


def decode_html(raw: bytes, charset: str | None = None) -> str:
    """Return the markup of a page. Bytes that are invalid in its encoding become U+FFFD, as in a browser.

    `charset` is the charset in HTTP's Content-Type, if there is one. Raises BadRecord if the page declares an encoding
    that browsers refuse to decode.
    """
    name, mark = _marked_encoding(raw)
    name = name or (charset and find_encoding(charset)) or _declared_encoding(raw[:_PRESCAN_BYTES])
    return _decode(raw[len(mark) :], name) if name else _decode_undeclared(raw, is_markup=True)


def decode_plain_text(raw: bytes, charset: str | None = None) -> str:
    """Return a text that came from the web. Like `decode_html`, but the text itself declares no encoding."""
    name, mark = _marked_encoding(raw)
    name = name or (charset and find_encoding(charset))
    return _decode(raw[len(mark) :], name) if name else _decode_undeclared(raw, is_markup=False)


def detected_encoding(raw: bytes) -> str:
    """Return the encoding of bytes that are not valid UTF-8, as far as it can be told from them."""
    detected = detect_encoding(raw, html5_compatible=False) or ""
    name = find_encoding(_DETECTED.get(detected, detected))
    return name if name and name != REPLACEMENT else "windows-1252"


def _decode(raw: bytes, name: str) -> str:
    if name == REPLACEMENT:
        raise BadRecord("page in an encoding that browsers do not decode, such as hz-gb-2312 or iso-2022-kr")
    return decode(raw, name)


def _marked_encoding(raw: bytes) -> tuple[str | None, bytes]:
    """Return the encoding that a byte order mark names, and the mark. Without a mark, returns None and no bytes."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            return name, mark
    return None, b""


def _declared_encoding(head: bytes) -> str | None:
    """Return the encoding that the page declares in a `meta` element or an XML declaration. None without one."""
    if name := _XML_IN_UTF16.get(head[:6]):
        return name
    if name := _encoding_in_meta(head):
        return name
    declaration = _XML_ENCODING.search(head)
    return _usable_in_ascii(find_encoding(declaration[1].decode("latin-1"))) if declaration else None


def _encoding_in_meta(head: bytes) -> str | None:
    """Return the encoding in the first `meta` element that declares one: the standard's prescan of a byte stream."""
    position = 0
    while tag := _TAG.search(head, position):
        if tag["comment"]:
            position = head.find(b"-->", tag.start() + 2) + 3
            if position < 3:
                return None
        elif tag["meta"] or tag["element"]:
            attributes, position = _read_attributes(head, tag.end())
            if tag["meta"] and (name := _encoding_of_meta(attributes)):
                return name
        else:
            position = head.find(b">", tag.end()) + 1
            if not position:
                return None
    return None


def _read_attributes(head: bytes, position: int) -> tuple[dict[bytes, bytes], int]:
    """Return the attributes of the tag whose name ends at `position`, and the position after the tag."""
    attributes: dict[bytes, bytes] = {}
    while (attribute := _ATTRIBUTE.match(head, position)) and not attribute["end"]:
        value = attribute["double"] or attribute["single"] or attribute["bare"] or b""
        attributes.setdefault(attribute["name"].lower(), value)
        position = attribute.end()
    return attributes, attribute.end() if attribute else len(head)


def _encoding_of_meta(attributes: dict[bytes, bytes]) -> str | None:
    """Return the encoding that a `meta` element with these attributes declares, or None."""
    label = attributes.get(b"charset")
    if label is None and attributes.get(b"http-equiv", b"").lower() == b"content-type":
        charset = _CHARSET.search(attributes.get(b"content", b""))
        label = next(value for value in charset.groups() if value is not None) if charset else None
    return _usable_in_ascii(find_encoding(label.decode("latin-1"))) if label is not None else None


def _usable_in_ascii(name: str | None) -> str | None:
    """Return the encoding to use if a declaration, which was found by searching for ASCII bytes, names `name`."""
    if name and name.startswith("utf-16"):
        return "utf-8"
    return "windows-1252" if name == "x-user-defined" else name


def _decode_undeclared(raw: bytes, *, is_markup: bool) -> str:
    """Decode a page that declares no encoding in its first bytes."""
    if raw.isascii():
        return decode(raw, "iso-2022-jp") if any(escape in raw for escape in _JAPANESE_ESCAPES) else raw.decode("ascii")
    text = raw.decode("utf-8", "replace")
    if INVALID not in text or is_utf8_or_cut(raw):
        return text
    if is_markup and (name := _encoding_in_meta(raw[:_LATE_PRESCAN_BYTES])):
        return _decode(raw, name)
    num_errors = text.count(INVALID)
    num_others = count_beyond_ascii(text) - num_errors
    return text if num_others >= _CHARACTERS_PER_ERROR * num_errors else decode(raw, detected_encoding(raw))


def count_beyond_ascii(text: str) -> int:
    """Return the number of characters that are not ASCII."""
    return len(text) - len(text.encode("ascii", "ignore"))


def is_utf8_or_cut(raw: bytes) -> bool:
    """Return whether the bytes are valid UTF-8, perhaps cut within the last character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(raw)
    except UnicodeDecodeError:
        return False
    num_cut_bytes = len(decoder.getstate()[0])
    # A single last byte above 0x7f says little if no other character has several bytes: `caf\xe9` is windows-1252.
    return num_cut_bytes != 1 or not text.isascii()
