"""The character encodings of the web, as the WHATWG Encoding Standard defines them (encoding.spec.whatwg.org).

A label such as `iso-8859-1` names an encoding, here `windows-1252`. Python's codecs of the same names are narrower than
what browsers decode, so this module maps every encoding to the nearest codec and says in which bytes it differs.
Compared with the tables of the standard, every label, byte and pair of bytes agrees.
"""

import codecs
import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple, cast

from data.document import BadRecord, Source, is_too_long

INVALID = "\ufffd"
"""What browsers show in place of bytes that are invalid in the encoding."""
_UNENCODABLE = "\udcff"
"""Takes the place of invalid bytes where they must stay invalid. A lone surrogate is not valid in UTF-8."""

_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "ibm866": "866 cp866 csibm866 ibm866",
    "iso-8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso-8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 l3 latin3",
    "iso-8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 l4 latin4",
    "iso-8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 iso_8859-5:1988",
    "iso-8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e "
    "iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso-8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 iso88597 iso_8859-7 "
    "iso_8859-7:1987 sun_eu_greek",
    "iso-8859-8": "csiso88598e csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-ir-138 iso8859-8 iso88598 "
    "iso_8859-8 iso_8859-8:1988 visual",
    "iso-8859-8-i": "csiso88598i iso-8859-8-i logical",
    "iso-8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso-8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso-8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso-8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso-8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "macintosh": "csmacintosh mac macintosh x-mac-roman",
    "windows-874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "windows-1250": "cp1250 windows-1250 x-cp1250",
    "windows-1251": "cp1251 windows-1251 x-cp1251",
    "windows-1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "windows-1253": "cp1253 windows-1253 x-cp1253",
    "windows-1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5 "
    "windows-1254 x-cp1254",
    "windows-1255": "cp1255 windows-1255 x-cp1255",
    "windows-1256": "cp1256 windows-1256 x-cp1256",
    "windows-1257": "cp1257 windows-1257 x-cp1257",
    "windows-1258": "cp1258 windows-1258 x-cp1258",
    "x-mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gbk": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk",
    "gb18030": "gb18030",
    "big5": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso-2022-jp": "csiso2022jp iso-2022-jp",
    "shift_jis": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "euc-kr": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 "
    "windows-949",
    "replacement": "csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement",
    "utf-16be": "unicodefffe utf-16be",
    "utf-16le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
    "x-user-defined": "x-user-defined",
}
"""The labels of each encoding, by the encoding's name in lower case."""
_NAMES = {label: name for name, labels in _LABELS.items() for label in labels.split()}

REPLACEMENT = "replacement"
"""Name of the encoding of all labels that browsers refuse to decode, such as `hz-gb-2312`."""

_SINGLE_BYTE_CODECS = {
    "ibm866": "cp866",
    "iso-8859-8-i": "iso8859-8",
    "macintosh": "mac-roman",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-user-defined": "ascii",
}
"""Python's codec for the encodings of one byte for each character that Python does not know by the standard's name."""
_SINGLE_BYTE_CORRECTIONS: dict[str, dict[int, str]] = {
    "koi8-u": {0xAE: "\u045e", 0xBE: "\u040e"},
    "windows-1255": {0xCA: "\u05ba"},
    "x-user-defined": {byte: chr(0xF700 + byte) for byte in range(0x80, 0x100)},
}
"""Bytes that the standard and Python's codec decode differently. In addition, a byte from 0x80 to 0x9F that is
undefined in a Windows code page is a control character in the standard."""

_MULTI_BYTE_CODECS = {
    "gb18030": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "shift_jis": "cp932",
}
"""Python's codec for the encodings that have several bytes for some characters."""
_GB18030_CORRECTIONS = (
    "80:€ a3a0:\u3000 a6d9:︐︒︑︓︔︕︖ a6ec:︗︘ a6f3:︙ a8bc:ḿ 8135f437:\ue7c7 "
    "fe59:龴 fe61:龵 fe66:龶龷 fe6d:龸 fe7e:龹 fe90:龺 fea0:龻"
)
_BIG5_CORRECTIONS = (
    "877a:㡵𡵓𣚞𦀡㻬 87a1:𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦 "
    "87bf:珄𥶹瓆鿇垳䤯呌䄱𣚎堘穲𧭥讏䚮𦺈䆁𥶙箮𢒼鿈𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿 87dd:拁灮鿋 8e69:箸 8e6f:簆 8e7e:糎 "
    "8eab:緒 8eb4:縝 8ecd:者 8ed0:耨 8f57:菁 8f69:蒨 8f6e:萏 8fcb:覦覩 8ffe:起 906d:都 907a:銹 90dc:靜 90f1:響 "
    "91bf:鼖 9244:蔃 92af:兙兛兝兞 92c8:鍮 92d1:瑹 9447:浧 94ca:禛 95d9:邗 9644:靝 96ed:瀞 96fc:嬨 9b76:爁 "
    "9b78:矗 9b7b:纇 9bc6:駖 9bde:釔 9bec:惞 9bf6:澶 9c42:輶 9c53:侻 9c62:營 9c68:鄄 9c6b:鷰 9c77:菏 9cbc:尐秣 "
    "9cd0:婧 9d57:輋 9d5a:筑 9dc4:拐 9ea9:恢 9eef:痹 9efd:汊 9f60:鬮 9f66:鼗 9fcb:僭 9fd8:弌 a063:蠏 a077:拎 "
    "a0d5:瑨 a0df:煢 a0e4:牐 a145:‧ a14e:﹑ a1c2:¯ a1e3:～ a1f2:⊕⊙ a241:∕﹨ a244:￥ a246:￠￡ "
    "a3c0:␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏␐␑␒␓␔␕␖␗␘␙␚␛␜␝␞␟␡€ c6cf:廴 c6d3:无 c6d5:癶 c6d7:隶 c6de:〃仝 fa5f:倩 fa66:偽 fabd:包 "
    "fac5:卄 fad5:卿 fb48:嘅 fbb8:婷 fbf3:幵 fbf9:廐 fc4f:彘 fc6c:悤 fcb9:撐 fce2:晴 fcf1:杞 fdb7:沜渝 fdbb:港 "
    "fdf1:煮 fe52:猪 fe6f:瑜 feaa:瓩 fedd:砉"
)
"""Pairs of bytes that the standard decodes, and Python's codec does not or does otherwise. Each entry has the bytes of
the first character in hexadecimal digits; the following characters have the next higher last byte."""
_CORRECTIONS = {
    "gb18030": _GB18030_CORRECTIONS,
    "gbk": _GB18030_CORRECTIONS,
    "big5": _BIG5_CORRECTIONS,
    "shift_jis": f"a0:{INVALID} fd:{INVALID * 3}",  # Python makes private characters of these bytes
}
"""The corrections of each encoding. Those of EUC-JP are computed (`_euc_jp_corrections`)."""
_AMBIGUOUS = (b"\xa2\x41", b"\xa2\x42", b"\xa8\xbc", b"\x81\x35\xf4\x37", b"\x8f\xa2\xb7")
"""Corrected sequences whose characters Python's codecs also make from other bytes: two of Big5, two of GB18030, which
the standard exchanges, and one of EUC-JP."""

_LEADS = {codec: re.compile(rb"[\x81-\xfe]") for codec in ("gb18030", "big5hkscs", "cp949")} | {
    "cp932": re.compile(rb"[\x81-\x9f\xe0-\xfc]"),
    "euc_jp": re.compile(rb"[\x8e\x8f\xa1-\xfe]"),
}
"""The bytes that begin a character of several bytes, for each of Python's codecs."""
_CUT_SEQUENCE = re.compile(rb"[\x81-\xfe](?:[0-9](?:[\x81-\xfe])?)?")
"""The begin of a sequence of four bytes of GB18030."""

_ESCAPES = {b"\x1b(B": "ascii", b"\x1b(J": "roman", b"\x1b(I": "katakana", b"\x1b$@": "jis0208", b"\x1b$B": "jis0208"}
_ISO_2022_JP_ESCAPE = re.compile(rb"(\x1b(?:\([BJI]|\$[@B]))")
_ISO_2022_JP_PAIRS = re.compile(rb"(?:[\x21-\x7e]{2})+|[\x21-\x7e][^\x1b]|[\s\S]", re.DOTALL)
_WITH_HIGH_BIT = bytes(byte | 0x80 for byte in range(256))


class _MultiByteCodec(NamedTuple):
    """How an encoding of several bytes for each character is decoded."""

    python: str
    """Name of Python's codec."""
    undefined: Mapping[bytes, str]
    """The characters of the sequences that only the standard decodes."""
    translation: Mapping[str, str]
    """The standard's character for each character that Python's codec makes from other bytes than the standard."""
    ambiguous: Mapping[bytes, str]
    """The characters of the sequences that Python's codec decodes differently, but to characters that other bytes also
    have."""
    unambiguous: re.Pattern[bytes]
    """Matches from the begin of a character on everything up to the next sequence in `ambiguous`."""


def find_encoding(label: str) -> str | None:
    """Return the name of the encoding that browsers know by this label. None for other labels."""
    return _NAMES.get(label.strip("\t\n\f\r \"'").lower())


def file_encoding(source: Source) -> str:
    """Return the name of the encoding of the source's files, which is UTF-8 if the source does not say it.

    The label of the source must have passed `check_encoding`.
    """
    name = find_encoding(source.encoding or "utf-8")
    assert name is not None, f"{source.encoding} was not checked"
    return name


def check_encoding(field_path: str, label: str) -> None:
    """Raises ValueError if the label names no encoding, or one that browsers refuse to decode."""
    name = find_encoding(label)
    if name == REPLACEMENT:
        raise ValueError(
            f"{field_path}: {label!r} is an encoding that browsers do not decode; convert the files to UTF-8 first"
        )
    if name is None:
        near = [one for one in difflib.get_close_matches(label.lower(), _NAMES, n=1) if _may_mean(label, one)]
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"convert the files to UTF-8 first, or choose one of {', '.join(sorted(_LABELS))}"
        )
        raise ValueError(f"{field_path}: {label!r} is not the label of an encoding of the web; {hint}")


def _may_mean(label: str, near: str) -> bool:
    """Return whether a label may be another spelling of the label `near`. `cp850` names another encoding than `cp1250`,
    with which the texts would be wrong."""
    try:
        return codecs.lookup(label).name == codecs.lookup(near).name
    except LookupError:  # no encoding that Python knows
        return True


def decode(raw: bytes | bytearray, name: str, invalid: str = INVALID) -> str:
    """Decode bytes in the encoding `name`, which `find_encoding` returns, as a browser does.

    `invalid` takes the place of every sequence of bytes that is invalid in the encoding.
    """
    if name == "utf-8" or name.startswith("utf-16"):
        return _replace_invalid(raw, name, invalid)
    if name == "iso-2022-jp":
        return _decode_iso_2022_jp(bytes(raw), invalid)
    codec = _multi_byte_codec(name)
    if codec is None:
        return _decode_single_bytes(raw, _single_byte_table(name), invalid)
    text = _decode_multi_byte(bytes(raw), codec, invalid)
    for character, right_one in codec.translation.items():
        if character in text:
            text = text.replace(character, invalid if right_one == INVALID else right_one)
    return text


def decode_strictly(raw: bytes, name: str) -> str:
    """Decode bytes in the encoding `name`. Raises BadRecord if some of them are invalid in this encoding."""
    text = decode(raw, name, _UNENCODABLE)
    if _UNENCODABLE in text:
        raise BadRecord(f"not {name}: the value contains bytes that are no character")
    return text


def convert_to_utf8(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield the blocks of a file converted from the encoding `name` to UTF-8.

    What is invalid in the encoding becomes invalid UTF-8. So only the record that contains it goes to quarantine.
    """
    if name.startswith("utf-16"):
        decoder = codecs.getincrementaldecoder(name)("surrogatepass")
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        if decoder.getstate()[0]:
            yield b"\xff"  # the file ends within a character; this byte is invalid in UTF-8
        return
    for part in _split_between_characters(blocks, name):
        yield decode(part, name, invalid=_UNENCODABLE).encode("utf-8", "surrogatepass")


def _split_between_characters(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Yield the bytes of the blocks again, divided so that no character is in two of them."""
    codec = _multi_byte_codec(name)
    if codec is None and name != "iso-2022-jp":
        yield from blocks
        return
    # No character of several bytes contains a byte below 0x30. ISO-2022-JP returns to ASCII before the end of a line
    # (RFC 1468).
    boundary = re.compile(rb".*[\x00-\x2f]" if codec else rb".*(?:\n|\x1b\(B)", re.DOTALL)
    pieces: list[bytes] = []  # bytes without a boundary
    num_bytes = 0
    for block in blocks:
        end = match.end() if (match := boundary.match(block)) else 0
        if end:
            yield b"".join([*pieces, block[:end]])
            pieces, num_bytes = [], 0
        pieces.append(block[end:])
        num_bytes += len(block) - end
        if codec and is_too_long(num_bytes):
            data = b"".join(pieces)
            rest = _cut_character(data, codec.python)
            yield data[: len(data) - len(rest)]
            pieces, num_bytes = [rest], len(rest)
    yield b"".join(pieces)


def _cut_character(data: bytes, python: str) -> bytes:
    """Return the bytes at the end of `data` that are the begin of a character, for a codec of Python."""
    decoder = codecs.getincrementaldecoder(python)("replace")
    decoder.decode(data)
    return decoder.getstate()[0]


def _decode_single_bytes(raw: bytes | bytearray, table: str, invalid: str) -> str:
    """Decode bytes with the characters of all 256 bytes, `table`. `invalid` takes the place of `INVALID` in it."""
    text, _ = codecs.charmap_decode(raw, "strict", cast(Any, table))  # typeshed knows only tables that are mappings
    return text.replace(INVALID, invalid)


@cache
def _single_byte_table(name: str) -> str:
    """Return the characters of all bytes, with `INVALID` for bytes without a character."""
    codec = _SINGLE_BYTE_CODECS.get(name, name.replace("windows-", "cp"))
    corrections = _SINGLE_BYTE_CORRECTIONS.get(name, {})
    table: list[str] = []
    for byte in range(256):
        character = corrections.get(byte) or bytes([byte]).decode(codec, "replace")
        is_control = character == INVALID and name.startswith("windows-") and 0x80 <= byte < 0xA0
        table.append(chr(byte) if is_control else character)
    return "".join(table)


@cache
def _multi_byte_codec(name: str) -> _MultiByteCodec | None:
    """Return how an encoding is decoded that has several bytes for some characters. None for any other encoding."""
    if name not in _MULTI_BYTE_CODECS:
        return None
    corrections = _euc_jp_corrections() if name == "euc-jp" else _parse_corrections(_CORRECTIONS.get(name, ""))
    return _make_codec(_MULTI_BYTE_CODECS[name], corrections)


def _make_codec(python: str, corrections: Mapping[bytes, str]) -> _MultiByteCodec:
    """Return a codec that decodes like Python's codec except for `corrections`, the characters of some sequences."""
    pythons_characters = {sequence: sequence.decode(python, "replace") for sequence in corrections}
    undefined = {sequence: corrections[sequence] for sequence, one in pythons_characters.items() if INVALID in one}
    ambiguous = {sequence: corrections[sequence] for sequence in _AMBIGUOUS if sequence in corrections}
    return _MultiByteCodec(
        python=python,
        undefined=undefined,
        translation={
            character: corrections[sequence]
            for sequence, character in pythons_characters.items()
            if sequence not in undefined and sequence not in ambiguous
        },
        ambiguous=ambiguous,
        unambiguous=re.compile(
            # The pattern has to know where characters begin, because the end of one and the begin of the next may look
            # like one of the sequences.
            rb"(?:[\x00-\x7f]++|(?!%b)(?:\x8f[\xa1-\xfe][\x80-\xff]|%b[\x40-\xff]|[\x80-\xff]))*+"
            % (b"|".join(map(re.escape, ambiguous)) or rb"(?!)", _LEADS[python].pattern)
        ),
    )


def _parse_corrections(table: str) -> dict[bytes, str]:
    """Return the character for each sequence of bytes in a table of corrections."""
    corrections: dict[bytes, str] = {}
    for entry in table.split(" ") if table else []:
        first, _, characters = entry.partition(":")
        sequence = bytes.fromhex(first)
        for step, character in enumerate(characters):
            corrections[sequence[:-1] + bytes([sequence[-1] + step])] = character
    return corrections


def _euc_jp_corrections() -> dict[bytes, str]:
    """Return the characters in which EUC-JP differs from Python's codec.

    In the standard, EUC-JP and Shift_JIS are two ways to write the same table of 94 rows of 94 characters, and Python's
    cp932 has this table.
    """
    corrections = {b"\x8f\xa2\xb7": "\uff5e"}
    for pointer in range(94 * 94):
        pair = bytes([0xA1 + pointer // 94, 0xA1 + pointer % 94])
        character = _shift_jis_pair(pointer).decode("cp932", "replace")
        if character != pair.decode("euc_jp", "replace") and INVALID not in character:
            corrections[pair] = character
    return corrections


def _shift_jis_pair(pointer: int) -> bytes:
    """Return the two bytes of Shift_JIS for a position in the table of JIS X 0208."""
    lead, trail = divmod(pointer, 188)
    return bytes([lead + (0x81 if lead < 0x1F else 0xC1), trail + (0x40 if trail < 0x3F else 0x41)])


def _decode_multi_byte(raw: bytes, codec: _MultiByteCodec, invalid: str) -> str:
    """Decode bytes, without the translation of characters."""
    if not any(sequence in raw for sequence in codec.ambiguous):
        return _replace_invalid(raw, codec.python, invalid)
    parts: list[str] = []
    position = 0
    while True:
        match = codec.unambiguous.match(raw, position)
        assert match is not None, "the pattern matches the empty string"
        position = match.end()
        if position == len(raw):
            return "".join([*parts, _replace_invalid(match[0], codec.python, invalid)])
        # The line end keeps the codec from taking the end of this part for the end of the page.
        parts.append(_replace_invalid(match[0] + b"\n", codec.python, invalid)[:-1])
        sequence = next(sequence for sequence in codec.ambiguous if raw.startswith(sequence, position))
        parts.append(codec.ambiguous[sequence])
        position += len(sequence)


def _replace_invalid(raw: bytes | bytearray, codec: str, invalid: str) -> str:
    """Decode with Python's codec. `invalid` takes the place of what browsers replace by one U+FFFD."""
    return raw.decode(codec, _ERROR_HANDLERS[invalid])


def _replace_one(error: UnicodeError, *, invalid: str) -> tuple[str, int]:
    """Error handler of Python's codecs. Returns the character of a sequence that only the standard decodes, or
    `invalid` for an invalid sequence, and the position after it."""
    assert isinstance(error, UnicodeDecodeError), error
    if error.encoding.startswith("utf"):
        return invalid, error.end
    undefined = _undefined_sequences(error.encoding)
    for num_bytes in (1, 2):
        if (character := undefined.get(error.object[error.start : error.start + num_bytes])) is not None:
            return character, error.start + num_bytes
    return invalid, error.start + _num_invalid_bytes(error.object, error.start, error.encoding)


def _undefined_sequences(python: str) -> Mapping[bytes, str]:
    """Return `_MultiByteCodec.undefined` of the encoding that is decoded with this codec of Python."""
    codec = _multi_byte_codec(next(name for name, codec in _MULTI_BYTE_CODECS.items() if codec == python))
    return codec.undefined if codec else {}


def _num_invalid_bytes(raw: bytes, start: int, codec: str) -> int:
    """Return how many bytes from `start` on browsers replace by one U+FFFD: an ASCII byte is never one of them, except
    in a sequence of four bytes that the end of the page cuts."""
    sequence = raw[start : start + 3]
    if not _LEADS[codec].match(sequence):
        return 1
    if codec == "gb18030" and start + 4 > len(raw) and _CUT_SEQUENCE.fullmatch(sequence):
        return len(sequence)
    is_triple = codec == "euc_jp" and sequence[0] == 0x8F and 0xA1 <= sequence[1:2].ljust(1, b"\0")[0] <= 0xFE
    num_bytes = 1
    while num_bytes < min(2 + is_triple, len(sequence)) and sequence[num_bytes] >= 0x80:
        num_bytes += 1
    return num_bytes


def _decode_iso_2022_jp(raw: bytes, invalid: str) -> str:
    """Decode ISO-2022-JP, in which escape sequences switch between four sets of characters."""
    parts: list[str] = []
    charset = "ascii"
    for index, part in enumerate(_ISO_2022_JP_ESCAPE.split(raw)):
        if index % 2:
            charset = _ESCAPES[part]
        elif charset == "jis0208":
            for pairs in _ISO_2022_JP_PAIRS.findall(part):
                # EUC-JP is the same table with the high bit set. Other bytes are invalid in this state.
                is_valid = len(pairs) > 1 and all(0x21 <= byte <= 0x7E for byte in pairs[:2])
                parts.append(decode(pairs.translate(_WITH_HIGH_BIT), "euc-jp", invalid) if is_valid else invalid)
        else:
            parts.append(_decode_single_bytes(part, _ISO_2022_JP_TABLES[charset], invalid))
    return "".join(parts)


_ASCII_TABLE = "".join(chr(byte) if byte < 0x80 and byte not in (0x0E, 0x0F, 0x1B) else INVALID for byte in range(256))
_ISO_2022_JP_TABLES = {
    "ascii": _ASCII_TABLE,
    "roman": _ASCII_TABLE.replace("\\", "\u00a5").replace("~", "\u203e"),
    "katakana": "".join(chr(0xFF61 - 0x21 + byte) if 0x21 <= byte <= 0x5F else INVALID for byte in range(256)),
}
"""The characters of all bytes in three of the states of ISO-2022-JP."""

_ERROR_HANDLERS = {INVALID: "raymill-replace", _UNENCODABLE: "raymill-unencodable"}
"""Name of the error handler that replaces invalid bytes by the key."""
for _invalid, _name in _ERROR_HANDLERS.items():
    codecs.register_error(_name, partial(_replace_one, invalid=_invalid))
