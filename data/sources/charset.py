"""What characters the bytes of an HTML page stand for, as browsers decide it.

HTML Living Standard, 13.2.3.2: a byte order mark, then what the transport says, then what the page says of itself in
its first 1024 bytes. A page without any of these is UTF-8 where that fits and windows-1252 where not.
"""

import codecs
import re

from resiliparse.parse.encoding import map_encoding_to_html5

_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_PRESCAN_BYTES = 1024
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.DOTALL)
_META = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_XML = re.compile(rb"\A<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)")


def decode_html(raw: bytes, transport: str | None = None) -> str:
    """The page's text; like in a browser, bytes that its encoding does not know become U+FFFD.

    `transport` is the charset that came with the page from outside (HTTP's Content-Type).
    """
    for mark, encoding in _MARKS.items():
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    if encoding := _known(transport) or _declared(raw[:_PRESCAN_BYTES]):
        return raw.decode(encoding, "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _declared(head: bytes) -> str | None:
    found = _META.search(_COMMENT.sub(b"", head)) or _XML.search(head)
    if found is None:
        return None
    encoding = _known(found[1].decode("ascii", "replace"))
    # A page whose ASCII could be read to find this is no UTF-16, whatever it says.
    return "utf-8" if encoding and encoding.startswith("utf-16") else encoding


def _known(label: str | None) -> str | None:
    """Python's name of an encoding that the web knows by this label; None for any other, like `idna` or `hex`."""
    return map_encoding_to_html5(label.strip().strip("\"'"), fallback_utf8=False) if label else None
