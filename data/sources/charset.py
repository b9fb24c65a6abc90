"""Decodes HTML pages in the character encoding that a browser would choose.

The HTML Living Standard, 13.2.3.2, tries these in order: the byte order mark, the charset in HTTP's Content-Type, and
the declaration in the first 1024 bytes of the page. A page with none of them is decoded as UTF-8 if it is valid UTF-8,
and as windows-1252 otherwise.
"""

import codecs
import re

from resiliparse.parse.encoding import map_encoding_to_html5

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_PRESCAN_BYTES = 1024
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META_CHARSET = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\A<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")


def decode_html(raw: bytes, http_charset: str | None = None) -> str:
    """Return the page as a string. Bytes that are invalid in its encoding become U+FFFD.

    A browser does the same, except for the five bytes that windows-1252 does not define: it makes them control
    characters. `http_charset` is the charset in HTTP's Content-Type, if there is one.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    if encoding := _python_encoding(http_charset) or _declared_encoding(raw[:_PRESCAN_BYTES]):
        return raw.decode(encoding, "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _declared_encoding(head: bytes) -> str | None:
    """Return the encoding that the page declares in a `meta` element or an XML declaration.

    Returns None if it declares no encoding or one that `_python_encoding` does not know.
    """
    declaration = _META_CHARSET.search(_COMMENT.sub(b"", head)) or _XML_ENCODING.search(head)
    if declaration is None:
        return None
    encoding = _python_encoding(declaration[1].decode("ascii", "replace"))
    # The declaration was found by searching for ASCII bytes. So the page cannot be UTF-16, even if it says so.
    return "utf-8" if encoding and encoding.startswith("utf-16") else encoding


def _python_encoding(label: str | None) -> str | None:
    """Return Python's name of the encoding that browsers know by this label.

    Returns None for other labels, such as `idna` and `hex`, which are names of Python codecs only, and for encodings
    that resiliparse does not map to a Python codec, such as `x-mac-cyrillic`.
    """
    return map_encoding_to_html5(label.strip().strip("\"'"), fallback_utf8=False) if label else None
