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
    """Return a context that writes the status of a submitted run to its store.

    `store` is the option --store, which the command of a submitted job always has. The context yields a function, which
    the caller calls when the first stage begins. In a process that is not a submitted job, context and function do
    nothing.

    Raises ValueError if this process does not see the same store as the machine that submitted the job.
    """
    id = os.environ.get(SUBMISSION_VARIABLE)
    if id is None or store is None:
        return nullcontext(lambda: None)
    require_same_store(Storage(store), id)
    return reporting_status(Storage(store), id)


@contextmanager
def private_working_directory() -> Iterator[None]:
    """Change to a copy of the working directory if this process is a submitted job.

    Without the copy a job would lose its working directory when a second Ray node starts on its machine: Ray then
    removes the directory and unpacks the shipped files again.
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
