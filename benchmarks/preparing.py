"""What preparing a large set costs: time, memory, and what threads save.

    nice -n 19 python benchmarks/preparing.py [SLICES] [SIDE]

Writes a folder of drawn PNG files (10,000 of 384 x 384, about 1.3 GB), prepares it with one thread and with as many as
there are cores, and prints seconds of wall and processor time, slices a second, and the most memory that was held.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from dgbench.images.folder_task import FolderTask
from dgbench.images.mock import Sketch, write_png
from dgbench.images.preparation import prepare


def write(folder: Path, slices: int, side: int) -> None:
    """Two domains; the second one has a case only. Every 50 images there is another drawing, the noise is new."""
    sketch = Sketch()
    for k, (domain, count) in enumerate((("large", slices), ("small", 1))):
        for n in range(count):
            if n % 50 == 0:
                labels = sketch.labels(side, side)
            write_png(folder / domain / "images" / f"{n:06}.png", sketch.gray(labels, k))
            write_png(folder / domain / "masks" / f"{n:06}.png", labels)


def main() -> None:
    given = [int(a) for a in sys.argv[1:]]
    slices, side = [*given, *(10_000, 384)[len(given) :]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "set", slices, side)
        task = FolderTask(folder / "set")
        for jobs in (None, 1) if slices <= 2000 else (None,):
            wall, own = time.perf_counter(), time.process_time()
            domain = prepare(task, "large", side, folder / f"cache{jobs}", jobs=jobs)
            wall, own = time.perf_counter() - wall, time.process_time() - own
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            told = f"{wall:.0f} s, {own:.0f} s of the processor, {len(domain.images) / wall:.0f} slices/s"
            print(f"{slices} slices of {side} x {side}, jobs {jobs}: {told}, at most {memory:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
