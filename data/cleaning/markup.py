"""Whether a text is HTML, or only shows tags or contains "<".

Prose with `if a<b`, C++ with `#include <vector>` or `List<String>`, a mail with `<name@host>` and a log contain "<" but
no tags. A manual of HTML and a README in Markdown contain tags, but they are no pages: parsed as HTML, they would lose
their examples and their line breaks. So `is_html` decides by the structure of a text, and a text is left alone if the
structure does not say that it is HTML.
"""

import re
from collections.abc import Sequence

_BLOCK_ELEMENTS = re.compile(
    "address|article|aside|blockquote|body|caption|center|dd|details|dialog|dir|div|dl|dt|fieldset|"
    "figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|head|header|hgroup|html|legend|li|main|"
    "menu|nav|ol|p|pre|section|summary|table|tbody|td|tfoot|th|thead|title|tr|ul",
    re.IGNORECASE,
)
VOID_ELEMENTS = (
    *("area", "base", "br", "col", "embed", "hr", "img"),
    *("input", "link", "meta", "param", "source", "track", "wbr"),
)
"""Elements without an end tag."""
OPTIONAL_END = ("p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "colgroup", "option")
"""Elements whose end tag may be left out."""
_NEEDS_NO_END = re.compile("|".join((*VOID_ELEMENTS, *OPTIONAL_END)), re.IGNORECASE)
"""Any other start tag must have an end tag in the text, so `List<Address>` is not a tag."""
_INLINE_ELEMENTS = re.compile(
    "a|abbr|acronym|audio|b|basefont|bdi|bdo|big|button|canvas|cite|code|colgroup|data|datalist|"
    "del|dfn|em|font|frame|frameset|i|iframe|ins|kbd|label|map|mark|marquee|meter|nobr|noframes|"
    "noscript|object|optgroup|option|output|picture|progress|q|rb|rp|rt|ruby|s|samp|script|select|"
    "slot|small|span|strike|strong|style|sub|sup|svg|template|textarea|time|tt|u|var|video",
    re.IGNORECASE,
)
_NAMES = "|".join((_BLOCK_ELEMENTS.pattern, *VOID_ELEMENTS, _INLINE_ELEMENTS.pattern))
_ATTRIBUTES = r"""(?:[\s/]+[a-z@:_][\w:.@-]*(?:\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s"'<>]+))?)*+"""
_TAG = re.compile(rf"<(/?)({_NAMES})(?![\w:-]){_ATTRIBUTES}[\s/]*>", re.IGNORECASE)
"""A complete tag of an element of HTML."""
_PROLOGUE = re.compile(r"(?:[\s\ufeff]|<\?xml[^<>]*>|<!--(?:[^-]|-(?!->))*+-->)*+")
_PAGE_START = re.compile(r"<(?:!doctype\s+html|html|head|body)\b[^<>]*>", re.IGNORECASE)
_NOT_PROSE = re.compile(r"<(script|style|pre|textarea)\b|<!--", re.IGNORECASE)
_OTHER_SYNTAX = re.compile(
    r"^(?:#{1,6} \S|```|~~~|\|[ :-]|@@ .* @@|diff --git )|\]\((?:https?:|#|\.{0,2}/)", re.MULTILINE
)
"""A heading, a fence, a table or a link of Markdown, or a line of a patch."""
_CODE_STARTS = ("{", "[", "/*", "//", "#!")
"""Starts of JSON and of source code, in which a page may be a string or a comment."""
_STRING_ESCAPE = '\\"'
"""A quotation mark in a string of source code, in which markup may be written."""
_BEFORE_MENTION = " \t([{\"'`“‘«„「"
_AFTER_MENTION = " \t.,;:!?)]}\"'`”’»“」"


def has_tag(text: str) -> bool:
    """Return whether the text contains a tag of HTML, whatever its purpose."""
    return _TAG.search(text) is not None


def is_html(text: str) -> bool:
    """Return whether the text is a page or a fragment of HTML.

    A page begins with its doctype or one of its outermost tags. A fragment contains nearly no "<" besides its tags,
    mentions no tag (` <br> `, "`<b>`"), and is not in another syntax such as Markdown, a patch or JSON. It either
    begins and ends with a tag, or it has tags that break lines (`<br>`, `<p>`), at least twice as many as there are
    line breaks without a tag. So a text that only has tags such as `<b>` and `<kbd>` is no fragment, unless it is a
    single line that begins and ends with one: several lines would become one.
    """
    if "<" not in text or ">" not in text:
        return False
    start = _PROLOGUE.match(text)
    assert start is not None, "the pattern matches every text"
    if _PAGE_START.match(text, start.end()):
        return _TAG.search(text, start.end() + 2) is not None
    content = _prose(text).strip()
    if _OTHER_SYNTAX.search(content) or content.startswith(_CODE_STARTS):
        return False
    tags = _paired_tags(content)
    num_other = content.count("<") - len(tags)
    begins_and_ends = len(tags) > 1 and tags[0].start() == 0 and tags[-1].end() == len(content)
    num_mentions = sum(_is_mention(content, tag) for tag in tags)
    line_breaks = [tag for tag in tags if _BLOCK_ELEMENTS.fullmatch(tag[2]) or tag[2].lower() in ("br", "hr")]
    if begins_and_ends and (line_breaks or "\n" not in content):
        return num_other <= max(1, len(tags) // 10) and num_mentions <= len(tags) // 3
    if not tags or num_other > len(tags) // 10 or num_mentions > len(tags) // 10:
        return False
    if not line_breaks or _STRING_ESCAPE in content:
        return False
    first = line_breaks[0]
    is_type_parameter = first[2].lower() == "p" and content[first.start() - 1 : first.start()].isalnum()  # vector<p>
    if len(line_breaks) == 1 and is_type_parameter:
        return False
    return len(line_breaks) >= 2 * _num_bare_line_breaks(content)


def _prose(text: str) -> str:
    """Return the text without comments, scripts, styles and listings, which may contain any characters."""
    kept: list[str] = []
    position = 0
    while begin := _NOT_PROSE.search(text, position):
        kept.append(text[position : begin.start()])
        end = re.compile(rf"</{begin[1]}\s*>" if begin[1] else "-->", re.IGNORECASE).search(text, begin.end())
        if end is None:
            return "".join(kept)
        position = end.end()
    return "".join([*kept, text[position:]])


def _paired_tags(text: str) -> Sequence[re.Match[str]]:
    """Return the tags of a text, without the start tags whose required end tag is missing from the text."""
    tags = list(_TAG.finditer(text))
    ended = {tag[2].lower() for tag in tags if tag[1]}
    return [tag for tag in tags if tag[2].lower() in ended or _NEEDS_NO_END.fullmatch(tag[2])]


def _is_mention(text: str, tag: re.Match[str]) -> bool:
    """Return whether a tag stands in a line like a word, so that the text probably speaks about the tag."""
    before, after = text[max(0, tag.start() - 1) : tag.start()], text[tag.end() : tag.end() + 1]
    return before != "" and before in _BEFORE_MENTION and after != "" and after in _AFTER_MENTION


def _num_bare_line_breaks(text: str) -> int:
    """Return how many lines neither begin with a tag nor follow a line that ends with one. Blank lines are left out."""
    lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
    return sum(
        not (before.endswith(">") or line.startswith("<")) for before, line in zip(lines, lines[1:], strict=False)
    )
