"""`raymill ls` and `raymill show`: the artifacts of a store, and what one of them was made from."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.storage import Storage
from jobs.frame.artifact import RECORD, Artifact, open_artifact


def list_artifacts(store: Storage) -> Iterator[str]:
    """A line for each artifact of a store, the oldest first: id, time that it took, location."""
    records = [store.read_json(name) for name in store.glob(f"*/{RECORD}")]
    if not records:
        yield f"no artifacts in {store.url}"
    for record in sorted(records, key=lambda record: record["started"]):
        yield f"{record['id']:<28} {record['wall_s']:>8.1f} s  {store.url}/{record['id']}"


def describe_artifact(artifact: Artifact) -> Iterator[str]:
    """Lines with the numbers and texts of an artifact's summary, then with its lineage."""
    yield from _values(artifact.summary)
    yield ""
    yield from _lineage(artifact, indent="", shown=set())


def _values(summary: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each number and text, those of nested values after `outer.inner`; lists are left out."""
    for name, value in summary.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}: {value}"


def _lineage(artifact: Artifact, indent: str, shown: set[str]) -> Iterator[str]:
    """The artifact, its source files, and the lineage of its inputs; nothing is repeated."""
    if artifact.id in shown:
        yield f"{indent}{artifact.id}  (above)"
        return
    shown.add(artifact.id)
    yield f"{indent}{artifact.id}  {artifact.storage.url}"
    for path, files in artifact.record.sources.items():
        for url, fingerprint in files.items():
            yield f"{indent}    {path}: {url}  {fingerprint[:19]}"
    for path, need in artifact.record.inputs.items():
        yield f"{indent}    {path}:"
        upstream = open_artifact(need.url)
        if upstream is None:
            yield f"{indent}      {need.id}  (no longer at {need.url})"
        else:
            yield from _lineage(upstream, indent + "      ", shown)
