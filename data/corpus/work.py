"""`CorpusWork`: what every task of the `corpus` stage gets, and the folder of the intermediate files.

The stage has two halves. Cleaning tasks read the source files and write chunks (`cleaning_tasks.py`). Part tasks read
the chunks and write the corpus's parts (`part_tasks.py`). The two halves exchange files through the folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from data.cleaning.duplicates import NearDuplicates
from data.cleaning.recipe import Step, drops_equal_texts, near_duplicate_settings
from data.document import Source

_TASK_SETTINGS = "cut.json"
"""File with the settings with which the folder's files were written. Without this file, no other file is reused."""
_RESULTS = "results"
"""Folder of the task results, below the folder of the intermediate files."""


@dataclass(frozen=True, kw_only=True)
class CorpusWork:
    """What every task of the `corpus` stage gets."""

    output: Storage
    """Folder of the corpus."""
    folder: Storage
    """Folder of the intermediate files: chunks, rows and task results. It is removed when the corpus is finished."""
    sources: Sequence[Source]
    steps: Sequence[Step]
    num_parts: int
    forgotten_ids: frozenset[str] = frozenset()
    """Ids of documents that were forgotten (`raymill forget`). The corpus must not contain them."""

    @property
    def near_duplicate_settings(self) -> NearDuplicates | None:
        """Settings of the step `near_duplicates`. None if the recipe does not have this step."""
        return near_duplicate_settings(self.steps)

    @property
    def drops_exact_duplicates(self) -> bool:
        """Whether the recipe has the step `exact_duplicates`."""
        return drops_equal_texts(self.steps)

    @property
    def near_duplicates_folder(self) -> Storage:
        """Folder of the files of the search for near-duplicates (`clusters.py`)."""
        return self.folder / "nodes"

    def result_folder(self, name: str) -> Storage:
        """Folder of the task results of one phase."""
        return self.folder / _RESULTS / name

    def prepare_folder(self, task_settings: Any) -> None:
        """Remove the files of a killed run, unless they were written with `task_settings`. Then store `task_settings`.

        `task_settings` is a value that JSON can represent. It must contain every setting that affects the files that a
        task writes but is not part of the task itself.
        """
        if not self.folder.exists(_TASK_SETTINGS) or self.folder.read_json(_TASK_SETTINGS) != task_settings:
            self.remove_folder()
            self.folder.write_json(_TASK_SETTINGS, task_settings)

    def remove_folder(self) -> None:
        """Remove the folder: first the settings, then the task results, then the files that the tasks wrote.

        If the process is killed in between, a task result may remain without the files that it describes. The next run
        does not trust this result, because `prepare_folder` finds no settings and removes the folder.
        """
        for name in (_TASK_SETTINGS, _RESULTS, ""):
            self.folder.remove(name)
