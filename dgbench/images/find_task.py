"""Finding a task by what a user calls it: its name, or the path of a folder of images or of a table of cases."""

from __future__ import annotations

from pathlib import Path

from dgbench.errors import UsageError
from dgbench.images.folder_task import FolderTask
from dgbench.images.mock import drawn
from dgbench.images.own_task import OwnTask
from dgbench.images.table_task import TABLES, TableTask
from dgbench.names import MOCK
from dgbench.registry import TASKS
from dgbench.task import Task


def get_task(name: str, data: Path | None = None, *, planned: bool = False) -> Task:
    """The task of that name, or the users' own images at that path. `data`: where the files of a named task lie.

    `mock-` before a name: the task on images that are drawn, wherever `data` is. planned: the task of a run that was
    planned, whatever its images are. Raises `UsageError` for a name that is not known, for drawn images under a real
    name, and as `FolderTask` and `TableTask` do.
    """
    if is_path(name):
        return own_task(Path(name))
    if name.startswith(MOCK) and name not in TASKS.names():
        return drawn(TASKS.get(name.removeprefix(MOCK)))
    task = TASKS.get(name)(data)
    if task.is_mock and not planned:
        raise UsageError(f"the files of {name} are drawn ones", "for a trial give --mock, and another --data, or none")
    return task


def is_named(name: str) -> bool:
    """Is this the name of a task, drawn images or not, rather than a folder or what only results know?"""
    known = TASKS.names()
    return name in known or (name.startswith(MOCK) and name.removeprefix(MOCK) in known)


def on_drawn(name: str) -> str:
    """The name of the same task on drawn images. Raises `UsageError` for a user's images, which have their own."""
    if is_path(name):
        raise UsageError(
            f"{name} holds images, and a mock draws those of a task that is named",
            "leave --mock out: --set steps=20 tries the same in a short time",
        )
    return name if name.startswith(MOCK) else MOCK + name


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
