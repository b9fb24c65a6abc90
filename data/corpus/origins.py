"""Origins: the files that documents were read from, by their numbers and by names that no path changes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cluster.storage import Storage
from data.document import ReadRange, Source

FILE_NAMES_JSON = "origins/files.json"
"""In a corpus: the names of each source's files, in the order in which origins number them."""

FilesOfSource = dict[str, int]
"""The number of each of a source's files, by URL, in the order of the numbers."""


def source_files(sources: Sequence[Source], ranges: Iterable[ReadRange]) -> list[FilesOfSource]:
    """The files of each source, numbered in the order of the ranges."""
    files: list[FilesOfSource] = [{} for _ in sources]
    for range_ in ranges:
        files[range_.source].setdefault(range_.url, len(files[range_.source]))
    return files


def file_names(urls: Sequence[str]) -> dict[str, str]:
    """The last part of each file's path, by URL; with the file's number where two files share it.

    A file is named by this and not by its path, for the same files read from another folder must give the same bytes.
    """
    names = {url: url.partition("::")[0].rpartition("/")[2] for url in urls}
    times = Counter(names.values())
    return {
        url: name if times[name] == 1 else f"{name} (file {number} of {len(names)})"
        for number, (url, name) in enumerate(names.items(), start=1)
    }


def names_by_source(sources: Sequence[Source], files: Sequence[FilesOfSource]) -> dict[str, dict[str, str]]:
    """The names of each source's files by URL, by the name of the source."""
    return {source.name: file_names(list(urls)) for source, urls in zip(sources, files, strict=True)}


def write_file_names(output: Storage, names: Mapping[str, Mapping[str, str]]) -> None:
    """Write `FILE_NAMES_JSON` from the names that `names_by_source` gives."""
    output.write_json(FILE_NAMES_JSON, {source: list(named.values()) for source, named in names.items()})
