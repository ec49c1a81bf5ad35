"""The one property that all inputs are held to: a right number, or a refusal that helps; nothing lost, memory bounded.

`DGBENCH_FUZZ` is the number of inputs, 1,000 by default. Those are the same on every machine and at every time, so that
a change is to blame for what they find; more than these are drawn anew each time.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings

from dgbench.errors import DgbenchError

TOTAL = int(os.environ.get("DGBENCH_FUZZ", "1000"))
HEADROOM = 768 << 20  # bytes of addresses that a call may take beyond what the process has; threads take 72 MB each
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of small files


def inputs(share: int) -> Callable[[Any], Any]:
    """So many of every 1,000 inputs go to this test."""

    def decorate(test: Any) -> Any:
        limited = settings(
            max_examples=max(1, share * TOTAL // 1000),
            deadline=None,
            derandomize=TOTAL <= 1000,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        return pytest.mark.timeout(600 if TOTAL <= 1000 else 0)(limited(test))

    return decorate


class Refusal(NamedTuple):
    """What a user is told. code: the exit code of the command line."""

    cause: str
    remedy: str
    code: int


@dataclass
class Folder:
    """A folder of inputs. Whoever reads them writes nothing there but below `written`."""

    path: Path
    written: str = "written"

    def held(self) -> dict[str, bytes | None]:
        """Every input by its path in the folder, with its content; None is a folder."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            name = path.relative_to(self.path)
            if name.parts[0] != self.written and "__pycache__" not in name.parts:  # Python's own, beside a plug-in
                found[str(name)] = path.read_bytes() if path.is_file() else None
        return found


@contextmanager
def folder() -> Iterator[Folder]:
    """An empty folder, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as path:
        yield Folder(Path(path).resolve())


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Inside, taking more than `HEADROOM` raises MemoryError; on Linux, where that costs nothing to find out."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(error: DgbenchError) -> Refusal:
    """What the error tells, if it helps: a line of cause (a list of problems may follow), one of remedy, 2 or 3."""
    first, *more = error.cause.split("\n")
    assert first.strip() and all(line.startswith("- ") for line in more), f"no line of cause: {error.cause!r}"
    assert error.remedy.strip() and "\n" not in error.remedy, f"no line of remedy: {error.remedy!r} ({error.cause})"
    assert error.exit_code in (2, 3), f"exit code {error.exit_code}: {error.cause}"
    for word in ("Traceback", "MemoryError", "Unable to allocate", "out of memory", "object at 0x", "<class "):
        assert word not in f"{error.cause} {error.remedy}", f"not for a user's eyes: {error.cause}"
    return Refusal(error.cause, error.remedy, error.exit_code)


def answer(call: Callable[[], Any], inside: Folder | None = None) -> Any:
    """What a call returns, or its `Refusal`. Every other exception passes, and so fails the test.

    inside: nothing in this folder of inputs may have changed, nor be half-written where the call may write.
    """
    before = inside.held() if inside else {}
    try:
        with bounded_memory():
            found = call()
    except DgbenchError as error:
        found = refusal(error)
    if inside:
        assert inside.held() == before, "inputs were changed"
        assert not half_written(inside.path), "half-written files are left"
    return found


def half_written(path: Path) -> list[str]:
    """Names of temporary files and unfinished folders."""
    return [str(p) for p in path.rglob(".*") if p.name.endswith(".tmp") or p.name.startswith((".building-", ".write-"))]
