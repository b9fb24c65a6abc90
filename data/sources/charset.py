"""The character encoding of HTML pages, as browsers decide it.

HTML Living Standard, 13.2.3.2: a byte order mark, then the transport's charset, then the page's own declaration in its
first 1024 bytes. A page without any of these is UTF-8 if it is valid UTF-8, and windows-1252 otherwise.
"""

import codecs
import re

from resiliparse.parse.encoding import map_encoding_to_html5

_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_PRESCAN_BYTES = 1024
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META_CHARSET = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"\A<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")


def decode_html(raw: bytes, transport: str | None = None) -> str:
    """The page's text; as in a browser, bytes that are invalid in its encoding become U+FFFD.

    `transport` is the charset in HTTP's Content-Type.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    if encoding := _python_encoding(transport) or _declared_encoding(raw[:_PRESCAN_BYTES]):
        return raw.decode(encoding, "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _declared_encoding(head: bytes) -> str | None:
    declaration = _META_CHARSET.search(_COMMENT.sub(b"", head)) or _XML_ENCODING.search(head)
    if declaration is None:
        return None
    encoding = _python_encoding(declaration[1].decode("ascii", "replace"))
    # A page whose declaration could be read as ASCII is not UTF-16, whatever it declares.
    return "utf-8" if encoding and encoding.startswith("utf-16") else encoding


def _python_encoding(label: str | None) -> str | None:
    """Python's name of the encoding with this label on the web; None for other labels, like `idna` or `hex`."""
    return map_encoding_to_html5(label.strip().strip("\"'"), fallback_utf8=False) if label else None
