"""What the step `extract_html` extracts from pages, which texts it does not change, and expensive pages."""

import re
import time

import pytest
from resiliparse.extract.html2text import extract_plain_text

from data.cleaning.extract_html import ExtractHTML, extract_html
from data.cleaning.step import Outcome


def extract(pages: list[str], settings: ExtractHTML) -> Outcome:
    """Extract the texts of documents that are HTML by their type."""
    return extract_html(pages, settings, ["text/html"] * len(pages))


PAGE = """<!DOCTYPE html><html><head><title> A  page
&amp; more </title><style>p {}</style><script>var a = "<p>no</p>";</script></head><body>
<nav><ul><li><a href="/home">Home</a></li></ul></nav>
<article><h1>Heading</h1><p>First <b>bold</b> words.</p><ul><li>item</li></ul>
<img src="a.png" alt="a cat"><p>See <a href="https://example.org/x">there</a>.</p></article>
<footer>Imprint</footer></body></html>"""


def test_the_main_text_is_extracted_and_the_title_is_kept() -> None:
    outcome = extract([PAGE], ExtractHTML())
    (text,) = outcome.texts
    assert text.split() == ["Heading", "First", "bold", "words.", "See", "there."]
    assert outcome.metadata == [{"title": "A page & more"}]
    assert outcome.reasons == [None]
    assert outcome.counts == {"extract_html/extracted": 1, "extract_html/no_markup": 0, "extract_html/plain_text": 0}


def test_each_setting_has_its_effect() -> None:
    whole = extract([PAGE], ExtractHTML(main_content=False)).texts[0]
    assert "Home" in whole and "Imprint" in whole
    assert "a cat" in extract([PAGE], ExtractHTML(alt_texts=True)).texts[0]
    assert "https://example.org/x" in extract([PAGE], ExtractHTML(links=True)).texts[0]
    assert "• item" in whole
    assert "•" not in extract([PAGE], ExtractHTML(main_content=False, list_bullets=False)).texts[0]
    assert extract([PAGE], ExtractHTML(title=False)).metadata == [{}]


def test_the_text_is_that_of_resiliparse() -> None:
    pages = [PAGE, "<p>a<p>b", "<div>" * 90 + "x", "<table><tr><td>1<td>2</table>", "a <br> b", "<p>a</p>" * 2000]
    texts = extract(pages, ExtractHTML(alt_texts=True)).texts
    assert texts == [extract_plain_text(page, main_content=True) for page in pages]


def test_a_text_without_tags_is_not_changed() -> None:
    texts = ["a < b\n\n  kept as it is", "i<3 you", "", "x <- y"]
    for content_types in ((), ["text/html"] * 4, ["text/plain"] * 4):
        outcome = extract_html(texts, ExtractHTML(), content_types)
        assert outcome.texts == texts
        assert outcome.reasons == [None] * 4
        assert set(outcome.counts.values()) == {0, 4} and outcome.counts["extract_html/no_markup"] == 4


def test_a_page_without_tags_is_a_page_by_its_type() -> None:
    assert extract(["caf&eacute;  &amp; bar"], ExtractHTML()).texts == ["café & bar"]


PLAIN_TEXTS = {
    "prose": "A loop ends if a<b, and it goes on if c>d.",
    "C++": "#include <vector>\n#include <map>\n\nstd::map<int, std::vector<p>> m;",
    "generics": "List<Address> a = new ArrayList<Address>(); Optional<Body> b; Vec<Link> l; Map<A,B<S>> m;",
    "one generic": "vector<p> x",
    "a mail": "On Monday, Ann <ann@host.org> wrote:\n> Use <b>bold</b> here.\n\n<https://host.org/a>\n",
    "a log": "2024-01-01 ERROR <main> failed: a<b && c>d\n2024-01-01 INFO <b> done",
    "a chat": "<alice> hi\n<b> hello\n<i> bye",
    "a manual of HTML": "The <p> tag begins a paragraph and <br> breaks a line. Use <ul> for lists.",
    "an example in prose": "To print bold, write <b>text</b>, or <i>text</i>.",
    "keys": "Press <kbd>Ctrl</kbd>+<kbd>C</kbd> to copy.",
    "usage": "usage: cp <source> <dir> <output>",
    "XML": "<config>\n  <table name='x'/>\n  <item>1</item>\n</config>",
    "a feed": "<?xml version='1.0'?><feed><title>x</title><entry><id>1</id><link/></entry></feed>",
    "Markdown": '<p align="center"><img src="a.png"></p>\n\n# Name\n\nText\n<br>\n\n```\n<p>a</p>\n```\n<p>end</p>',
    "a patch": "diff --git a/x.html b/x.html\n@@ -1,2 +1,2 @@\n-<p>old</p>\n+<p>new</p>\n",
    "a page in JSON": '{"desc": "<p>One</p><p>Two</p>"}',
    "a page in JavaScript": 'var index = {"info":[["a","<p>One <a href=\\"x\\">two</a>\\n<p>Three"]]};',
    "a table of Markdown": "| a | b |\n|---|---|\n| one<br>two | three<br>four |",
    "a template": "def page(name):\n    return f'<p>{name}</p>'\n\nprint(page('x'))\nprint(1)\n",
    "a page that is shown": "```html\n<!DOCTYPE html><html><body><p>x</p></body></html>\n```\n",
    "a heart": "<3 <3 <3",
    "a marked listing": "<code>\nfor x in a:\n    print(x)\n</code>",
    "a marked answer": "<q>First line.\nSecond line.</q>\n\n<b>42</b>",
    "a prompt": "<s>[INST] Why?\n\nHow? [/INST] So.</s>",
    "Chinese prose": "如果 a<b，那么用 <p> 标签。\n下一行在这里。",
}


@pytest.mark.parametrize("text", PLAIN_TEXTS.values(), ids=PLAIN_TEXTS.keys())
def test_a_text_that_is_no_page_is_not_changed(text: str) -> None:
    outcome = extract_html([text], ExtractHTML())
    assert (outcome.texts, outcome.reasons) == ([text], [None])
    assert outcome.counts["extract_html/extracted"] == 0


@pytest.mark.parametrize(
    "page",
    [
        "<p>Hello <b>world</b></p>",
        "<div><p>Hello</p><p>world</p></div>",
        "\ufeff<?xml version='1.0'?>\n<!-- a --><!DOCTYPE html PUBLIC '-//W3C'><html xmlns='x'><p>Hello<p>world",
        "<!DOCTYPE html><html><body><h1># Hello</h1>\n```\nworld\n```</body></html>",
        "<body><p>Hello world</p><script>if (a<b) {}</script>",
        'Hello.<p>See the <a href="http://x" rel="nofollow">world</a>',
        "Hello<br>big<br/>world",
        "Hello.<br />\n<br />\nMore.<br />\nworld",
        "<h1>Hello</h1>\nSome text\nand more\n<p>para</p>\n<ul><li>a<li>world</ul>",
        "<p>Hello if a < b then</p><p>world</p>",
        "<table><tr><td>Hello<td>world</table>",
        "<p>你好</p><p>Hello world</p>",
        "<b>Hello</b> <i>world</i>",
    ],
)
def test_a_fragment_is_extracted_whatever_its_format(page: str) -> None:
    outcome = extract_html([page], ExtractHTML(main_content=False))
    assert outcome.counts["extract_html/extracted"] == 1
    (text,) = outcome.texts
    assert "Hello" in text and "world" in text
    assert not re.search("</|<p|<br|<li|<h1", text)


def test_plain_text_by_type_is_never_parsed_and_a_page_by_type_always_is() -> None:
    fragment, prose = "<p>Hello</p><p>world</p>", "The <br> tag breaks a line."
    outcome = extract_html([fragment, prose], ExtractHTML(), ["text/plain", "application/xhtml+xml"])
    assert outcome.texts[0] == fragment and "<br>" not in outcome.texts[1]
    assert outcome.counts == {"extract_html/extracted": 1, "extract_html/no_markup": 0, "extract_html/plain_text": 1}


def test_the_test_of_the_structure_takes_linear_time() -> None:
    texts = [
        "<p" + " a" * 200_000,
        "<!--" * 100_000,
        "<script>" * 50_000,
        "<p a='" * 50_000,
        "<b>" * 100_000 + "x",
        "<" * 200_000,
    ]
    start = time.process_time()
    assert extract_html(texts, ExtractHTML()).counts["extract_html/extracted"] == 0
    assert time.process_time() - start < 4


def test_main_content_leaves_out_lists_that_few_elements_contain() -> None:
    lists = "<p>Take:</p><ul><li>two eggs</li></ul><p>Mix.</p>"
    pages = ["<div>" * depth + lists + "</div>" * depth for depth in range(5)]
    found = ["eggs" in text for text in extract(pages, ExtractHTML()).texts]
    assert found == [False, False, False, True, True]
    assert all("eggs" in text for text in extract(pages, ExtractHTML(main_content=False)).texts)


def test_a_page_without_text_is_dropped() -> None:
    pages = ["<html><script>a()</script></html>", "<p> </p>", "<!-- only a comment -->", "<!--" * 40_000]
    outcome = extract(pages, ExtractHTML())
    assert outcome.texts == pages
    assert outcome.reasons == ["extract_html/no_text"] * 4
    assert outcome.counts["extract_html/extracted"] == 0


def test_the_size_is_counted_in_bytes() -> None:
    page = "<p>éé</p>"  # 9 characters, 11 bytes
    assert extract([page], ExtractHTML(max_bytes=11)).reasons == [None]
    assert extract([page], ExtractHTML(max_bytes=10)).reasons == ["extract_html/max_bytes"]
    assert extract([page], ExtractHTML(max_bytes=8)).reasons == ["extract_html/max_bytes"]


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("<b>" * 100_000 + "x", "too_many_formatting_tags"),
        ("<P><FONT size=1>" * 100_000 + "x", "too_many_formatting_tags"),
        (
            "<p>" + "".join(f"<b id={i}>" for i in range(500)) + "x" + "<p>x</p>" * 20_000,
            "too_many_formatting_tags",
        ),
        ("<b>" * 4000 + "<div>" * 4000 + "</b>" * 4000, "too_many_formatting_tags"),
        ("<a href=x>x<div>" * 100_000, "too_many_open_tags"),
        ("<div>" * 100_000 + "x" + "</div>" * 100_000, "too_many_open_tags"),
        ("<span>" * 40_000 + "</x>" * 40_000, "too_many_open_tags"),
        ("<div>" * 20_000 + "x", "too_deep"),
        ("<article>" * 101 + "<br>" * 1400 + "x", "too_deep"),
        # No end tag closes a `div` here, because an open table cell prevents it.
        ("<div><table><td></div>" * 1900 + "x", "too_deep"),
        ("<p " + " ".join(f"a{i}" for i in range(40_000)) + ">x", "too_many_attributes"),
        ("<p " + "".join(f'a{i}=""' for i in range(40_000)) + ">x", "too_many_attributes"),
    ],
)
def test_a_page_that_is_expensive_to_parse_is_dropped_quickly(page: str, reason: str) -> None:
    start = time.process_time()
    outcome = extract([page], ExtractHTML())
    assert outcome.reasons == [f"extract_html/{reason}"]
    assert outcome.texts == [page]
    assert time.process_time() - start < 2  # Parsing one of these pages takes from ten seconds to hours.


def test_large_ordinary_pages_are_kept() -> None:
    pages = {
        "links": "<p><a href='/x'>link</a> and <b>bold</b> words</p>" * 20_000,
        "old": "<p>text<br>" * 20_000,
        "sloppy": "<font size=2>" * 20 + "<p>text</p>" * 10_000,
        "image": f"<p>text</p><img src='data:image/png;base64,{'A' * 1_000_000}'>",
        "script": f"<p>text</p><script>{'var a = 1; ' * 100_000}</script>",
        "nested": "<div>" * 100 + "text<br>" * 2000,
        "deep but small": "<div>" * 1500 + "text",
    }
    outcome = extract(list(pages.values()), ExtractHTML())
    assert dict(zip(pages, outcome.reasons, strict=True)) == dict.fromkeys(pages, None)


def test_words_that_are_not_in_a_tag_are_not_counted_as_attributes() -> None:
    words = "word " * 10_000
    pages = [f"{words}<p>text</p>", f"<p>text</p><!-- {words}--><p>text</p>", f"<p>1 < 2 {words}</p>"]
    urls = " ".join(f"https://example.org/?a={n}&b={n}&c={n}" for n in range(3_000))
    pages.append(f"<p>text</p><div data-props='{urls}'>more text</div>")
    assert extract(pages, ExtractHTML(main_content=False)).reasons == [None] * 4


def test_without_a_maximum_of_reopened_elements_pages_with_many_open_tags_are_still_dropped() -> None:
    page = "<b>" * 30_000 + "x"
    assert extract([page], ExtractHTML(max_reopened=None)).reasons == ["extract_html/too_many_open_tags"]


def test_deeply_nested_pages_are_kept() -> None:
    for name in ("span", "ul", "blockquote", "svg"):
        page = f"<{name}>" * 20_000 + "x"
        settings = ExtractHTML(main_content=name == "span")
        assert extract([page], settings).reasons in ([None], ["extract_html/no_text"])


def test_the_error_names_the_wrong_setting() -> None:
    ExtractHTML(max_bytes=None, max_reopened=None, max_block_depth=None).check("steps")
    with pytest.raises(ValueError, match=re.escape("steps.max_block_depth: 0 must be at least 1")):
        ExtractHTML(max_block_depth=0).check("steps")
