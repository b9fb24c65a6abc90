"""Line and interval charts as SVG, drawn by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.report.page import Html, element, join, number
from model.metrics import Interval

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 46, 10, 10, 34


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    """Number of the colour: 0 to 4."""
    faint: bool = False
    """Drawn lightly and left out of the legend: the raw values behind a mean."""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count` of them."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.99)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(points: Sequence[tuple[float, float]], half_window: int) -> list[tuple[float, float]]:
    """The mean of each point with up to `half_window` neighbours on either side, fewer near the ends."""
    means = []
    for index, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, index - half_window) : index + half_window + 1]]
        means.append((x, sum(near) / len(near)))
    return means


def line_chart(lines: Sequence[Line], *, x_label: str, height: int = 220) -> Html:
    """Curves over a common x, with round ticks and a legend. Points that are not finite are left out."""
    lines = [
        Line(
            label=line.label,
            points=[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)],
            colour=line.colour,
            faint=line.faint,
        )
        for line in lines
    ]
    points = [point for line in lines for point in line.points]
    if not points:
        return element("p", "Nothing was logged.", class_="note")
    left, right = _padded(min(x for x, _ in points), max(x for x, _ in points), 0.0)
    low, high = _padded(min(y for _, y in points), max(y for _, y in points), 0.06)

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (high - y) / (high - low) * (height - _TOP - _BOTTOM)

    axes = [_horizontal_tick(tick, at(left, tick)[1]) for tick in ticks(low, high)]
    axes += [
        element(
            "text",
            number(tick),
            x=_fixed(at(tick, low)[0]),
            y=height - _BOTTOM + 15,
            class_="tick",
            text_anchor="middle",
        )
        for tick in ticks(left, right, 5)
    ]
    axes.append(element("text", x_label, x=_WIDTH - _RIGHT, y=height - 3, class_="tick", text_anchor="end"))
    curves = [_curve(line, [at(x, y) for x, y in line.points]) for line in lines]
    drawing = element("svg", axes, curves, viewBox=f"0 0 {_WIDTH} {height}", role="img")
    return join(drawing, _legend([line for line in lines if not line.faint]))


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    if high == low:
        return low - 0.5, high + 0.5
    return low - share * (high - low), high + share * (high - low)


def _horizontal_tick(value: float, y: float) -> Html:
    line = element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_fixed(y), y2=_fixed(y), class_="rule")
    label = element("text", number(value), x=_LEFT - 6, y=_fixed(y + 3.5), class_="tick", text_anchor="end")
    return join(line, label)


def _curve(line: Line, places: Sequence[tuple[float, float]]) -> Html:
    kind = f"curve c{line.colour}" + (" faint" if line.faint else "")
    if len(places) == 1:
        ((x, y),) = places
        return element("circle", cx=_fixed(x), cy=_fixed(y), r=3, class_=f"dot c{line.colour}")
    path = "M" + " L".join(f"{_fixed(x)} {_fixed(y)}" for x, y in places)
    return element("path", element("title", line.label), d=path, class_=kind)


def _legend(lines: Sequence[Line]) -> Html | None:
    if len(lines) < 2:
        return None
    return element(
        "div",
        (element("span", element("i", class_=f"c{line.colour}"), line.label) for line in lines),
        class_="legend",
    )


def interval_chart(
    rows: Sequence[tuple[str, Interval]],
    *,
    reference: float | None = None,
    bounds: tuple[float, float] | None = None,
    mark: str = "decided",
) -> Html:
    """A dot with whiskers for each estimate, over a common axis.

    `reference` is a line to compare with: a dot whose interval includes it is drawn open, for it decides nothing, and
    the others have the class `mark`. `bounds` are the ends of the axis, which otherwise fit the intervals.
    """
    label_width, row_height = 128, 26
    height = row_height * len(rows) + 26
    edges = [edge for _, row in rows for edge in (row.low, row.high)] + ([] if reference is None else [reference])
    low, high = bounds or _padded(min(edges), max(edges), 0.08)

    def across(value: float) -> float:
        return label_width + (value - low) / (high - low) * (_WIDTH - label_width - 16)

    drawn = [
        join(
            element("line", x1=_fixed(across(tick)), x2=_fixed(across(tick)), y1=4, y2=height - 22, class_="rule"),
            element(
                "text",
                number(tick),
                x=_fixed(across(tick)),
                y=height - 8,
                class_="tick",
                text_anchor="middle",
            ),
        )
        for tick in ticks(low, high)
    ]
    if reference is not None:
        at = _fixed(across(reference))
        drawn.append(element("line", x1=at, x2=at, y1=2, y2=height - 22, class_="reference"))
    for index, (label, row) in enumerate(rows):
        y = row_height * index + 17
        said = f"{label}: {row.value:.4g}, {row.level:.0%} interval {row.low:.4g} to {row.high:.4g}"
        is_open = reference is not None and not row.excludes(reference)
        kind = "dot open" if is_open else f"dot {mark}"
        drawn.append(
            element(
                "g",
                element("title", said),
                element("text", label, x=label_width - 12, y=y + 4, class_="label", text_anchor="end"),
                element(
                    "line",
                    x1=_fixed(across(row.low)),
                    x2=_fixed(across(row.high)),
                    y1=y,
                    y2=y,
                    class_="whisker",
                ),
                element("circle", cx=_fixed(across(row.value)), cy=y, r=4.5, class_=kind),
            )
        )
    return element("svg", drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img")


def share_bar(shares: Sequence[tuple[str, float]]) -> Html:
    """One bar cut into labelled shares of a whole, with its legend below; empty ones are left out."""
    total = sum(amount for _, amount in shares) or 1.0
    shown = [(colour % 5, label, amount) for colour, (label, amount) in enumerate(shares) if amount > 0]
    parts = (
        element(
            "span",
            class_=f"c{colour}",
            style=f"flex-grow:{amount / total:.6f}",
            title=f"{label}: {amount:,.0f}",
        )
        for colour, label, amount in shown
    )
    legend = (
        element("span", element("i", class_=f"c{colour}"), f"{label} ", element("b", f"{amount:,.0f}"))
        for colour, label, amount in shown
    )
    return join(element("div", parts, class_="shares"), element("div", legend, class_="legend"))


def _fixed(value: float) -> str:
    return f"{value:.1f}"
