"""Numbers and names the source files that documents were read from.

A part stores the origin of a document as the number of its file and an offset. `FILE_NAMES_JSON` gives the name of the
file with each number, counted from 0. The name does not contain the folder of the file, because the same files in
another folder must give the same corpus.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cluster.storage import Storage
from data.document import ReadRange, Source

FILE_NAMES_JSON = "origins/files.json"
"""File of a corpus that lists the names of each source's files, in the order of the file numbers."""

FileNumbers = dict[str, int]
"""Maps the URL of each file of a source to the file's number. The URLs are in the order of the numbers."""


def number_files(sources: Sequence[Source], ranges: Iterable[ReadRange]) -> list[FileNumbers]:
    """Number the files of each source in the order of the ranges. Returns the numbers in the order of the sources."""
    files: list[FileNumbers] = [{} for _ in sources]
    for range_ in ranges:
        files[range_.source].setdefault(range_.url, len(files[range_.source]))
    return files


def file_names(urls: Sequence[str]) -> dict[str, str]:
    """Return the name of each file by URL: the last component of its path.

    If several files have the same last component, the file's position in `urls`, counted from 1, is appended to it.
    """
    names = {url: url.partition("::")[0].rpartition("/")[2] for url in urls}
    num_files = Counter(names.values())
    return {
        url: name if num_files[name] == 1 else f"{name} (file {number} of {len(names)})"
        for number, (url, name) in enumerate(names.items(), start=1)
    }


def names_by_source(sources: Sequence[Source], files: Sequence[FileNumbers]) -> dict[str, dict[str, str]]:
    """Return the names of the files of each source: for each source's name, a mapping from URL to name."""
    return {source.name: file_names(list(urls)) for source, urls in zip(sources, files, strict=True)}


def write_file_names(output: Storage, names: Mapping[str, Mapping[str, str]]) -> None:
    """Write `FILE_NAMES_JSON`. `names` comes from `names_by_source`."""
    output.write_json(FILE_NAMES_JSON, {source: list(by_url.values()) for source, by_url in names.items()})
