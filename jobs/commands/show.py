"""The commands `raymill ls`, which lists the artifacts of a store, and `raymill show`, which describes an artifact."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.storage import Storage
from jobs.frame.artifact import RECORD, Artifact, open_artifact


def list_artifacts(store: Storage) -> Iterator[str]:
    """Yield a line for each artifact of a store, with the artifact's id, the duration of the run and the artifact's
    URL.

    The artifact whose run started first comes first. If the store has no artifact, yields a line that says so.
    """
    records = [store.read_json(name) for name in store.glob(f"*/{RECORD}")]
    if not records:
        yield f"no artifacts in {store.url}"
    for record in sorted(records, key=lambda record: record["started"]):
        yield f"{record['id']:<28} {record['wall_s']:>8.1f} s  {store.url}/{record['id']}"


def describe_artifact(artifact: Artifact) -> Iterator[str]:
    """Yield lines with the numbers and strings of an artifact's summary, and then lines with the artifact's lineage.

    The lineage of an artifact is the artifact itself, its source files, and the lineages of its inputs.
    """
    yield from _summary_lines(artifact.summary)
    yield ""
    yield from _lineage_lines(artifact, indent="", shown_ids=set())


def _summary_lines(summary: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each number and string of a summary. A value in a nested mapping has a name such as
    `outer.inner`.

    `prefix` is the beginning of all names, ending in a dot, or empty. Lists and nulls are left out.
    """
    for name, value in summary.items():
        if isinstance(value, Mapping):
            yield from _summary_lines(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}: {value}"


def _lineage_lines(artifact: Artifact, indent: str, shown_ids: set[str]) -> Iterator[str]:
    """Yield lines with the artifact, its source files and the lineages of its inputs.

    If an artifact occurs several times, its lineage is yielded only the first time. `shown_ids` collects the ids of the
    artifacts whose lineages were yielded already. `indent` is put before each line.
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
