"""An example of a stage. It measures the lengths of the documents in a corpus.

To try it out, copy this file to jobs/lengths.py, add a line `"lengths",` to STAGES in jobs/frame/stages.py, write the
line `corpus: runs/tiny/CORPUS` (the folder of a corpus) into lengths.yaml, and run `raymill run lengths lengths.yaml`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.frame.artifact import Artifact
from jobs.frame.fields import PREVIOUS_STAGE, input_artifact
from jobs.frame.stage import Context, PlannedInputs, Stage
from jobs.report.page import format_number, section, table
from jobs.report.part import ReportPart


@dataclass(frozen=True, kw_only=True)
class LengthsConfig:
    """The config of the stage, which is read from `lengths.yaml`."""

    corpus: str = input_artifact("corpus", default=PREVIOUS_STAGE)
    """Corpus whose documents are measured."""
    percentiles: tuple[float, ...] = (10.0, 50.0, 90.0)
    """Percentiles of the document length to compute, between 0 and 100."""


@dataclass(frozen=True, kw_only=True)
class LengthsSummary:
    """The results of the stage, which are stored in the record of the artifact."""

    documents: int
    """Number of documents."""
    bytes_by_percentile: Mapping[str, float]
    """Percentile -> document length in bytes."""


def check(config: LengthsConfig) -> None:
    """Raises ValueError for a percentile below 0 or above 100."""
    for percentile in config.percentiles:
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentiles: {percentile} must be between 0 and 100")


def estimate(config: LengthsConfig, planned: PlannedInputs) -> dict[str, float]:
    """Return numbers that `raymill plan` prints for this stage."""
    return {"percentiles": len(config.percentiles)}


def run(config: LengthsConfig, context: Context) -> LengthsSummary:
    """Write `lengths.json`, a list of the lengths of all documents in bytes. Returns the percentiles."""
    corpus = context.inputs["corpus"].storage
    lengths: list[int] = []
    for name in corpus.glob("documents/*.parquet"):
        with corpus.open(name) as file:
            lengths += pc.binary_length(pq.read_table(file, columns=["text"])["text"]).to_pylist()
    context.output.write_json("lengths.json", lengths)
    values = np.percentile(lengths, config.percentiles).tolist()
    by_percentile = {f"{percentile:g}": value for percentile, value in zip(config.percentiles, values, strict=True)}
    context.tracker.log(0, {f"lengths/p{name}": value for name, value in by_percentile.items()})
    return LengthsSummary(documents=len(lengths), bytes_by_percentile=by_percentile)


def report(artifact: Artifact) -> ReportPart:
    """Return the stage's part of the report: a table of the percentiles."""
    summary = artifact.read_summary(LengthsSummary)
    rows = [[f"{name} %", format_number(value)] for name, value in summary.bytes_by_percentile.items()]
    introduction = f"{summary.documents:,} documents."
    lengths = table(["documents of at most", "bytes"], rows, numeric=[1])
    return ReportPart(section=section("lengths", "Lengths", introduction, lengths))


STAGE = Stage(
    name="lengths",
    version=1,
    kind="evaluation",
    config=LengthsConfig,
    run=run,
    check=check,
    estimate=estimate,
    report=report,
)
