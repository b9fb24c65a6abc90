"""Formats forecasts as the table that `raymill run` and `raymill plan` print."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from cluster.progress import format_duration
from jobs.frame.forecast import MEASURED, Forecast


def forecast_table(forecasts: Mapping[str, Forecast]) -> list[str]:
    """Return the lines of the table, or an empty list if `forecasts` is empty.

    The keys of `forecasts` are the names of the stages' configs. If there are stages that are not done, the last line
    is the total of these stages. The memory in the total is the maximum over the stages, because the stages run one
    after another.
    """
    if not forecasts:
        return []
    lines = [f"{'stage':<14} {'time':>12} {'memory':>10} {'disk':>10}  from"]
    lines += [f"{name:<14} {_cells(forecast)}  {forecast.basis}" for name, forecast in forecasts.items()]
    pending = [forecast for forecast in forecasts.values() if forecast.basis != MEASURED]
    if pending:
        total = Forecast(
            _combine(sum, [forecast.seconds for forecast in pending]),
            _combine(max, [forecast.memory_gib for forecast in pending]),
            _combine(sum, [forecast.disk_gib for forecast in pending]),
            "",
        )
        lines.append(f"{'still to do':<14} {_cells(total)}")
    return lines


def _combine(function: Callable[[Iterable[float]], float], values: Sequence[float | None]) -> float | None:
    """Return `function(values)`, where the function is `sum` or `max`. Returns None if one of the values is None."""
    numbers = [value for value in values if value is not None]
    return function(numbers) if len(numbers) == len(values) else None


def _cells(forecast: Forecast) -> str:
    """Return the columns time, memory and disk of a line of the table. An unknown value is shown as `?`."""
    seconds = "?" if forecast.seconds is None else format_duration(forecast.seconds)
    memory = "?" if forecast.memory_gib is None else f"{forecast.memory_gib:.1f} GiB"
    disk = "?" if forecast.disk_gib is None else _size(forecast.disk_gib)
    return f"{seconds:>12} {memory:>10} {disk:>10}"


def _size(gib: float) -> str:
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
