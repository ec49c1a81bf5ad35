"""The guard: while a method is made, trained and tested, what Python opens of targets and of other runs is refused.

It holds against mistakes, and against a method that takes no trouble to get round it; docs/security.md says how far.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dgbench.errors import RunError

TELLING = ("predictions.npz", "cases.csv", "weights.safetensors", "checkpoint-")  # of a run: how their names begin


class Hidden:
    """What may not be opened. files: of the targets. folders: with all that lies in them, but for `allowed`.

    others: the folder that other runs of the task lie in: what they learned and predicted is hidden, too.
    """

    def __init__(
        self,
        files: Iterable[Path],
        folders: Iterable[Path] = (),
        others: Path | None = None,
        allowed: Iterable[Path] = (),
    ):
        self._allowed = tuple(map(_real, allowed))
        self._folders = tuple(map(_real, folders))
        self._others = _real(others) if others else ""
        inside = (p for f in self._folders for p in Path(f).rglob("*") if not str(p).startswith(self._allowed))
        # By inode: a link, or another name, is the same file.
        self._files = {found for path in (*files, *inside) if (found := _file(path))}
        self.opened: list[str] = []

    def holds(self, opened: Any) -> bool:
        """Is it one of these files? opened: a path, or the number of an open file."""
        if _file(opened) in self._files:
            return True
        if isinstance(opened, int) or not os.path.isfile(opened):
            return False
        path = os.path.realpath(os.fsdecode(opened))
        if path.startswith(self._allowed) or f"{path}{os.sep}" in self._allowed:
            return False
        of_others = self._others and path.startswith(self._others) and os.path.basename(path).startswith(TELLING)
        return bool(of_others) or path.startswith(self._folders)


def _real(path: Path) -> str:
    return os.path.join(os.path.realpath(path), "")


def _file(opened: Any) -> tuple[int, int] | None:
    try:
        status = os.stat(opened)
    except (OSError, ValueError, TypeError):
        return None
    return status.st_dev, status.st_ino


_watching: list[Hidden] = []
_installed: list[bool] = []


def _audit(event: str, arguments: tuple) -> None:
    if _watching and event in ("open", "mmap.__new__") and _watching[-1].holds(arguments[0]):
        _watching[-1].opened.append(str(arguments[0]))
        raise _refusal(_watching[-1])


def _refusal(hidden: Hidden) -> RunError:
    return RunError(
        f"the method opened {hidden.opened[0]} while it was being trained or tested",
        "a method may see its source only, and of a target the image that it is given",
    )


@contextmanager
def no_access(hidden: Hidden) -> Iterator[None]:
    """Inside, opening a hidden file raises `RunError`, and once more at the end: a method may have caught the first.

    Python's audit events see what Python opens or maps: not what a library in another language opens by itself.
    """
    if not _installed:
        sys.addaudithook(_audit)  # cannot be removed again; outside this context it lets everything pass
        _installed.append(True)
    _watching.append(hidden)
    try:
        yield
    finally:
        _watching.remove(hidden)
        if hidden.opened:
            raise _refusal(hidden)
