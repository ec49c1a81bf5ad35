"""A method that waits in the middle of its training until it may go on, and waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PIXELS = Path(__file__).parent / "pixels.py"
WAITS = """self.seen += 1
        import pathlib, time
        while self.seen == 10 and pathlib.Path({hold!r}).exists():
            time.sleep(0.05)"""


def patient(folder: Path) -> Path:
    """The file of the method `patient`: `pixels`, but its tenth step lasts for as long as `folder/hold` is there."""
    plugin = folder / "patient.py"
    plugin.write_text(PIXELS.read_text().replace("self.seen += 1", WAITS.format(hold=str(folder / "hold"))))
    return plugin


def until(condition: Callable[[], bool], told: Callable[[], str] = lambda: "", seconds: float = 300.0) -> None:
    """Wait until it holds; a failure says what `told` tells."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.1)
