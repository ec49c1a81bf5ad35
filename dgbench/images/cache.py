"""The cache: what lies in it, how large it is, what nobody needs any more, and making room.

All of it can be made again: prepared images from the task's files, drawn ones from nothing, scores from their archive,
weights by a download.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dgbench.errors import UsageError
from dgbench.files import cache_folder, is_locked
from dgbench.images.preparation import code_fingerprint, newest

IN_USE = 3600.0  # seconds since it was used last in which a run may still read it
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Entry:
    """A folder of the cache that is kept or deleted as a whole.

    size: in bytes. used: seconds since 1970, when it was made or last used. old: why nobody needs it any more; "" where
    somebody may.
    """

    path: Path
    kind: str  # "prepared", "mock", "scores": the folder that it lies in
    size: int
    used: float
    old: str = ""

    @property
    def is_in_use(self) -> bool:
        """May a process be reading or writing it?"""
        return time.time() - self.used < IN_USE


def entries(cache: Path | None = None) -> list[Entry]:
    """All of the cache but weights, which have verbs of their own; what was used last first."""
    root, found = cache or cache_folder(), []
    for kind in ("prepared", "mock", "scores"):
        for path in (root / kind).iterdir() if (root / kind).is_dir() else ():
            if path.is_dir():
                used = newest(path) if path.name.startswith(".") else path.stat().st_mtime
                found.append(Entry(path, kind, _size(path), used, _why_old(path, kind)))
    return sorted(found, key=lambda entry: -entry.used)


def clean(found: Sequence[Entry], most: int | None = None) -> list[Entry]:
    """Delete what is old; and, where the rest is larger than `most` bytes, what was used longest ago. The deleted ones.

    What a process may be using stays.
    """
    kept = [entry for entry in found if not entry.old]
    size, too_many = sum(entry.size for entry in kept), []
    for entry in reversed(kept if most is not None else []):
        if size > (most or 0) and not entry.is_in_use:
            too_many.append(entry)
            size -= entry.size
    deleted = [entry for entry in found if entry.old and not entry.is_in_use] + too_many
    for entry in deleted:
        shutil.rmtree(entry.path, ignore_errors=True)
    return deleted


def read_size(text: str) -> int:
    """ "20GB", "500 M", "0": bytes. Raises `UsageError`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise UsageError(f"'{text}' is no size", "give e.g. 20GB or 500MB")
    return int(float(found[1]) * UNITS[found[2].upper()])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _why_old(path: Path, kind: str) -> str:
    if path.name.startswith("."):
        return "" if is_locked(path) or time.time() - newest(path) < IN_USE else "left by a process that was ended"
    if kind == "prepared" and f"-{code_fingerprint()[:8]}-" not in path.name:
        return "made by another version of dgbench"
    return ""
