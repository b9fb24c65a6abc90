"""What every task of a corpus is given, and the folder in which its two halves meet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from data.cleaning.duplicates import NearDuplicates
from data.cleaning.recipe import Step, drops_equal_texts, near_duplicate_settings
from data.document import Source

_CUT = "cut.json"  # how the work was cut into tasks: without it nothing in the folder is trusted
_RESULTS = "answers"


@dataclass(frozen=True, kw_only=True)
class CorpusWork:
    """What every task of a corpus is given."""

    output: Storage
    folder: Storage
    """Folder of chunks, rows and task results. Removed at the end."""
    sources: Sequence[Source]
    steps: Sequence[Step]
    num_parts: int
    forgotten: frozenset[str] = frozenset()
    """Ids of documents that the corpus must not hold."""

    @property
    def near_duplicates(self) -> NearDuplicates | None:
        return near_duplicate_settings(self.steps)

    @property
    def deduplicates(self) -> bool:
        return drops_equal_texts(self.steps)

    @property
    def nodes(self) -> Storage:
        """For the search for near-duplicates."""
        return self.folder / "nodes"

    def result_folder(self, name: str) -> Storage:
        """Folder of the task results of one phase."""
        return self.folder / _RESULTS / name

    def begin(self, cut: Any) -> None:
        """Remove what a killed run has left if its work was cut in another way. `cut`, which JSON can hold, says how,
        and all else that changes the tasks' files without changing the tasks."""
        if not self.folder.exists(_CUT) or self.folder.read_json(_CUT) != cut:
            self.remove()
            self.folder.write_json(_CUT, cut)

    def remove(self) -> None:
        """Remove the folder; first whatever would have the next run trust its files.

        Results are removed before the files that they describe. A result whose files are gone would be trusted, and
        its task would not run again.
        """
        for name in (_CUT, _RESULTS, ""):
            self.folder.remove(name)
