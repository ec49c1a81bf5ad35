"""Finding a task by what a user calls it: its name, or the path of a folder of images."""

from __future__ import annotations

from pathlib import Path

from dgbench.errors import UsageError
from dgbench.images.folder_task import FolderTask
from dgbench.images.mock import drawn
from dgbench.names import MOCK
from dgbench.registry import TASKS
from dgbench.task import Task


def get_task(name: str, data: Path | None = None) -> Task:
    """The task of that name, or the folder of images at that path. `data`: where the files of a named task lie.

    `mock-` before a name: the task on images that are drawn, wherever `data` is. Raises `UsageError` for a name that is
    not known, and as `FolderTask` does.
    """
    if is_folder(name):
        return FolderTask(Path(name))
    if name.startswith(MOCK) and name not in TASKS.names():
        return drawn(TASKS.get(name.removeprefix(MOCK)))
    return TASKS.get(name)(data)


def is_named(name: str) -> bool:
    """Is this the name of a task, drawn images or not, rather than a folder or what only results know?"""
    known = TASKS.names()
    return name in known or (name.startswith(MOCK) and name.removeprefix(MOCK) in known)


def on_drawn(name: str) -> str:
    """The name of the same task on drawn images. Raises `UsageError` for a folder of images, which has its own."""
    if is_folder(name):
        raise UsageError(
            f"{name} holds images, and a mock draws those of a task that is named",
            "leave --mock out: --set steps=20 tries the same in a short time",
        )
    return name if name.startswith(MOCK) else MOCK + name


def is_folder(name: str) -> bool:
    """Is this the path of a folder of images rather than a task's name?"""
    if not name.strip():  # the path of the current folder, which nobody means
        return False
    return "/" in name or "\\" in name or (name not in TASKS.names() and Path(name).is_dir())
