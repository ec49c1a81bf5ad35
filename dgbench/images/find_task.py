"""Finding a task by what a user calls it: its name, or the path of a folder of images."""

from __future__ import annotations

from pathlib import Path

from dgbench.images.folder_task import FolderTask
from dgbench.registry import TASKS
from dgbench.task import Task


def get_task(name: str, data: Path | None = None) -> Task:
    """The task of that name, or the folder of images at that path. `data`: where the files of a named task lie.

    Raises `UsageError` for a name that is not known, and as `FolderTask` does.
    """
    return FolderTask(Path(name)) if is_folder(name) else TASKS.get(name)(data)


def is_folder(name: str) -> bool:
    """Is this the path of a folder of images rather than a task's name?"""
    if not name.strip():  # the path of the current folder, which nobody means
        return False
    return "/" in name or "\\" in name or (name not in TASKS.names() and Path(name).is_dir())
