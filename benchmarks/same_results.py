"""Whether a change of the code changes a result: one tiny pipeline by two checkouts, artifact beside artifact.

    python benchmarks/same_results.py ../raymill-before [--stages corpus,vocabulary,shards]

Runs a pipeline of minutes over made-up text with the code of the other checkout and with that of this one, and prints
for each stage whether its artifact has the same id (what it was made from) and the same digest (the bytes that it
holds). A refactor is done when every line says so. Exits with 1 when a line differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml
from planting.tiny_pipeline import STAGES, write_world

ROOT = Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    """What one checkout made of one stage."""

    id: str
    digest: str


def run_pipeline(checkout: Path, pipeline: Path, store: Path) -> dict[str, Result]:
    """The results by stage of one checkout's code, run by this interpreter."""
    command = [sys.executable, "-m", "jobs.cli", "run", "pipeline", str(pipeline), "--store", str(store)]
    environment = {**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": str(checkout)}
    subprocess.run(command, env=environment, cwd=pipeline.parent, check=True, stdout=sys.stderr)
    records = [json.loads(path.read_text()) for path in store.glob("*/artifact.json")]
    return {record["stage"]: Result(record["id"], record["digest"]) for record in records}


def compare(before: Path, folder: Path, stages: list[str]) -> bool:
    """Print a line for each stage; whether all are the same."""
    pipeline = write_world(folder)
    pipeline.write_text(yaml.safe_dump(yaml.safe_load(pipeline.read_text()) | {"stages": stages}))
    old = run_pipeline(before, pipeline, folder / "before")
    new = run_pipeline(ROOT, pipeline, folder / "after")
    print(f"{'stage':12}{'id before':28}{'id':10}{'digest before':18}{'digest'}")
    for stage in stages:
        was, now = old[stage], new[stage]
        verdicts = ["same" if same else "DIFFERS" for same in (was.id == now.id, was.digest == now.digest)]
        print(f"{stage:12}{was.id:28}{verdicts[0]:10}{was.digest[:16]:18}{verdicts[1]}")
    return all(old[stage] == new[stage] for stage in stages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the code to compare with")
    parser.add_argument("--stages", default=",".join(STAGES), help="by default all ten")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raymill-same-") as folder:
        return 0 if compare(options.before.resolve(), Path(folder), options.stages.split(",")) else 1


if __name__ == "__main__":
    sys.exit(main())
