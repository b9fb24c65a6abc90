"""The forecast of each finished stage of a store beside what was measured.

The forecast is the one that `raymill run` prints for an empty store: from this machine's calibration, without earlier
runs. So the store must come from this machine. For the demo on two cores, the forecast was 0.65 to 1.4 times the
measured time, and 1.0 to 1.35 times the measured memory. The last columns are for tuning the constants of
`jobs/frame/cost_model.py`: the processor seconds of the stage on all cores together, which a busy machine distorts less
than the time, and the seconds that its FLOP alone should take.

    python benchmarks/forecast.py [STORE] [--config configs/tiny/pipeline.yaml] [stage.field=value …]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cluster.plain import from_plain
from cluster.storage import Storage
from jobs.frame.artifact import open_artifact
from jobs.frame.calibration import calibrate
from jobs.frame.cost_model import reachable_flops
from jobs.frame.forecast import Forecast, forecast_jobs, measured_forecast
from jobs.frame.pipeline import load_pipeline
from jobs.frame.record import Measured
from jobs.frame.workload import Workload

CONFIG = Path(__file__).parent.parent / "configs" / "tiny" / "pipeline.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", default="runs/tiny")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c")
    options, rest = parser.parse_known_args()
    pipeline = load_pipeline(options.config, [*options.overrides, *rest], store=options.store)
    with tempfile.TemporaryDirectory() as empty:
        forecasts = forecast_jobs(pipeline.jobs, Storage(empty))
    print(
        f"{'stage':<14} {'forecast':>9} {'measured':>9} {'ratio':>6}   {'GiB':>5} {'measured':>9} {'ratio':>6}", end=""
    )
    print(f"   {'cpu s':>7} {'of FLOP':>7}")
    for name, job in pipeline.jobs.items():
        artifact = open_artifact(pipeline.store / job.id)
        if artifact is None or name not in forecasts:
            print(f"{name:<14} not in {pipeline.store.url}")
            continue
        measured = artifact.record.measured
        print(f"{name:<14} {row(forecasts[name], measured_forecast(artifact))}", end="")
        print(f"   {cell(measured.cpu_s):>7} {cell(flop_s(measured)):>7}")


def row(forecast: Forecast, measured: Forecast) -> str:
    """Forecast, measurement and their ratio, for time and for memory."""
    time = f"{cell(forecast.seconds):>9} {cell(measured.seconds):>9} {ratio(forecast.seconds, measured.seconds):>6}"
    memory = f"{cell(forecast.memory_gib, 2):>5} {cell(measured.memory_gib, 2):>9}"
    return f"{time}   {memory} {ratio(forecast.memory_gib, measured.memory_gib):>6}"


def flop_s(measured: Measured) -> float | None:
    """Seconds that one thread needs for the FLOP of a recorded run."""
    if not measured.workload:
        return None
    workload = from_plain(Workload, {**measured.workload, "threads": 1})
    return workload.flop / reachable_flops(workload, calibrate())


def cell(value: float | None, digits: int = 0) -> str:
    return "?" if value is None else f"{value:,.{digits}f}"


def ratio(forecast: float | None, measured: float | None) -> str:
    return f"{forecast / measured:.2f}" if forecast and measured else "?"


if __name__ == "__main__":
    main()
