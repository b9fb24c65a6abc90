"""Writes quarantine files: the records that could not be read, in one JSONL file for each source that has any."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from cluster.storage import Storage, json_line
from data.document import Quarantined


def quarantine_lines(records: Iterable[Quarantined]) -> Iterator[bytes]:
    """Yield a line of JSON for each record."""
    return (json_line(record._asdict()) for record in records)


QUARANTINE = "quarantine"
"""Folder of a corpus with the quarantine files."""


def write_quarantine(
    output: Storage, folder: Storage, task_files: Sequence[str], source_names: Mapping[str, Mapping[str, str]]
) -> None:
    """Join the quarantine files of the cleaning tasks into one file for each source.

    `task_files` are the names of the tasks' files in `folder`, in the order of the tasks. `source_names[source][url]`
    is the name of a source file (`origins.names_by_source`). In the output, this name replaces the URL.
    """
    # The tasks are in the order of the sources, so all records of a source are consecutive.
    for source, records in groupby(_read_quarantine(folder, task_files), key=lambda record: record.source):
        with output.writing(f"{QUARANTINE}/{source}.jsonl") as file:
            file.writelines(
                quarantine_lines(record._replace(file=source_names[source][record.file]) for record in records)
            )


def _read_quarantine(folder: Storage, task_files: Sequence[str]) -> Iterator[Quarantined]:
    """Yield the records of the quarantine files of cleaning tasks."""
    for name in task_files:
        with folder.open(name, prefetch=True) as file:
            yield from (Quarantined(**json.loads(line)) for line in file)
