"""Files that say which chats fill each training row, and a reader of rows."""

from collections.abc import Iterable
from typing import NamedTuple

from cluster.storage import Storage
from data.chats.packing import PackedRows, RowPlan, fill_rows
from data.chats.sample_files import SampleFiles, SampleReader, StoredArray, open_array, store_array


class RowFiles(NamedTuple):
    """A `RowPlan` in files."""

    chats: StoredArray
    row_starts: StoredArray


def store_rows(folder: Storage, name: str, plan: RowPlan) -> RowFiles:
    """Write a plan to two files whose names begin with `name`."""
    return RowFiles(
        store_array(folder, f"{name}-chats.npy", plan.chats),
        store_array(folder, f"{name}-starts.npy", plan.row_starts),
    )


class RowReader:
    """Reads packed rows by their numbers. Only the rows that are read are in memory."""

    def __init__(self, folder: Storage, samples: SampleFiles, rows: RowFiles, *, length: int, pad_id: int) -> None:
        self._samples = SampleReader(folder, samples)
        self._chats, self._row_starts = open_array(folder, rows.chats), open_array(folder, rows.row_starts)
        self._length, self._pad_id = length, pad_id

    def __len__(self) -> int:
        return len(self._row_starts) - 1

    def take(self, numbers: Iterable[int]) -> PackedRows:
        """Return the rows with these numbers, in this order."""
        rows = []
        for number in numbers:
            first, stop = self._row_starts[number], self._row_starts[number + 1]
            rows.append([self._samples.read(chat) for chat in self._chats[first:stop]])
        return fill_rows(rows, length=self._length, pad_id=self._pad_id)
