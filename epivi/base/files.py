"""Whole files or none: write beside the target, rename when complete; and one writer at a time."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from epivi.base.errors import UserError

log = logging.getLogger(__name__)


def expand_home(path: str | os.PathLike[str]) -> str:
    """A path with `~` or `~user` at its beginning replaced by the home folder; others, and unknown users, as given."""
    return os.path.expanduser(os.fspath(path))


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`, renamed to it on success and removed on any failure.

    The caller may create a file or a folder at the temporary path. An existing target file is replaced in one step; an
    existing target folder is removed just before the rename. What a killed process left of the same target is removed.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left_over in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        _remove(left_over)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove what may be there; where that cannot be done, the reason why nothing was written is the better message."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, so that no other process works on what it stands for; raises UserError if one does.

    The lock goes with the process, however it ends; the file left by a killed one is taken over. Where the file system
    has no locks, a warning takes their place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as stream:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    """The open file with its lock, which must still be the file of that name: its holder before may have removed it."""
    while True:
        stream = path.open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            with stream:
                holder = stream.read() or "another process"
            raise UserError(
                f"{path.parent}: {holder} is writing it; expected one process at a time: wait for it or end it"
            ) from None
        except OSError as error:
            log.warning("%s: cannot be locked (%s): make sure that only one process at a time writes here", path, error)
            return stream
        if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            return stream
        stream.close()


def write_json(target: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")


def content_hash(value: Any) -> str:
    """First 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: str | os.PathLike[str]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
