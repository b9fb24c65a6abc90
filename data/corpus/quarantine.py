"""Quarantine files: the records that could not be read, one JSONL file for each source that has any."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from cluster.storage import Storage, json_line
from data.document import Quarantined


def quarantine_lines(records: Iterable[Quarantined]) -> Iterator[bytes]:
    """A line of JSON for each record."""
    return (json_line(record._asdict()) for record in records)


def write_quarantine(
    output: Storage, work: Storage, written: Sequence[str], names: Mapping[str, Mapping[str, str]]
) -> None:
    """Join the tasks' quarantine files, in the tasks' order, into one file for each source with bad records.

    `names` are the files' names by source and URL.
    """
    for source, records in groupby(_read_quarantine(work, written), key=lambda record: record.source):
        with output.writing(f"quarantine/{source}.jsonl") as file:
            file.writelines(quarantine_lines(record._replace(file=names[source][record.file]) for record in records))


def _read_quarantine(work: Storage, names: Sequence[str]) -> Iterator[Quarantined]:
    for name in names:
        with work.open(name, read_ahead=True) as file:
            yield from (Quarantined(**json.loads(line)) for line in file)
