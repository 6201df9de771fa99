"""The one exception for what a user can put right, and what of the system's errors is such."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_SPACE = "a disk with more space"
_ACCESS = "a place that this user may read and write"
_FILES = "a higher limit of open files, as by ulimit -n"
_DISK = "a disk that works: look at it, or choose another"
_NAME = "another path"
# Errors of the system that a user or an administrator can put right -> what is expected. Any other is a bug.
EXPECTED: Mapping[int, str] = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "a file system or a limit (ulimit -f) that takes larger files",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.EROFS: _ACCESS,
    errno.EISDIR: "a file, not a folder",
    errno.ENOTDIR: "a folder, not a file",
    errno.EEXIST: "a folder there, or nothing yet",
    errno.ENOENT: "a path that is there",
    errno.ENAMETOOLONG: "a shorter name",
    errno.ELOOP: _NAME,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
    errno.ENODEV: _DISK,
    errno.ENXIO: _DISK,
    errno.ETIMEDOUT: _DISK,
}


class UserError(Exception):
    """Bad input, configuration or state that the user can correct.

    The message is one line that names file, line, column or key, the offending value and what was expected; several
    mistakes that were found together are a line each. The command line prints it without a traceback and exits with
    status 2.
    """


class Mistakes:
    """Gathers the mistakes of several checks, so that a user sees all of them in one go."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Keep the UserError that a check raises, if it does."""
        try:
            yield
        except UserError as error:
            self._lines += str(error).splitlines()

    def add(self, line: str) -> None:
        """Keep a mistake, as one line."""
        self._lines.append(line)

    def require_none(self) -> None:
        """Raise one UserError with a line for each mistake, once each, in the order of the checks."""
        if self._lines:
            raise UserError("\n".join(dict.fromkeys(self._lines)))


def print_error(error: UserError) -> None:
    """Each mistake on the terminal, as the command line and the workflow say it."""
    for line in str(error).splitlines():
        print(f"epivi: error: {line}", file=sys.stderr)


def line_of(error: OSError) -> str | None:
    """One line for an error of the system, with what is expected instead; None for one that is a bug."""
    expected = EXPECTED.get(error.errno or 0)
    if expected is None:
        return None
    if expected == _SPACE:
        return f"{error.filename or 'output'}: no space left; expected {expected}"
    reason = (error.strerror or "").lower()
    # Some libraries put the path into their message alone.
    what = f"{error.filename}: {reason}" if error.filename else " ".join(str(error).split())
    return f"{what}; expected {expected}"
