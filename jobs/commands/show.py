"""The commands `raymill ls`, which lists the artifacts of a store, and `raymill show`, which describes an artifact."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.storage import Storage
from jobs.frame.artifact import RECORD, Artifact, open_artifact


def list_artifacts(store: Storage) -> Iterator[str]:
    """Yield a line for each artifact of a store, oldest first, with its id, the duration of its run and its URL."""
    records = [store.read_json(name) for name in store.glob(f"*/{RECORD}")]
    if not records:
        yield f"no artifacts in {store.url}"
    for record in sorted(records, key=lambda record: record["started"]):
        yield f"{record['id']:<28} {record['wall_s']:>8.1f} s  {store.url}/{record['id']}"


def describe_artifact(artifact: Artifact) -> Iterator[str]:
    """Yield lines with the numbers and strings of an artifact's summary, followed by its lineage."""
    yield from _summary_lines(artifact.summary)
    yield ""
    yield from _lineage_lines(artifact, indent="", shown_ids=set())


def _summary_lines(summary: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each number and string of a summary. A nested value has a name such as `outer.inner`.

    Lists are left out.
    """
    for name, value in summary.items():
        if isinstance(value, Mapping):
            yield from _summary_lines(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}: {value}"


def _lineage_lines(artifact: Artifact, indent: str, shown_ids: set[str]) -> Iterator[str]:
    """Yield lines with the artifact, its source files and the lineage of its inputs.

    The lineage of an artifact that occurs several times is printed once. `shown_ids` collects the ids of the artifacts
    that were printed already.
    """
    if artifact.id in shown_ids:
        yield f"{indent}{artifact.id}  (see above)"
        return
    shown_ids.add(artifact.id)
    yield f"{indent}{artifact.id}  {artifact.storage.url}"
    for path, files in artifact.record.sources.items():
        for url, fingerprint in files.items():
            yield f"{indent}    {path}: {url}  {fingerprint[:19]}"
    for path, input_record in artifact.record.inputs.items():
        yield f"{indent}    {path}:"
        upstream = open_artifact(input_record.url)
        if upstream is None:
            yield f"{indent}      {input_record.id}  (no longer at {input_record.url})"
        else:
            yield from _lineage_lines(upstream, indent + "      ", shown_ids)
