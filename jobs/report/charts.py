"""Line charts, interval charts and share bars as SVG and HTML, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.report.page import Html, element, format_number, join
from model.metrics import Interval

_WIDTH = 440  # width of a chart; this and the margins are in SVG units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34  # margins between the chart and its curves


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a line chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """The points (x, y) of the curve, in ascending order of x."""
    color: int = 0
    """Number of the color in the style sheet, from 0 to 4."""
    is_faint: bool = False
    """Whether the curve is drawn faintly and left out of the legend. Used for raw values behind their moving mean."""


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round numbers in [low, high]. Their distance is 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    min_step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= min_step * 0.99)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(points: Sequence[tuple[float, float]], half_window: int) -> list[tuple[float, float]]:
    """Return the moving mean of the points.

    Each mean is over a point and up to `half_window` points on each side. Near the ends there are fewer points.
    """
    means = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - half_window) : index + half_window + 1]]
        means.append((x, sum(window) / len(window)))
    return means


def line_chart(lines: Sequence[Line], *, x_label: str, height: int = 220) -> Html:
    """Return a chart of one or more curves with common axes. Points that are not finite are left out.

    The chart has a legend if two or more curves are not faint. Without any point, a note is returned instead of a
    chart. `height` is in SVG units.
    """
    lines = [
        Line(
            label=line.label,
            points=[(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)],
            color=line.color,
            is_faint=line.is_faint,
        )
        for line in lines
    ]
    points = [point for line in lines for point in line.points]
    if not points:
        return element("p", "This metric was not logged.", class_="note")
    left, right = _padded(min(x for x, _ in points), max(x for x, _ in points), 0.0)
    low, high = _padded(min(y for _, y in points), max(y for _, y in points), 0.06)

    def to_svg(x: float, y: float) -> tuple[float, float]:
        svg_x = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        return svg_x, _TOP + (high - y) / (high - low) * (height - _TOP - _BOTTOM)

    axes = [_horizontal_tick(tick, to_svg(left, tick)[1]) for tick in ticks(low, high)]
    axes += [
        element(
            "text",
            format_number(tick),
            x=_coordinate(to_svg(tick, low)[0]),
            y=height - _BOTTOM + 15,
            class_="tick",
            text_anchor="middle",
        )
        for tick in ticks(left, right, 5)
    ]
    axes.append(element("text", x_label, x=_WIDTH - _RIGHT, y=height - 3, class_="tick", text_anchor="end"))
    curves = [_curve(line, [to_svg(x, y) for x, y in line.points]) for line in lines]
    drawing = element("svg", axes, curves, viewBox=f"0 0 {_WIDTH} {height}", role="img")
    return join(drawing, _legend([line for line in lines if not line.is_faint]))


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """Return the ends of the range [low, high], extended by a share of its length on both sides.

    A range of length 0 is extended by 0.5 on both sides.
    """
    if high == low:
        return low - 0.5, high + 0.5
    return low - share * (high - low), high + share * (high - low)


def _horizontal_tick(value: float, y: float) -> Html:
    """Return a horizontal line over the width of the chart, with its value on the left."""
    line = element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_coordinate(y), y2=_coordinate(y), class_="rule")
    label = element("text", format_number(value), x=_LEFT - 6, y=_coordinate(y + 3.5), class_="tick", text_anchor="end")
    return join(line, label)


def _curve(line: Line, coordinates: Sequence[tuple[float, float]]) -> Html:
    """Return the curve through these SVG coordinates, or a dot for a single point."""
    css_class = f"curve c{line.color}" + (" faint" if line.is_faint else "")
    if len(coordinates) == 1:
        ((x, y),) = coordinates
        return element("circle", cx=_coordinate(x), cy=_coordinate(y), r=3, class_=f"dot c{line.color}")
    path = "M" + " L".join(f"{_coordinate(x)} {_coordinate(y)}" for x, y in coordinates)
    return element("path", element("title", line.label), d=path, class_=css_class)


def _legend(lines: Sequence[Line]) -> Html | None:
    if len(lines) < 2:
        return None
    return element(
        "div",
        (element("span", element("i", class_=f"c{line.color}"), line.label) for line in lines),
        class_="legend",
    )


def interval_chart(
    rows: Sequence[tuple[str, Interval]],
    *,
    reference: float | None = None,
    bounds: tuple[float, float] | None = None,
    dot_class: str = "decided",
) -> Html:
    """Return a chart with a row for each estimate: its label, a dot for the estimate, and a line for its interval.

    `reference` is a value to compare the estimates with, drawn as a dashed line. The dot of an estimate is open if its
    interval includes the reference. The other dots have the CSS class `dot_class`. `bounds` are the ends of the axis.
    Without them, the axis fits the intervals.
    """
    label_width, row_height = 128, 26
    height = row_height * len(rows) + 26
    edges = [edge for _, row in rows for edge in (row.low, row.high)] + ([] if reference is None else [reference])
    low, high = bounds or _padded(min(edges), max(edges), 0.08)

    def svg_x(value: float) -> str:
        return _coordinate(label_width + (value - low) / (high - low) * (_WIDTH - label_width - 16))

    elements = [
        join(
            element("line", x1=svg_x(tick), x2=svg_x(tick), y1=4, y2=height - 22, class_="rule"),
            element("text", format_number(tick), x=svg_x(tick), y=height - 8, class_="tick", text_anchor="middle"),
        )
        for tick in ticks(low, high)
    ]
    if reference is not None:
        reference_x = svg_x(reference)
        elements.append(element("line", x1=reference_x, x2=reference_x, y1=2, y2=height - 22, class_="reference"))
    for index, (label, row) in enumerate(rows):
        y = row_height * index + 17
        tooltip = f"{label}: {row.value:.4g}, {row.level:.0%} interval {row.low:.4g} to {row.high:.4g}"
        is_open = reference is not None and not row.excludes(reference)
        css_class = "dot open" if is_open else f"dot {dot_class}"
        elements.append(
            element(
                "g",
                element("title", tooltip),
                element("text", label, x=label_width - 12, y=y + 4, class_="label", text_anchor="end"),
                element("line", x1=svg_x(row.low), x2=svg_x(row.high), y1=y, y2=y, class_="whisker"),
                element("circle", cx=svg_x(row.value), cy=y, r=4.5, class_=css_class),
            )
        )
    return element("svg", elements, viewBox=f"0 0 {_WIDTH} {height}", role="img")


def share_bar(shares: Sequence[tuple[str, float]]) -> Html:
    """Return a bar that is divided in proportion to the amounts, with a legend below it.

    `shares` are pairs (label, amount). Amounts of 0 are left out.
    """
    total = sum(amount for _, amount in shares) or 1.0
    shown = [(color % 5, label, amount) for color, (label, amount) in enumerate(shares) if amount > 0]
    parts = (
        element(
            "span",
            class_=f"c{color}",
            style=f"flex-grow:{amount / total:.6f}",
            title=f"{label}: {amount:,.0f}",
        )
        for color, label, amount in shown
    )
    legend = (
        element("span", element("i", class_=f"c{color}"), f"{label} ", element("b", f"{amount:,.0f}"))
        for color, label, amount in shown
    )
    return join(element("div", parts, class_="shares"), element("div", legend, class_="legend"))


def _coordinate(value: float) -> str:
    """Return an SVG coordinate with one decimal, which keeps the page small."""
    return f"{value:.1f}"
