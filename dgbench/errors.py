"""What a user can do wrong: one line of cause, one line of remedy, one exit code."""

import errno
import os
import re
from collections.abc import Sequence

# A file's name may hold a line break, or what moves a terminal's cursor: it is shown, and a line stays one line. The
# problems of a list begin lines of their own.
CONTROLS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
CONTROL = re.compile(rf"{CONTROLS}(?!- )")
OBJECT = re.compile(r"<(?:\w+\.)*(\w+) object at 0x[0-9a-f]+>")  # in what other libraries say


class DgbenchError(Exception):
    """A mistake that a user can mend. The command line prints both lines and no traceback."""

    exit_code = 2

    def __init__(self, cause: str, remedy: str = ""):
        told = (OBJECT.sub(r"\1", text) for text in (cause, remedy))
        self.cause, self.remedy = (CONTROL.sub(lambda found: repr(found[0])[1:-1], text) for text in told)
        super().__init__(self.cause)

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}" if self.remedy else self.cause

    def __reduce__(self):  # crosses process borders with both of its lines
        return type(self), (self.cause, self.remedy)


class UsageError(DgbenchError):
    """A wrong name, option or value."""

    exit_code = 2


class DataError(DgbenchError):
    """An image, mask, weights file or folder that cannot be used as it is."""

    exit_code = 3


class RunError(DgbenchError):
    """A run that could not be finished; the others go on."""

    exit_code = 4


ROOM = "make room there, then the same command goes on"
REFUSALS = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose another folder, or mend its permissions"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "when disk and file server answer again, the same command goes on"),
}
MEMORY_ERRORS = ("out of", "can't allocate", "cannot allocate")  # of CUDA, of torch, of the system
MEMORY = "close other programs, make fewer runs at a time (--jobs), or lower batch_size or image_size with --set"


def of_system(error: BaseException, place: object = "the disk") -> DgbenchError | None:
    """What the machine refused, in words: a full or read-only disk, memory; None for all else.

    place: what is named where the system's error does not name a file.
    """
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return DataError(f"{error.filename or place}: {os.strerror(error.errno)}", REFUSALS[error.errno])
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{error.filename or place}: {os.strerror(error.errno)}", "give a path that can be one")
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(f"{words} memory" in text for words in MEMORY_ERRORS):
        return RunError("out of memory", MEMORY)
    return None


def require(value: str, known: Sequence[str], what: str) -> str:
    """`value` if it is known, else a `UsageError` with the nearest match and all names."""
    if value in known:
        return value
    raise UsageError(f"unknown {what} '{value}'", f"{nearest(value, known)}known: {', '.join(known) or 'none'}")


def nearest(value: str, known: Sequence[str]) -> str:
    """The question whether the known name most like `value` was meant, with a blank behind it; "" where none is."""
    import difflib  # slow to import and seldom needed

    near = difflib.get_close_matches(value, known, n=1)
    return f"did you mean '{near[0]}'? " if near and near[0] != value else ""


class StillQueued(KeyboardInterrupt):
    """Waiting for a cluster was interrupted; the tasks named by `jobs` stay in its queue."""

    def __init__(self, jobs: Sequence[str]):
        super().__init__()
        self.jobs = tuple(jobs)
