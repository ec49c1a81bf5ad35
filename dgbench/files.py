"""Files that are whole or absent: atomic writes, checksums, and the lock that gives one process a folder."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock

from dgbench.errors import REFUSALS, UsageError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, whatever is killed in between."""
    path = Path(path)
    # The number of a process may be that of another one on another host, or in another container.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the system does not say which file was being written
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def move(source: Path, path: Path) -> None:
    """Rename a written file into its place, in the same folder, and have the rename reach the disk."""
    os.replace(source, path)
    with suppress(OSError):  # some file systems cannot sync a folder; the rename is atomic there all the same
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """`write_atomic` of a JSON text."""
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


T = TypeVar("T")


def _read(read: Callable[[], T]) -> T:
    """What is read; once more where a file server says that the file was replaced since it was looked up."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return read()


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when it is missing, damaged, or holds anything but an object."""

    def content() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    try:
        found = json.loads(_read(content).decode())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_name(text: Any) -> bool:
    """Can it be the name of a file in a folder, and of nothing outside?"""
    return isinstance(text, str) and text not in ("", ".", "..") and not {"/", "\\", "\0"} & set(text)


def gunzip(content: bytes, most: int = 1 << 30) -> bytes:
    """Decompress, whatever it becomes up to `most` bytes. Raises `ValueError` for more: a small file may hold much."""
    whole = bytearray()
    with gzip.open(io.BytesIO(content)) as stream:
        while part := stream.read(1 << 20):
            whole += part
            if len(whole) > most:
                raise ValueError(f"it becomes more than {most >> 20} MiB")
    return bytes(whole)


def cache_folder() -> Path:
    """`$DGBENCH_CACHE`, else dgbench/ in the user's cache folder. Where it lies changes no result.

    A user without a home, as in a container that was given a number only, has one in the folder for temporary files.
    """
    if folder := os.environ.get("DGBENCH_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgbench"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"dgbench-{os.getuid()}"


def sha256(path: str | Path) -> str:
    """Checksum of a file's content, in hexadecimal digits."""

    def digest() -> str:
        found = hashlib.sha256()
        with open(path, "rb", buffering=0) as file:
            while part := file.read(1 << 20):
                found.update(part)
        return found.hexdigest()

    return _read(digest)


SETTLED = 10.0  # seconds; the coarsest clock of a file system (FAT) ticks every two


class Checksums:
    """sha256 of files by path, kept in `memory`, a JSON file, or in this object: what stayed as it is, is read once.

    What tells that a file stayed as it is: size, time of modification, time of change and inode. The system sets the
    time of change at every write, at every rename, and when the other times are set, and nobody can set it back: a file
    of the same size put into another's place, its time of modification restored, is read again. A file that changed
    less than `SETTLED` seconds before it was read is read again as well, for it may change once more within one tick of
    the file system's clock. To read always would be truer, and take two minutes for 100 GB at each
    command, from a disk that is not busy. Not seen is what goes past the file system, into a disk's image, or what a
    server writes whose clock stands still; FAT has no time of change. Without the file `memory` all is read again.
    """

    def __init__(self, memory: Path | None = None):
        self.memory = memory
        self.known: dict[str, list[Any]] = (memory and read_json(memory)) or {}
        self.changed = False

    def of(self, path: Path) -> str:
        """Raises `OSError` for a file that cannot be read."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = str(path.resolve())
        entry = self.known.get(name, [])
        if entry[:-1] == stamp:
            return str(entry[-1])
        now = time.time()
        checksum = sha256(path)
        if now - status.st_ctime > SETTLED:
            self.known[name], self.changed = [*stamp, checksum], True
        return checksum

    def save(self) -> None:
        """Have the next process know it."""
        if self.memory and self.changed:
            write_json(self.memory, self.known)


def make_folder(path: Path) -> Path:
    """Create a folder that can be written. Raises `UsageError` when the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # without a name: nothing is left of it, whatever is killed
            pass
    except OSError as error:
        remedy = REFUSALS.get(error.errno or 0, "choose another folder")
        if path.is_relative_to(cache_folder()):
            remedy = "give another folder by the environment variable DGBENCH_CACHE, or mend this one"
        raise UsageError(f"cannot write to {path}: {error.strerror or error}", remedy) from None
    return path


class Taken(Exception):
    """Another process holds the lock."""


@contextmanager
def lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Keep `folder` to this process while inside; raises `Taken` when another has it, `UsageError` without locks.

    patience: seconds to wait for the other one. A tenth of a second is always waited: `is_locked` takes it for less.

    The lock is the system's, on `folder/.lock`: taken in one step, by one of any number of processes, and given back
    when its holder ends, however it ends. On a shared file system (NFS, Lustre, GPFS) the file server keeps it for all
    hosts. Nobody judges by a clock whether another host is alive, so a holder may be silent for as long as it likes.
    The file stays: if it were deleted, two processes could hold two files of one name.
    """
    held = filelock.FileLock(folder / ".lock")
    try:
        held.acquire(timeout=max(patience, 0.1))
        if isinstance(held, filelock.SoftFileLock):  # what the library falls back to outlives a holder that is killed
            held.release()
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except filelock.Timeout:
        raise Taken(f"{folder} is being worked on by another process") from None
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            f"{folder} cannot be locked: {getattr(error, 'strerror', '') or error}",
            "choose a folder on another file system, or have this one mounted with locks (Lustre: -o flock)",
        ) from None
    try:
        yield
    finally:
        held.release()


def is_locked(folder: Path) -> bool:
    """Does a process, on whatever host, hold the lock of `folder` now?"""
    if not (folder / ".lock").exists():
        return False
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
