"""Files that are whole or absent: atomic writes, checksums, and the lease that gives one process a folder."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dgbench.errors import UsageError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new one, whatever is killed in between."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
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
    write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The content of a JSON file; None when it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def cache_folder() -> Path:
    """`$DGBENCH_CACHE`, else dgbench/ in the user's cache folder. Where it lies changes no result."""
    if folder := os.environ.get("DGBENCH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgbench"


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> Path:
    """Create a folder that can be written. Raises `UsageError` when the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {path}: {error.strerror or error}", "choose another folder, or mend its permissions"
        ) from None
    return path


class Taken(Exception):
    """Another process holds the lease."""


@contextmanager
def lease(folder: Path, stale_after: float = 900.0) -> Iterator[Path]:
    """Hold `folder/lease.json` while inside; raises `Taken` when a living process holds it.

    A lease is stale when its process is gone from this host, or, on another host, when it was not renewed for
    `stale_after` seconds. Renew it with `os.utime(path)` on the path that is yielded. Only O_EXCL creation and rename
    are used, so it works on shared file systems without locks.
    """
    path = folder / "lease.json"
    host = socket.gethostname()
    mine = {"pid": os.getpid(), "host": host, "started": _started(os.getpid())}
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _alive(path, host, stale_after):
                raise Taken(f"{folder} is being worked on by another process") from None
            stale = path.with_name(f".lease.{os.getpid()}.stale")
            with suppress(OSError):  # another process may have taken the stale lease away first
                os.replace(path, stale)
                stale.unlink()
            continue
        with os.fdopen(descriptor, "w") as file:
            json.dump(mine, file)
        break
    else:
        raise Taken(f"{folder} is being worked on by another process")
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _alive(path: Path, host: str, stale_after: float) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    holder = read_json(path)
    if not isinstance(holder, dict):
        return age < 5  # created a moment ago and not yet written, or left half-written by a kill
    if holder.get("host") != host:
        return age < stale_after
    return holder.get("started") == _started(holder.get("pid", -1))


def _started(pid: int) -> str | None:
    """When a process began, in the system's ticks: tells a living process from a reused number. None: not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "running"
    except OSError:
        return None
    return "running"
