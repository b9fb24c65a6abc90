"""Functions that return HTML and SVG elements, and functions that format numbers.

Text is always escaped: content of an element that is not of type `Html` is shown as text, never read as markup. So a
document or a completion cannot change the page.
"""

import html
import math
from collections.abc import Iterable, Sequence

from model.metrics import Interval


class Html(str):
    """Markup that is inserted into a page without escaping."""


Content = Html | str | int | float | None | Iterable["Content"]
"""What an element can contain: markup, text that will be escaped, numbers, None for nothing, or several of these."""


def element(name: str, *content: Content, **attributes: str | float) -> Html:
    """Return the element `<name attributes>content</name>`.

    In names of attributes, an underscore at the end is removed (for Python keywords such as `class_`), and the other
    underscores become dashes.
    """
    attribute_text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{attribute_text}>{_to_html(content)}</{name}>")


def _to_html(content: Content) -> str:
    """Return the content as markup. Text is escaped."""
    if content is None:
        return ""
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return html.escape(str(content))
    return "".join(_to_html(item) for item in content)


def join(*content: Content) -> Html:
    """Return several pieces of content as one piece."""
    return Html(_to_html(content))


def page(title: str, *content: Content, style: str) -> str:
    """Return a complete HTML document. `style` is the text of its style sheet.

    The document forbids the browser to load anything from elsewhere.
    """
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{join(content)}</body></html>\n'


def section(name: str, title: str, introduction: Content, *content: Content) -> Html:
    """Return a section of the page with a heading, an introduction, and content. A link to the section is `#name`."""
    return element("section", element("h2", title), element("p", introduction, class_="lead"), content, id=name)


def table(header: Sequence[Content], rows: Iterable[Sequence[Content]], *, numeric: Sequence[int] = ()) -> Html:
    """Return a table, which scrolls sideways on a narrow screen.

    `numeric` are the indices of the columns that are aligned to the right.
    """

    def cells(name: str, row: Sequence[Content]) -> Html:
        return join(
            element(name, cell, **({"class_": "number"} if column in numeric else {}))
            for column, cell in enumerate(row)
        )

    head = element("thead", element("tr", cells("th", header)))
    body = element("tbody", (element("tr", cells("td", row)) for row in rows))
    kind = "narrow" if len(header) <= 2 else "wide"
    return element("div", element("table", head, body, class_=kind), class_="scroll")


def figure(title: str, drawing: Html, note: Content = None) -> Html:
    """Return a chart with a title and an optional note above the chart."""
    caption = element("figcaption", title, element("span", note, class_="note") if note else None)
    return element("figure", caption, drawing)


def grid(*content: Content) -> Html:
    """Return content in several columns, or in one column on a narrow screen."""
    return element("div", content, class_="grid")


# Formatting numbers.


def format_number(value: float) -> str:
    """Return a number with three significant digits, or without decimals from 1000 on: 12,345 or 3.14 or 0.00042."""
    if abs(value) >= 999.5 and math.isfinite(value):  # `.3g` would show 999.5 and more as 1e+03
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes with a unit, such as 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:  # `.3g` would show 999.5 and more as 1e+03
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def format_duration(seconds: float) -> str:
    """Return a duration such as 8.2 s, 3 min 05 s or 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, remaining_seconds = divmod(round(seconds), 60)
    return f"{minutes} min {remaining_seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_interval(estimate: Interval, *, signed: bool = False) -> Html:
    """Return an estimate followed by the ends of its interval. With `signed`, positive numbers have a plus sign."""
    sign = "+" if signed else ""

    def format_value(value: float) -> str:
        return f"{value:{sign}.1f}" if abs(estimate.value) >= 10 else f"{value:{sign}.3f}"

    bounds = f"{format_value(estimate.low)} … {format_value(estimate.high)}"
    return join(element("b", format_value(estimate.value)), " ", element("span", bounds, class_="bounds"))
