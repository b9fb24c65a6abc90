"""The parts of `raymill run` that are needed only in a submitted job on a cluster."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from cluster.storage import Storage
from cluster.submission_status import SUBMISSION_VARIABLE, reporting_status, require_same_store


def reporting_run_status(store: str | None) -> AbstractContextManager[Callable[[], None]]:
    """Return a context manager that writes the status of a submitted run to the store of the run.

    `store` is the value of the option --store, which the command of a submitted job always has, or None. The context
    manager yields a function, which the caller must call when the first stage begins. If this process is not a
    submitted job, the context manager and the function do nothing.

    Raises ValueError if this process does not see the same store as the machine that submitted the job.
    """
    id = os.environ.get(SUBMISSION_VARIABLE)
    if id is None or store is None:
        return nullcontext(lambda: None)
    require_same_store(Storage(store), id)
    return reporting_status(Storage(store), id)


@contextmanager
def private_working_directory() -> Iterator[None]:
    """If this process is a submitted job, change to a temporary copy of the working directory during the block.

    Without the copy, the job would lose its working directory when a second Ray node starts on the same machine,
    because Ray then removes the directory and unpacks the shipped files again.
    """
    if not os.environ.get(SUBMISSION_VARIABLE):
        yield
        return
    original = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="raymill-job-", ignore_cleanup_errors=True) as copy:
        shutil.copytree(original, copy, dirs_exist_ok=True)
        os.chdir(copy)
        try:
            yield
        finally:
            os.chdir(original)
