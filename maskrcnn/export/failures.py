"""Record of the pictures that failed in an inference run, which continues without them."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from maskrcnn.errors import InputError, writing
from maskrcnn.export.jobs import Job
from maskrcnn.export.run_folder import remove_results
from maskrcnn.export.table import write_csv
from maskrcnn.files import printable

FAILURES = "failures.csv"

_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no space, or a read-only file system: all pictures would fail


class Failures:
    """Collects the errors of pictures, and prints each as one line on stderr when it happens.

    Args:
        folder: folder of the run.
        formats: formats of ``--format``.

    Attributes:
        errors: error messages by the pictures' keys, one line each.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self.folder, self.formats = folder, formats
        self.errors: dict[str, str] = {}

    def pass_over(self, job: Job, error: Exception) -> None:
        """Record a picture that failed, and remove its results of an earlier run.

        Raises ``error`` again if all other pictures would fail too, as with a full disk.
        """
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _FATAL:
            raise error
        message = describe(job, error)
        try:
            remove_results(self.folder, job.key, self.formats)
        except InputError as second:
            message += f"; {printable(str(second))}"
        self._record(job, "passed over", message)

    def report_lacks(self, job: Job, what: str, error: Exception) -> None:
        """Record that the report lacks a picture, or its ground truth, although its other results are complete."""
        self._record(job, f"the report is without {what}", describe(job, error))

    def _record(self, job: Job, what: str, message: str) -> None:
        self.errors[job.key] = message
        tqdm.write(f"warning: {what}: {message}", file=sys.stderr)

    def write(self) -> None:
        """Write ``failures.csv`` with one row per failure; without failures, remove that of an earlier run."""
        path = self.folder / FAILURES
        if self.errors:
            write_csv(path, ("picture", "error"), sorted(self.errors.items()))
            print(f"{len(self.errors)} pictures with errors: {printable(str(path))}", file=sys.stderr)
        else:
            with writing(path):
                path.unlink(missing_ok=True)


def describe(job: Job, error: Exception) -> str:
    """The message of an error on one line, with the picture's path; for unexpected errors also type and code line."""
    message = " ".join(str(error).split())
    if not isinstance(error, InputError):
        frames = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames)
        message = f"{type(error).__name__}: {message}{where}"
    path = str(job.path)
    return printable(message if path in message else f"{path}: {message}")
