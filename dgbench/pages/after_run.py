"""What `dgbench run` leaves: tables on the terminal, tables and plots as files, and what was not finished."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape

import dgbench
from dgbench.errors import DgbenchError
from dgbench.files import make_folder, read_json, sha256, write_json
from dgbench.running.launchers import Outcome
from dgbench.running.plan import Run
from dgbench.running.records import read_run
from dgbench.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dgbench.pages.pictures import Slice
    from dgbench.scores.study import Study


def failures(outcomes: Sequence[Outcome], console: Console, broken: Mapping[str, Exception] | None = None) -> bool:
    """Say which runs were not finished and what to do, once for all that lack the same; True if any.

    broken: methods of which no run was planned, and why.
    """
    unfinished = [o for o in outcomes if o.status in ("failed", "interrupted")]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for o in unfinished:
        alike.setdefault((o.status, o.message, o.remedy), []).append(str(o.run))
    told = []
    for (status, why, remedy), runs in alike.items():
        variants = Counter(run.rpartition("/")[0] for run in runs)
        several = ", ".join(f"{variant} ({n} run{'s' if n > 1 else ''})" for variant, n in variants.items())
        told.append((status, several if runs[1:] else runs[0], why, remedy))
    for name, error in (broken or {}).items():
        if isinstance(error, DgbenchError):
            told.append(("failed", name, error.cause, error.remedy))
        else:
            told.append(("failed", name, f"{type(error).__name__}: {error}", f"`dgbench check {name}` shows where"))
    for status, what, why, remedy in told:
        console.print(f"[bold red]{status}:[/] {escape(f'{what}: {why}')}", soft_wrap=True)
        if remedy:
            console.print(f"[bold]try:[/]    {escape(remedy)}", soft_wrap=True)
    if unfinished:
        console.print(f"{len(unfinished)} of {len(outcomes)} runs are not finished", style="bold red")
    return bool(told)


def show(task: Task, planned: Sequence[Run], results: Path, console: Console) -> list[Path]:
    """Print the planned runs' tables; write tables and plots of all finished runs of the task beside them.

    Runs on other data than the planned ones (images were changed since) are left out of the files, and so are folders
    that cannot be read, which are named. Returns the files.
    """
    from dgbench.pages import score_tables
    from dgbench.protocol import get_protocol
    from dgbench.scores.bounds import joined
    from dgbench.scores.study import Study

    done = [read_run(Path(r.folder)) for r in planned if r.status == "done"]
    if not done:
        return []
    protocol = planned[0].protocol
    if not joined(done, get_protocol(protocol))[0]:
        return []  # of no domain all folds
    if not console.is_jupyter:  # there the result of `run` shows them
        score_tables.print_study(console, Study(done, get_protocol(protocol)))
    folder = Path(results) / task.name / protocol
    everything = Study.load(results, task.name, protocol, like=done[0])
    written = score_tables.write(everything, folder / "tables")
    written += write_plots(everything, folder / "plots", notable_slices(task, everything))
    for sentence in everything.left_out:
        console.print(escape(sentence), style="yellow", highlight=False, soft_wrap=True)
    console.print(f"\ntables and plots: {folder}/tables, {folder}/plots", highlight=False, soft_wrap=True)
    return written


def notable_slices(task: Task, study: Study) -> dict[str, dict[str, Slice]]:
    """By variant and title, its best, median and worst target cases, images read anew from the task's files."""
    from dgbench.pages import pictures

    found = {}
    for variant, runs in study.runs.items():
        if chosen := pictures.notable(r for r in runs if r.has_predictions).items():
            found[variant] = {f"{w}: Dice {100 * e.dice:.2f}\n{e.where}": pictures.seen(task, e) for w, e in chosen}
    return found


def plots(
    study: Study, slices: Mapping[str, Mapping[str, Slice]] | None = None, metrics: Sequence[str] = ("dice", "asd")
) -> dict[str, Callable[[], Figure]]:
    """What draws each plot of a study, by the names of their files. slices: by variant and title, as from
    `notable_slices`."""
    from dgbench.metrics import FURTHER
    from dgbench.pages import figures, pictures

    metrics = (*metrics, *(m for m in study.metrics if m in FURTHER))
    made: dict[str, Callable[[], Figure]] = {f"matrix-{m}": partial(figures.heat_map, study, m) for m in metrics}
    made |= {f"targets-{m}": partial(figures.target_boxes, study, m) for m in metrics}
    made["learning-curves"] = partial(figures.learning_curves, study)
    return made | {_overlays(variant): partial(pictures.overlays, of) for variant, of in (slices or {}).items()}


def _overlays(variant: str) -> str:
    return f"overlays-{variant}"


def write_plots(
    study: Study,
    folder: Path,
    slices: Mapping[str, Mapping[str, Slice]] | None = None,
    metrics: Sequence[str] = ("dice", "asd"),
) -> list[Path]:
    """Write `plots` into a folder, each as .png and .pdf; returns the paths.

    Those that were drawn there of the same by the same code stay: there are pictures of every variant.
    """
    from dgbench.pages import drawing

    of_study = _digest(_what(study))
    of_slices = {_overlays(variant): _digest(_of_slices(of)) for variant, of in (slices or {}).items()}
    known, drawn, written = read_json(make_folder(folder) / DRAWN) or {}, {}, []
    for name, draw in plots(study, slices, metrics).items():
        paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
        shows = of_slices.get(name, of_study)
        if not all(path.is_file() for path in paths) or known.get(name) != [shows, *map(sha256, paths)]:
            figure = draw()
            for path in paths:
                drawing.save(figure, path)
        drawn[name] = [shows, *map(sha256, paths)]
        written += paths
    if drawn != known:
        write_json(folder / DRAWN, drawn)
    return written


DRAWN = ".drawn.json"  # of each plot beside it, the digest of what it shows and the checksums of its files


def _digest(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256(_code())
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()


@functools.cache
def _code() -> bytes:
    """A digest of all that may draw otherwise: dgbench's own code and matplotlib's version."""
    import matplotlib

    files = sorted(Path(dgbench.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join([matplotlib.__version__.encode(), *(f.read_bytes() for f in files)])).digest()


def _what(study: Study) -> Iterator[bytes]:
    """All that plots of a study are drawn from."""
    import pandas as pd

    yield repr((study.protocol, study.left_out)).encode()
    for run in (*study.records, *study.again):
        yield json.dumps(run.record, sort_keys=True, default=str).encode()
        history = run.path / "history.jsonl"
        yield history.read_bytes() if history.is_file() else b""
    yield pd.util.hash_pandas_object(study.cases, index=False).to_numpy().tobytes()


def _of_slices(of: Mapping[str, Slice]) -> Iterator[bytes]:
    for title, (*arrays, number, n) in of.items():
        yield repr((title, number, n, [(a.shape, a.dtype) for a in arrays])).encode()
        yield from (np.ascontiguousarray(a).tobytes() for a in arrays)
