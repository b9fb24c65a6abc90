"""HTML to plain text by resiliparse (Bevendorff et al. 2018), guarded against pages that would stall it.

Some pages cost far more than their size, and are counted before they can:

- Formatting tags left open (`<b>`, `<font>`) are made anew in every block that follows, as the HTML standard demands: a
  page of 20 kB can become a million elements of 380 bytes.
- An end tag may be looked for in all elements that are open, an attribute in all others of its tag.
- The search for the main content looks through everything inside a `div` or `article` once for each around it.

Depth alone is harmless: 300,000 nested elements of many kinds were parsed and extracted. The first two are counted by
the tags as they are written, so a page made to deceive the count (end tags inside of attributes) passes it.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.html import HTMLTree

from data.cleaning.step import Outcome, check_least

_TAG = re.compile(r"<(?:/?[a-zA-Z]|!--|!doctype)", re.IGNORECASE)
_REOPENED = ("b", "big", "code", "em", "font", "i", "s", "small", "strike", "strong", "tt", "u")
# Those that never have an end tag, or whose end tag may be left out.
_NOT_KEPT_OPEN = (
    *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"),
    *("html", "head", "body", "p", "li", "dt", "dd", "option", "optgroup"),
    *("colgroup", "thead", "tbody", "tfoot", "tr", "td", "th"),
)
_MOST_WALKED = 500_000_000
"""Bound on open tags times tags: the steps that the parser may have to take (about 3 ns each)."""
_MOST_ATTRIBUTES = 5_000
_LONG_TAG = 20_000
"""Characters; the attributes of shorter tags are not counted."""
_FEW_TAGS = 1_500
"""In so small a page the search for the main content takes a fraction of a second, however deep it is."""
_NAME_BYTES = 8
"""How much of a tag's name is compared."""


@dataclass(frozen=True, kw_only=True)
class ExtractHTML:
    """Extract the text of a page; a text without any tag is kept as it is."""

    main_content: bool = True
    """Leave out navigation, headers, footers and the like (by rules of thumb)."""
    alt_texts: bool = False
    """Include the alternative texts of images."""
    links: bool = False
    """Include the targets of links."""
    list_bullets: bool = True
    """Put a bullet or a number before the items of lists."""
    title: bool = True
    """Keep the page's title in the metadata, under `title`."""
    max_bytes: int | None = 10_000_000
    """A larger page is dropped without being parsed."""
    max_reopened: int | None = 4_000_000
    """Bound on formatting tags open at once times tags in the page: how many elements the parser may have to make anew
    (a million takes about 0.3 s and 380 MB). Tags are counted as they are written."""
    max_block_depth: int | None = 100
    """Bound on the depth of nested `div`, or `article`, for `main_content`, in pages of more than 1,500 tags."""

    def check(self, where: str) -> None:
        for name in ("max_bytes", "max_reopened", "max_block_depth"):
            if self.__dict__[name] is not None:
                check_least(f"{where}.{name}", self.__dict__[name], 1)


def extract_html(texts: list[str], rule: ExtractHTML) -> Outcome:
    """The pages' texts. A page without text, or one that would stall the parser, is dropped as it was.

    Counts pages extracted and texts without a tag, which are left alone.
    """
    counts = {"extract_html/extracted": 0, "extract_html/no_markup": 0}
    extracted: list[str] = []
    reasons: list[str | None] = []
    metadata: list[dict[str, Any]] = []
    for html in texts:
        text, reason, page_metadata = html, None, {}
        if not _TAG.search(html):
            counts["extract_html/no_markup"] += 1
        elif (reason := _danger(html, rule)) is None:
            text, reason, page_metadata = _extract(html, rule)
            counts["extract_html/extracted"] += reason is None
        extracted.append(text)
        reasons.append(reason)
        metadata.append(page_metadata)
    return Outcome(extracted, reasons, counts, metadata)


def _extract(html: str, rule: ExtractHTML) -> tuple[str, str | None, dict[str, Any]]:
    """(text, None, metadata), or the page and the reason why it has none."""
    tree = HTMLTree.parse(html)
    if rule.main_content and rule.max_block_depth is not None and _too_deep(html, tree, rule.max_block_depth):
        return html, "extract_html/too_deep", {}
    text = extract_plain_text(
        tree,
        main_content=rule.main_content,
        alt_texts=rule.alt_texts,
        links=rule.links,
        list_bullets=rule.list_bullets,
    )
    if not text.strip():
        return html, "extract_html/no_text", {}
    title = " ".join((tree.title or "").split()) if rule.title else ""
    return text, None, {"title": title} if title else {}


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _danger(html: str, rule: ExtractHTML) -> str | None:
    """The reason why a page must not be parsed, or None."""
    if rule.max_bytes is not None and _num_bytes(html) > rule.max_bytes:
        return "extract_html/max_bytes"
    tags = html.count("<")
    if _most_attributes(html) > _MOST_ATTRIBUTES:
        return "extract_html/too_many_attributes"
    # No more can be open than there are tags, which settles ordinary pages.
    if rule.max_reopened is None or tags * tags <= rule.max_reopened:
        return None
    names, ends = _tag_names(html)
    open_formatting = sum(_most_open(ends[names == _number(name)]) for name in _REOPENED)
    if tags * open_formatting > rule.max_reopened:
        return "extract_html/too_many_formatting_tags"
    if tags * tags > _MOST_WALKED:
        kept_open = (names != 0) & ~np.isin(names, [_number(name) for name in _NOT_KEPT_OPEN])
        if tags * _most_open(ends[kept_open]) > _MOST_WALKED:
            return "extract_html/too_many_open_tags"
    return None


def _most_attributes(html: str) -> int:
    """The most that a long tag has; 0 where no tag is long."""
    half = _LONG_TAG // 2  # a long tag has half its length, at a multiple of that, without a start of tag
    if all(html.find("<", start, start + half) >= 0 for start in range(0, len(html) - half + 1, half)):
        return 0
    tags = (part.partition(">")[0] for part in html.split("<") if len(part) >= _LONG_TAG)
    return max((len(tag.split()) for tag in tags), default=0)


def _tag_names(html: str) -> tuple[np.ndarray, np.ndarray]:
    """(the first bytes of each tag's name in lower case, as one number and 0 for none; whether it is an end tag)."""
    text = np.frombuffer(html.encode("ascii", "replace") + bytes(_NAME_BYTES + 2), np.uint8)
    starts = np.flatnonzero(text == ord("<"))
    ends = text[starts + 1] == ord("/")
    first = starts + 1 + ends
    names = np.zeros(len(starts), np.uint64)
    inside = np.ones(len(starts), bool)
    for position in range(_NAME_BYTES):
        byte = text[first + position] | 0x20  # lower case; digits stay digits
        inside &= (byte > 0x60) | (byte >= ord("0")) & (byte <= ord("9"))
        names |= np.where(inside, byte, 0).astype(np.uint64) << np.uint64(8 * position)
    return names, ends


def _number(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(name.encode()[:_NAME_BYTES], "little"))


def _most_open(ends: np.ndarray) -> int:
    """The most tags open at once, of tags in order of which `ends` tells the end tags; one too many closes nothing."""
    level = np.cumsum(np.where(ends, -1, 1))
    return int((level - np.minimum.accumulate(np.minimum(level, 0))).max(initial=0))


def _too_deep(html: str, tree: HTMLTree, most: int) -> bool:
    """Whether more than `most` `div`, or `article`, stand inside each other.

    The tree is asked, for the page as written does not tell what a parser closes; a selector is the one way to ask that
    costs next to nothing (the elements of a list take milliseconds each).
    """
    if tree.document is None or html.count("<") <= _FEW_TAGS:
        return False
    nested = ", ".join(" ".join([name] * (most + 1)) for name in ("div", "article"))
    return tree.document.query_selector(nested) is not None
