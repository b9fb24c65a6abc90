"""HTML and SVG as small pure functions: a page that needs nothing from outside itself.

Text is escaped by construction: whatever is not `Html` already becomes harmless text when it enters an element.
"""

import html
import math
from collections.abc import Iterable, Sequence

from model.metrics import Interval


class Html(str):
    """Markup that may stand in a page as it is."""


Content = Html | str | int | float | None | Iterable["Content"]


def element(name: str, *content: Content, **attributes: str | float) -> Html:
    """`<name …>content</name>`; attribute names lose a closing underscore and turn the others into dashes."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{written}>{_inner(content)}</{name}>")


def _inner(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return html.escape(str(content))
    return "".join(_inner(item) for item in content)


def join(*content: Content) -> Html:
    """Pieces one after another."""
    return Html(_inner(content))


def page(title: str, *content: Content, style: str) -> str:
    """A whole document with its style inside; its policy forbids the browser every request."""
    head = join(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{join(content)}</body></html>\n'


def section(name: str, title: str, lead: Content, *content: Content) -> Html:
    """A part of the page with an anchor, a heading and a sentence that says what there is to see."""
    return element("section", element("h2", title), element("p", lead, class_="lead"), content, id=name)


def table(header: Sequence[Content], rows: Iterable[Sequence[Content]], *, numeric: Sequence[int] = ()) -> Html:
    """A table that scrolls sideways on a narrow screen; `numeric` columns are set to the right."""

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
    """A chart under its title."""
    caption = element("figcaption", title, element("span", note, class_="note") if note else None)
    return element("figure", caption, drawing)


def grid(*content: Content) -> Html:
    """Figures side by side where the screen is wide enough."""
    return element("div", content, class_="grid")


# Numbers.


def number(value: float) -> str:
    """A number with as many digits as a reader needs: 12,345 or 3.14 or 0.00042."""
    if abs(value) >= 1000 and math.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def data_size(num_bytes: float) -> str:
    """Bytes in the unit that suits them: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds as 8.2 s, 3 min 05 s or 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def interval(estimate: Interval, *, signed: bool = False) -> Html:
    """An estimate with its interval beside it."""
    sign = "+" if signed else ""

    def shown(value: float) -> str:
        return f"{value:{sign}.1f}" if abs(estimate.value) >= 10 else f"{value:{sign}.3f}"

    bounds = f"{shown(estimate.low)} … {shown(estimate.high)}"
    return join(element("b", shown(estimate.value)), " ", element("span", bounds, class_="bounds"))
