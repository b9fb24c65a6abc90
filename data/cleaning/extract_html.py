"""The step `extract_html`: extract the plain text of HTML pages with resiliparse (Bevendorff et al. 2018).

The type of a document says whether it is HTML. Where it does not, `data/cleaning/markup.py` looks at the structure.

Some small pages would take the parser minutes or gigabytes of memory. The step estimates this cost and drops the
expensive pages. The cost has three causes:

- If a formatting tag (`<b>`, `<font>`) is not closed, the HTML standard demands that the parser creates its element
  again in every following block. A page of 20 kB can become a million elements of 380 bytes.
- For an end tag, the parser may search all open elements. For an attribute, it searches all other attributes of the
  tag.
- The search for the main content visits every element once for each `div` or `article` that contains the element.

Deep nesting of other elements is harmless: pages with 300,000 nested elements of many kinds were extracted. The first
two costs are estimated from the tags in the page's source text. A page that is built to deceive this estimate, for
example with end tags inside attributes, is not detected.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from data.cleaning.markup import OPTIONAL_END, VOID_ELEMENTS, is_html
from data.cleaning.step import Outcome, check_at_least, is_above

_MARKUP = re.compile(r"<(?:/?[a-zA-Z]|!--|!doctype)|&(?:#[0-9]|#[xX][0-9a-fA-F]|[a-zA-Z])", re.IGNORECASE)
"""A tag, a comment or a character reference."""
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_QUOTED = re.compile(r"""\"[^\"]*\"|'[^']*'""")
_TAG_NAME = re.compile(r"/?[a-zA-Z]")
"""What follows a "<" that begins a tag. A comment and a "<" in the text are not tags."""
_FORMATTING_TAGS = ("b", "big", "code", "em", "font", "i", "s", "small", "strike", "strong", "tt", "u")
"""Formatting elements, which the parser creates again in the next block if their end tag is missing."""
_TAGS_WITHOUT_REQUIRED_END = (*VOID_ELEMENTS, *OPTIONAL_END, "html", "head", "body", "optgroup")
"""Elements that do not stay open until the end of the page, even if no end tag closes them."""
_MAX_SEARCH_STEPS = 500_000_000
"""Maximum product of the number of open elements and the number of tags. The product is an upper bound for the number
of elements that the parser visits in its searches for end tags. A visit takes about 3 ns."""
_MAX_ATTRIBUTES = 5_000
"""Maximum number of attributes of a tag."""
_LONG_TAG_CHARACTERS = 2 * _MAX_ATTRIBUTES
"""The attributes of shorter tags are not counted. An attribute and the space before it take at least two characters, so
a shorter tag cannot have too many attributes."""
_FEW_TAGS = 1_500
"""In a page with at most this many tags, the search for the main content takes at most a fraction of a second."""
_NAME_BYTES = 8
"""Number of bytes of a tag's name that are compared. No name in the lists above is longer."""


@dataclass(frozen=True, kw_only=True)
class ExtractHTML:
    """Extract the text of HTML pages and fragments, and keep every other text unchanged. The pages of a crawl and of
    sources of the format `html` are HTML. A text of the format `text` is not. Whether a text of another format is HTML
    is decided by its structure: it is not if it is prose, code, a mail or a README in Markdown in which only some tags
    occur. Null turns a maximum off."""

    main_content: bool = True
    """Leave out navigation, headers, footers and similar parts, which are recognized by heuristics. A list `<ul>` is
    taken for navigation if fewer than three elements below `<body>` contain it. So fragments, such as posts and
    recipes, can lose their lists; set this to false for them."""
    alt_texts: bool = False
    """Include the alternative texts of images."""
    links: bool = False
    """Include the targets of links."""
    list_bullets: bool = True
    """Write a bullet or a number before the items of lists."""
    title: bool = True
    """Write the page's title to the metadata column `title`."""
    max_bytes: int | None = 10_000_000
    """Drop pages with more bytes than this, without parsing them."""
    max_reopened: int | None = 4_000_000
    """Drop pages in which the number of tags, multiplied by the maximum number of open formatting tags, is larger than
    this. The product is an upper bound for the number of elements that the parser creates again. A million elements
    take about 0.3 s and 380 MB."""
    max_block_depth: int | None = 100
    """With `main_content`, drop pages of more than 1,500 tags in which `div` or `article` elements are nested deeper
    than this."""

    def check(self, field_path: str) -> None:
        for name in ("max_bytes", "max_reopened", "max_block_depth"):
            if self.__dict__[name] is not None:
                check_at_least(f"{field_path}.{name}", self.__dict__[name], 1)


def extract_html(texts: list[str], settings: ExtractHTML, content_types: Sequence[str] = ()) -> Outcome:
    """Extract the texts of pages. Drops pages without text and pages that are too expensive to parse.

    `content_types` has the `Document.content_type` of each text. Without it, the structure of each text decides whether
    the text is HTML. Counts the extracted pages, and the texts that were kept unchanged: `no_markup` if they contain
    nothing that only HTML has, and otherwise `plain_text`.
    """
    counts = {"extract_html/extracted": 0, "extract_html/no_markup": 0, "extract_html/plain_text": 0}
    extracted: list[str] = []
    reasons: list[str | None] = []
    metadata: list[dict[str, Any]] = []
    for html, content_type in zip(texts, content_types or [""] * len(texts), strict=True):
        text, reason, page_metadata = html, None, {}
        if not _MARKUP.search(html):
            counts["extract_html/no_markup"] += 1
        elif content_type not in _HTML_TYPES and (content_type or not is_html(html)):
            counts["extract_html/plain_text"] += 1
        elif (reason := _reason_not_to_parse(html, settings)) is None:
            text, reason, page_metadata = _extract(html, settings)
            counts["extract_html/extracted"] += reason is None
        extracted.append(text)
        reasons.append(reason)
        metadata.append(page_metadata)
    return Outcome(extracted, reasons, counts, metadata)


def _extract(html: str, settings: ExtractHTML) -> tuple[str, str | None, dict[str, Any]]:
    """Return the page's text, None and the metadata, or the unchanged page, the reason to drop it and no metadata."""
    tree = HTMLTree.parse(html)
    if (
        settings.main_content
        and settings.max_block_depth is not None
        and _is_too_deep(html, tree, settings.max_block_depth)
    ):
        return html, "extract_html/too_deep", {}
    text = extract_plain_text(
        tree,
        main_content=settings.main_content,
        alt_texts=settings.alt_texts,
        links=settings.links,
        list_bullets=settings.list_bullets,
    )
    if not text.strip():
        return html, "extract_html/no_text", {}
    title = " ".join((tree.title or "").split()) if settings.title else ""
    return text, None, {"title": title} if title else {}


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _reason_not_to_parse(html: str, settings: ExtractHTML) -> str | None:
    """Return the reason why parsing the page would be too expensive, or None if it is cheap enough."""
    if settings.max_bytes is not None and _num_bytes(html) > settings.max_bytes:
        return "extract_html/max_bytes"
    num_tags = html.count("<")
    if _max_attributes(html) > _MAX_ATTRIBUTES:
        return "extract_html/too_many_attributes"
    # There are at most as many open tags as tags. So if even the square of the number of tags is small, as in ordinary
    # pages, the open tags need not be counted.
    max_reopened = settings.max_reopened
    if num_tags * num_tags <= min(_MAX_SEARCH_STEPS, _MAX_SEARCH_STEPS if max_reopened is None else max_reopened):
        return None
    names, is_end_tag = _tag_names(html)
    max_open_formatting = sum(_max_open(is_end_tag[names == _name_as_number(name)]) for name in _FORMATTING_TAGS)
    if is_above(num_tags * max_open_formatting, max_reopened):
        return "extract_html/too_many_formatting_tags"
    if num_tags * num_tags > _MAX_SEARCH_STEPS:
        stays_open = (names != 0) & ~np.isin(names, [_name_as_number(name) for name in _TAGS_WITHOUT_REQUIRED_END])
        if num_tags * _max_open(is_end_tag[stays_open]) > _MAX_SEARCH_STEPS:
            return "extract_html/too_many_open_tags"
    return None


def _max_attributes(html: str) -> int:
    """Return the maximum number of attributes of a tag, or 0 if no tag is long enough to have too many.

    Counts what white space outside of quotes separates, or the characters "=" there if they are more. Names without a
    value that only "/" separates are not counted.
    """
    # The page is divided into blocks of half the length of a long tag. A long tag contains no further "<", so it covers
    # at least one complete block without "<".
    block = _LONG_TAG_CHARACTERS // 2
    if all(html.find("<", start, start + block) >= 0 for start in range(0, len(html) - block + 1, block)):
        return 0
    parts = (part for part in html.split("<")[1:] if len(part) >= _LONG_TAG_CHARACTERS and _TAG_NAME.match(part))
    heads = [_QUOTED.sub('""', part.partition(">")[0]) for part in parts]
    return max((max(len(head.split()) - 1, head.count("=")) for head in heads), default=0)


def _tag_names(html: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays with an element for each tag: the tag's name as a number, and whether it is an end tag.

    The number consists of the first bytes of the name in lower case, as in `_name_as_number`. It is 0 for a tag
    without a name, such as a comment.
    """
    text = np.frombuffer(html.encode("ascii", "replace") + bytes(_NAME_BYTES + 2), np.uint8)
    starts = np.flatnonzero(text == ord("<"))
    is_end_tag = text[starts + 1] == ord("/")
    name_starts = starts + 1 + is_end_tag
    names = np.zeros(len(starts), np.uint64)
    in_name = np.ones(len(starts), bool)
    for position in range(_NAME_BYTES):
        byte = text[name_starts + position] | 0x20  # Makes letters lower case and does not change digits.
        in_name &= (byte > 0x60) | (byte >= ord("0")) & (byte <= ord("9"))
        names |= np.where(in_name, byte, 0).astype(np.uint64) << np.uint64(8 * position)
    return names, is_end_tag


def _name_as_number(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(name.encode()[:_NAME_BYTES], "little"))


def _max_open(is_end_tag: np.ndarray) -> int:
    """Return the maximum number of tags that are open at the same time.

    `is_end_tag` has an element for each tag, in the order of the page. An end tag without an open tag has no effect.
    """
    depth = np.cumsum(np.where(is_end_tag, -1, 1))
    return int((depth - np.minimum.accumulate(np.minimum(depth, 0))).max(initial=0))


def _is_too_deep(html: str, tree: HTMLTree, max_depth: int) -> bool:
    """Return whether more than `max_depth` `div` elements, or `article` elements, are nested in each other.

    A page of at most `_FEW_TAGS` tags is never too deep. Only the parsed tree shows which elements the parser has
    closed. The depth is tested with a CSS selector because this is fast. A walk over the elements would take
    milliseconds for each element.
    """
    if tree.document is None or html.count("<") <= _FEW_TAGS:
        return False
    nested = ", ".join(" ".join([name] * (max_depth + 1)) for name in ("div", "article"))
    return tree.document.query_selector(nested) is not None
