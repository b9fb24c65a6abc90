"""The corpus of `benchmarks/data_path.py` by datatrove, run by its own environment's Python.

    python datatrove_corpus.py INPUT OUTPUT WORKERS filters|near_duplicates

Reads INPUT/*.jsonl; leaves OUTPUT/kept/*.jsonl. The bounds are Raymill's defaults, which are the papers'.
"""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

CONFIG = MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=6)


def run(pipeline: list[PipelineStep], tasks: int, workers: int, logs: str) -> None:
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=workers, logging_dir=logs, skip_completed=False).run()


def main() -> None:
    source, output, workers, what = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    filtered = f"{output}/kept" if what == "filters" else f"{output}/filtered"
    filters: list[PipelineStep] = [
        JsonlReader(source, glob_pattern="*.jsonl"),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(),
        FineWebQualityFilter(char_duplicates_ratio=0.1),
        JsonlWriter(filtered, compression=None),
    ]
    run(filters, workers, workers, f"{output}/logs/filters")
    if what == "filters":
        return
    reader = JsonlReader(filtered, glob_pattern="*.jsonl")
    signatures, buckets, removed = f"{output}/signatures", f"{output}/buckets", f"{output}/removed"
    run([reader, MinhashDedupSignature(signatures, config=CONFIG)], workers, workers, f"{output}/logs/1")
    run([MinhashDedupBuckets(signatures, buckets, config=CONFIG)], CONFIG.num_buckets, workers, f"{output}/logs/2")
    run([MinhashDedupCluster(buckets, removed, config=CONFIG)], 1, 1, f"{output}/logs/3")
    keep = JsonlWriter(f"{output}/kept", compression=None)
    run([reader, MinhashDedupFilter(removed), keep], workers, workers, f"{output}/logs/4")


if __name__ == "__main__":
    main()
