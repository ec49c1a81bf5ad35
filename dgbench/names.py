"""Names: what a domain, structure, case, task or method may be called, so that it can stand in a table and a path."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from dgbench.errors import DataError, DgbenchError

# What heads a row or column of ours beside names of a kind, or is a folder beside theirs; in whatever capitals.
OURS = {
    "domain": {
        "mean", "mean_std", "mean_found", "found", "missed", "tested", "validation", "seeds", "unit", "variant",
        "source", "target", "domain", "structure", "rank", "worst", "why", "95 % interval", "all targets",
        "mean of sources", "mean of targets",
    },
    "structure": {"mean"},
    "method": {
        "mean", "case", "target", "one", "other", "mean_one", "mean_other", "difference", "low", "high", "p_holm",
        "improved", "cases", "verdict", "tables", "plots", "published",
    },
}  # fmt: skip
MOCK = "mock-"  # begins the name of a task whose images are drawn: its results are told apart by it everywhere
# What some system cannot store as a file's name, or a spreadsheet would take for a formula.
UNSAFE = re.compile(r'[<>:"/\\|?*]|^[=+@-]|\.$')
WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
MOST = 100  # bytes: a folder's name is made of it and more, and file systems allow 255


def one_form(name: str) -> str:
    """The name as it is kept and compared: some systems write an accent as a letter of its own (NFD)."""
    return unicodedata.normalize("NFC", name)


def problem(name: str, kind: str) -> str:
    """Why a domain, structure, case, task or method (`kind`) cannot be called so; "" when it can."""
    if not name or name != name.strip():
        return "it is empty, or has blanks at its ends"
    if UNSAFE.search(name) or any(unicodedata.category(c)[0] in "CZ" and c != " " for c in name):
        return "it holds a sign that cannot be part of a path or table"
    if kind != "case" and len(name.encode()) > MOST:
        return f"it is longer than {MOST} bytes"
    if kind != "case" and WINDOWS.fullmatch(name):
        return "Windows keeps this name for a device"
    return "tables use this word themselves" if name.casefold() in OURS.get(kind, ()) else ""


def check(names: Iterable[str], kind: str, where: object, error: type[DgbenchError] = DataError) -> None:
    """Raises `error` for the first of some names that cannot be used, or that differs from another by capitals only."""
    seen, read = dict[str, str](), list[str]()
    for name in names:
        if why := problem(one_form(name), kind):
            raise error(f"{where}: {name!r} cannot name a {kind}: {why}", "rename it")
        other = seen.setdefault(one_form(name).casefold(), name)
        if len(seen) <= len(read):
            raise error(f"{where}: {kind}s {other!r} and {name!r} are one name to some systems", "rename one of them")
        read.append(name)
