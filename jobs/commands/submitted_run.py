"""What `raymill run` does in addition when it is a submitted job on a cluster."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, reporting_status, require_same_store


def reporting_run_status(store: str | None) -> AbstractContextManager[Callable[[], None]]:
    """Report the status of a submitted run to its store, which the command of a submitted job always names.

    Yields a function to call when the first stage begins; it does nothing when this is no submitted job. Raises
    ValueError when this process sees another store than the machine that submitted.
    """
    id = os.environ.get(SUBMISSION_VARIABLE)
    if id is None or store is None:
        return nullcontext(lambda: None)
    require_same_store(Storage(store), id)
    return reporting_status(Storage(store), id)


@contextmanager
def private_working_directory() -> Iterator[None]:
    """Work in a copy of the working directory when this is a submitted job.

    When a node joins on the driver's machine, Ray unpacks the shipped files again and removes the directory that the
    driver works in.
    """
    if not os.environ.get(SUBMISSION_VARIABLE):
        yield
        return
    shipped = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="raymill-job-", ignore_cleanup_errors=True) as copy:
        shutil.copytree(shipped, copy, dirs_exist_ok=True)
        os.chdir(copy)
        try:
            yield
        finally:
            os.chdir(shipped)
