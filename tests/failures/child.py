"""Processes that a test may kill, cage or starve: forked from one that has imported everything, so each is quick."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dgbench import files
from dgbench.images import preparation
from dgbench.running import launchers, train


def in_a_child(function: Callable[..., Any], *arguments: object, context: Any = None) -> tuple[Any, int]:
    """What the function returned in a process of its own, None if it did not get that far; and the exit code."""
    context = context or launchers._context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, dict(os.environ), function, arguments))
    with launchers._main_hidden():
        process.start()
    theirs.close()
    try:
        told = ours.recv()
    except EOFError:
        told = None
    process.join()
    return told, process.exitcode


def in_a_fork(function: Callable[..., Any], *arguments: object) -> tuple[Any, int]:
    """The same, as a copy of this process: for a child, which has seen no training yet."""
    return in_a_child(function, *arguments, context=multiprocessing.get_context("fork"))


def _call(connection: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple) -> None:
    os.environ.update(environment)  # the process that this one is forked from began before the test
    launchers._context = lambda: multiprocessing.get_context("fork")
    connection.send(function(*arguments))


# --- killed between two writes ---------------------------------------------------------------------------------------

CHANGES = ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.utime")


def killed_at(n: int, function: Callable[..., Any], *arguments: object) -> int:
    """Call the function; SIGKILL comes at its n-th write. Returns the number of writes, had it not come.

    A write is whatever is done to a file system: a file opened for writing, a part written to it (half of which gets
    there), fsync, rename, a folder made, a file removed.
    """
    counter, count = itertools.count(1), 0

    def point(before: Callable[[], object] = lambda: None) -> None:
        nonlocal count
        count = next(counter)
        if count == n:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, told: tuple) -> None:
        if event in CHANGES or (event == "open" and told[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            point()

    class Torn:
        """A file whose every `write` may be the last."""

        def __init__(self, file: Any):
            self.file = file

        def write(self, content: Any) -> int:
            point(lambda: (self.file.write(content[: len(content) // 2]), self.file.flush()))
            return self.file.write(content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    def torn_open(path: Any, mode: str = "r", **how: Any) -> Any:
        file = open(path, mode, **how)  # noqa: SIM115 (whoever called closes it)
        return file if mode in ("r", "rb") else Torn(file)

    fsync = os.fsync
    os.fsync = lambda descriptor: (point(), fsync(descriptor))[1]
    for module in (files, train, preparation):
        module.open = torn_open  # type: ignore[attr-defined]
    sys.addaudithook(audit)
    function(*arguments)
    return count


# --- a small disk ----------------------------------------------------------------------------------------------------

NEW_NAMES, NEW_USER, READ_ONLY, REMOUNT, ALL_PRIVATE = 0x20000, 0x10000000, 1, 32, 0x4000 | 0x40000


def small_disk(folder: Path, size: str) -> None:
    """Mount a file system in memory at `folder`, for this process and its children only. OSError where one may not."""
    libc, user = ctypes.CDLL(None, use_errno=True), os.getuid()
    _called(libc.unshare(NEW_NAMES if user == 0 else NEW_NAMES | NEW_USER))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    _called(libc.mount(None, b"/", None, ALL_PRIVATE, None))
    folder.mkdir(parents=True, exist_ok=True)
    _called(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))


def make_read_only(folder: Path) -> None:
    """What `small_disk` has mounted can only be read from now on."""
    _called(ctypes.CDLL(None, use_errno=True).mount(None, os.fsencode(folder), None, REMOUNT | READ_ONLY, None))


def _called(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


# --- root without its powers -----------------------------------------------------------------------------------------

READ_ANY_FILE, VERSION_3 = 1 << 1, 0x20080522  # CAP_DAC_OVERRIDE; of the structures that capset takes


def keep_only_files() -> None:
    """Root may no more than read and write any file from now on: limits are limits."""
    header, powers = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)(READ_ANY_FILE, READ_ANY_FILE)
    _called(ctypes.CDLL(None, use_errno=True).capset(header, powers))
