"""Finding a task by what a user calls it: its name, or the path of a folder of images or of a table of cases."""

from __future__ import annotations

from pathlib import Path

from dgbench.images.folder_task import FolderTask
from dgbench.images.own_task import OwnTask
from dgbench.images.table_task import TABLES, TableTask
from dgbench.registry import TASKS
from dgbench.task import Task


def get_task(name: str, data: Path | None = None) -> Task:
    """The task of that name, or the users' own images at that path. `data`: where the files of a named task lie.

    Raises `UsageError` for a name that is not known, and as `FolderTask` and `TableTask` do.
    """
    return own_task(Path(name)) if is_path(name) else TASKS.get(name)(data)


def own_task(path: Path) -> OwnTask:
    """Users' own images: a folder, or a table of cases."""
    return TableTask(path) if is_table(path.name) else FolderTask(path)


def is_path(name: str) -> bool:
    """Is this the path of a user's images or of a table of them rather than a task's name?"""
    if not name.strip():  # the path of the current folder, which nobody means
        return False
    return "/" in name or "\\" in name or is_table(name) or (name not in TASKS.names() and Path(name).is_dir())


def is_table(name: str) -> bool:
    """Is it called like a table of cases?"""
    return name.lower().endswith(TABLES) and not Path(name).is_dir()
