"""Pictures that an inference run passes over: a bad one never ends the run."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from maskrcnn.errors import InputError, writing
from maskrcnn.export.jobs import Job
from maskrcnn.export.names import printable
from maskrcnn.export.run_folder import remove_results
from maskrcnn.export.table import write_csv

FAILURES = "failures.csv"

_NO_PICTURES_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no room, or nothing may be written at all


class Failures:
    """What went wrong with which picture; each is told on stderr in one line, when it happens.

    Args:
        folder: of the run.
        formats: of ``--format``.

    Attributes:
        errors: by the pictures' keys, one line each.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self.folder, self.formats = folder, formats
        self.errors: dict[str, str] = {}

    def pass_over(self, job: Job, error: Exception) -> None:
        """Give up a picture, with what an earlier run wrote of it.

        Raises ``error`` again where it is no fault of the picture's, since the next one would meet it too: a full disk.
        """
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NO_PICTURES_FAULT:
            raise error
        message = _in_one_line(job, error)
        try:
            remove_results(self.folder, job.key, self.formats)
        except InputError as second:
            message += f"; {printable(str(second))}"
        self._tell(job, "passed over", message)

    def report_lacks(self, job: Job, what: str, error: Exception) -> None:
        """Note that the report is without a picture, or without its truth, whose other results are there."""
        self._tell(job, f"the report is without {what}", _in_one_line(job, error))

    def _tell(self, job: Job, what: str, message: str) -> None:
        self.errors[job.key] = message
        tqdm.write(f"warning: {what}: {message}", file=sys.stderr)

    def write(self) -> None:
        """Write ``failures.csv``, a row for each picture, or remove that of an earlier run where there is none."""
        path = self.folder / FAILURES
        if self.errors:
            write_csv(path, ("picture", "error"), sorted(self.errors.items()))
            print(f"{len(self.errors)} pictures with errors: {printable(str(path))}", file=sys.stderr)
        else:
            with writing(path):
                path.unlink(missing_ok=True)


def _in_one_line(job: Job, error: Exception) -> str:
    """What is wrong, with the picture's path; of an error that no user could expect also its type and place."""
    message = " ".join(str(error).split())
    if not isinstance(error, InputError):
        place = traceback.extract_tb(error.__traceback__)[-1:]
        where = "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in place)
        message = f"{type(error).__name__}: {message}{where}"
    path = str(job.path)
    return printable(message if path in message else f"{path}: {message}")
