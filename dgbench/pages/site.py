"""The site: every board, method and run of some results as pages that open anywhere, with files to take away.

In: what `scores.collection` makes of results. Out: a folder of pages and files that refer to each other by relative
addresses, and a copy of all of it for the day, which later calls leave as it is.
"""

from __future__ import annotations

import ast
import functools
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date as Date
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import dgbench
from dgbench import registry
from dgbench.errors import DgbenchError, UsageError
from dgbench.files import make_folder, read_json, write_json
from dgbench.images.find_task import is_named
from dgbench.pages import leaderboard, score_tables
from dgbench.pages import site_tables as tables
from dgbench.pages.captions import heading
from dgbench.pages.commands import commands
from dgbench.pages.score_tables import Scale
from dgbench.pages.site_tables import board_page, method_page, part, run_page
from dgbench.pages.table import csv_text, fill
from dgbench.running.records import RunRecord
from dgbench.scores import published
from dgbench.scores.collection import Collected, Collection, key
from dgbench.scores.mean_ranks import MeanRanks, mean_ranks
from dgbench.scores.submission import IDENTITY, cleaned, private_words

FROZEN, MADE = "frozen", "site.json"  # the folder of copies; what was made, so that it can be made anew


@dataclass(frozen=True)
class Written:
    """What a call wrote. start: the page to open. frozen: the copy of the day; kept: it was there already, and stays.

    broken: why boards are not in it.
    """

    start: Path
    pages: int
    frozen: Path
    kept: bool
    broken: tuple[DgbenchError, ...]


def write(found: Collection, out: Path, day: str | None = None) -> Written:
    """Write the site into a folder, empty or with a site in it, and its copy into out/frozen/<day>.

    day: as 2030-12-31, by default today. Raises `UsageError` for another day than that, and for a folder that holds
    something else.
    """
    day = _day(day)
    if (out.exists() and not out.is_dir()) or (out.is_dir() and _is_strange(out)):
        raise UsageError(f"{out} holds something else than a site", "name a new folder, or one that a site was made in")
    copies = make_folder(out / FROZEN)
    copy, made = copies / day, Site(found, day)
    kept = copy.is_dir()
    with tempfile.TemporaryDirectory(prefix=".making-", dir=copies) as building:
        if not kept:  # all of it or nothing: a copy that is there is whole
            _lay(made.files(day, ()), Path(building, day)).rename(copy)
        days = sorted((p.name for p in copies.iterdir() if _is_day(p.name)), reverse=True)
        new = _lay(made.files("", days), Path(building, "now"))
        names = sorted(p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file())
        old = [str(name) for name in (read_json(out / MADE) or {}).get("files", []) if name not in names]
        told = {"dgbench": dgbench.__version__, "date": day}
        write_json(out / MADE, told | {"files": names + old})  # first: what is interrupted here is a site, too
        for name in names:
            (new / name).replace(make_folder((out / name).parent) / Path(name).name)
    for gone in (out / name for name in old):
        if _is_inside(gone, out) and gone.is_file():
            gone.unlink()
    write_json(out / MADE, told | {"files": names})
    pages = sum(name.endswith(".html") for name in names)
    return Written(out / "index.html", pages, copy, kept, found.broken)


def _lay(files: Iterable[tuple[str, str | bytes]], folder: Path) -> Path:
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
    return folder


def _day(day: str | None) -> str:
    if day is None:
        return Date.today().isoformat()
    if not _is_day(day):
        raise UsageError(f"'{day}' is no date", "give one as 2030-12-31")
    return day


def _is_day(name: str) -> bool:
    try:
        return Date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False


def _is_strange(out: Path) -> bool:
    """Does a folder hold what is neither a site nor copies of one?"""
    return not (out / MADE).is_file() and any(p.name != FROZEN for p in out.iterdir())


def _is_inside(path: Path, folder: Path) -> bool:
    """Is a file, wherever its links lead, in a folder, and not among the copies?"""
    inside, copies = folder.resolve(), (folder / FROZEN).resolve()
    return path.resolve().is_relative_to(inside) and not path.resolve().is_relative_to(copies)


class Page(NamedTuple):
    """What a template of the site is filled with, besides which copy it is in. values: computed once."""

    address: str
    template: str
    kind: str
    title: str
    values: Callable[[], dict[str, Any]]


class Site:
    """What all pages are made of, computed once; `files` then fills the templates."""

    def __init__(self, found: Collection, day: str):
        self.boards, self.day = found.boards, day
        self.plugins = registry.METHODS.plugins()
        families = {name: registry.said(p.header())["family"] for name, p in self.plugins.items()}
        self.known = {n: tables.Known(p.summary(), p.facts(), families[n]) for n, p in self.plugins.items()}
        on_boards = {of.row.method for b in self.boards.values() for of in b.ranking.every}
        self.methods = sorted({*self.plugins, *on_boards})
        self.by_protocol: dict[str, dict[str, Collected]] = {}
        for name, board in self.boards.items():
            self.by_protocol.setdefault(board.ranking.study.protocol.name, {})[name] = board
        self.means: dict[str, MeanRanks | None] = {
            p: mean_ranks({n: b.ranking for n, b in these.items()}) for p, these in self.by_protocol.items()
        }
        words = private_words()
        self.records = {
            name: {key(r): _public(r, words, key(r) in board.archives) for r in board.ranking.study.records}
            for name, board in self.boards.items()
        }
        self.data: dict[str, tuple[str, str | bytes]] = dict(self._data())  # by address: what it is, and its content

    def files(self, frozen: str, copies: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
        """Every file by its address. frozen: the day, of a copy. copies: the days that copies are of."""
        told = {"version": dgbench.__version__, "date": self.day, "frozen": frozen, "copies": copies}
        for of in self.pages:
            own = {"root": "../" * of.address.count("/"), "here": of.address, "scripted": of.template != "run"}
            own |= {"kind": of.kind, "title": of.title}
            yield of.address, fill(f"site_{of.template}.html.jinja", **told, **own, **of.values())
        yield from ((address, content) for address, (_, content) in self.data.items())

    @functools.cached_property
    def pages(self) -> list[Page]:
        """What each page is made of, whichever copy it is in."""

        def page(address: str, template: str, kind: str, title: str, made: Callable[..., Any], *of: Any) -> Page:
            return Page(address, template, kind, title, functools.cache(functools.partial(made, *of)))

        found = [
            page("index.html", "start", "dgbench", "Boards", self._start),
            page("overview.html", "overview", "dgbench", "Methods x tasks", self._overview),
            page("methods/index.html", "methods", "dgbench", "Methods", self._methods),
            page("data/index.html", "data", "dgbench", "Downloads", self._files),
        ]
        for name, board in self.boards.items():
            found.append(page(board_page(name), "board", "Board", name, self._board, name, board))
            for run in board.ranking.study.records:
                title = f"{run.variant}, {run.source}, seed {run.seed}"
                found.append(page(run_page(name, run), "run", f"Run on {name}", title, self._run, name, board, run))
        return found + [page(method_page(m), "method", "Method", m, self._method, m) for m in self.methods]

    # --- pages -------------------------------------------------------------------------------------------------------

    def _start(self) -> dict[str, Any]:
        return {"boards": tables.boards_table(self.boards), "methods": len(self.methods)}

    def _overview(self) -> dict[str, Any]:
        parts = []
        for protocol, boards in self.by_protocol.items():
            means = self.means[protocol]
            table = tables.overview_table(protocol, boards, means)
            parts.append({"protocol": protocol, "table": table, "words": tables.words_of(list(boards), means)})
        return {"parts": parts}

    def _methods(self) -> dict[str, Any]:
        rows = {m: len(tables.method_rows(self.boards, m)) for m in self.methods}
        return {"methods": tables.methods_table({m: self.known.get(m) for m in self.methods}, rows)}

    def _files(self) -> dict[str, Any]:
        return {"files": {address: what for address, (what, _) in self.data.items()}}

    def _board(self, name: str, board: Collected) -> dict[str, Any]:
        ranking = board.ranking
        study = ranking.study
        links = {of.variant: f"../{method_page(of.row.method, name, of.variant)}" for of in ranking.every}
        reached, costs = tables.rows_table(ranking, links, self.known)
        beside = published.beside(published.load(study.task), study)
        ours = (f"data/{part(name)}/", f"data/published-{part(study.task)}.")
        counts = {"ranked": len(ranking.ranked), "not ranked": len(ranking.apart), "runs": len(study.records)}
        counts |= {"sources": len({r.source for r in study.records}), "target domains": len(study.targets)}
        return {
            "conclusion": leaderboard.conclusion(ranking),
            "counts": counts | {"target cases": len(ranking.target_cases.cases)},
            "higher": ranking.metric.higher_is_better,
            "reached": reached,
            "costs": costs,
            "published": leaderboard.published_table(ranking, beside),
            "protocol": study.protocol,
            "rules": study.protocol.rules(),
            "notes": leaderboard.notes(ranking),
            "files": {a: what for a, (what, _) in self.data.items() if a.startswith(ours)},
        }

    def _method(self, method: str) -> dict[str, Any]:
        rows = tables.method_rows(self.boards, method)
        plugin = self.plugins.get(method)
        text = plugin.path.read_text(encoding="utf-8", errors="replace") if plugin and plugin.path else ""
        ours = plugin is not None and plugin.origin == "dgbench"
        idea, facts, family = self.known.get(method, tables.Known("", {}, ""))
        tasks = [b.ranking.study.task for _, b, _ in rows if is_named(b.ranking.study.task)]
        task = tasks[0] if tasks else "TASK"
        can = plugin is not None or all(p in self.plugins for p in method.split("+"))
        return {
            "idea": idea,
            "family": family,
            "rows": tables.method_table(rows),
            "details": [self._row(*row) for row in rows],
            "card": {
                "file": f"methods/{method}.py" if ours else "" if can else "it does not come with dgbench",
                "paper": facts.get("paper", ""),
                "needs": ", ".join(words for what, words in registry.NEEDS.items() if what in facts),
                "pretrained": facts.get("pretrained", ""),
            },
            "header": _header(text) if ours else "",
            "commands": [f"dgbench explain {method}", f"dgbench run --method {method} --task {task}"] if can else [],
            "source": text if ours else "",
        }

    def _row(self, name: str, board: Collected, of: Any) -> dict[str, Any]:
        study, metric = board.ranking.study, board.ranking.metric.name
        matrix = study.matrix(of.variant, metric)
        caption = f"{of.variant} on {name}: {heading(study, metric)}; rows are sources, columns targets"
        return {
            "id": tables.row_id(name, of.variant),
            "variant": of.variant,
            "board": name,
            "why": of.why,
            "matrices": [score_tables.matrix_table(matrix, "", caption, Scale.of([matrix]))],
            "runs": tables.runs_table(name, board, of.variant),
        }

    def _run(self, name: str, board: Collected, run: RunRecord) -> dict[str, Any]:
        root = "../../../"
        return {
            "run": run,
            "board": name,
            "up": root + method_page(run.method, name, run.variant),
            "board_page": root + board_page(name),
            "again": board.again.get(key(run)),
            "scores": tables.scores_table(board.ranking, run),
            "quoted": run.published["words"] if run.published else "",
            "commands": list(_again(run, board.archives.get(key(run), ""))),
            "record": _json(self.records[name][key(run)]),
        }

    # --- files -------------------------------------------------------------------------------------------------------

    def _data(self) -> Iterator[tuple[str, tuple[str, str | bytes]]]:
        """By address, what a file is and what is in it."""
        listed = []
        for name, board in self.boards.items():
            ranking, folder = board.ranking, f"data/{part(name)}"
            study = ranking.study
            told = {"board": name, "task": study.task, "protocol": study.protocol.name}
            told |= {"metric": ranking.metric.name, "unit": "fraction" if ranking.unit == "%" else ranking.unit}
            listed.append(told | {"ranked": len(ranking.ranked), "not_ranked": len(ranking.apart)})
            listed[-1] |= {"runs": len(study.records), "page": board_page(name), "files": f"{folder}/"}
            numbers = study.cells.drop(columns="method")
            yield from _both(f"{folder}/leaderboard", f"the rows of {name}", ranking.frame(), told)
            what = f"{name}: a row for each run, target, structure and metric"
            yield f"{folder}/cells.csv", (what, csv_text(numbers))
            records = [self.records[name][key(r)] for r in study.records]
            yield f"{folder}/runs.json", (f"{name}: the record of every run", _json(told | {"runs": records}))
        for task in dict.fromkeys(b.ranking.study.task for b in self.boards.values()):
            if len(quoted := published.load(task)):
                what = f"numbers that papers report on {task}"
                yield from _both(f"data/published-{part(task)}", what, quoted, {"task": task})
        yield from _both("data/boards", "all boards", pd.DataFrame(listed), {})
        for protocol, means in self.means.items():
            if means is not None:
                what = f"mean ranks over the boards of protocol {protocol}"
                of = {"protocol": protocol, "boards": means.boards, "tasks": means.tasks, "tasks_drawn": means.drawn}
                yield from _both(f"data/mean-ranks-{part(protocol)}", what, means.frame(), of)


def _both(
    address: str, what: str, frame: pd.DataFrame, told: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str | bytes]]]:
    """A frame as CSV and as JSON."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    yield f"{address}.csv", (what, csv_text(frame))
    yield f"{address}.json", (what, _json({**told, "rows": rows}))


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _public(run: RunRecord, words: list[str], passed_on: bool) -> dict[str, Any]:
    """What of a run's record may be read by all: paths and names of this machine and its user are taken out."""
    if passed_on or run.published:
        return {k: None if v != v else v for k, v in run.record.items() if k != "costs" or not run.published}
    return {k: v if k in IDENTITY else cleaned(v, words, k, []) for k, v in run.record.items()}


def _header(text: str) -> str:
    """The docstring of a file, without its first line."""
    try:
        return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[2].strip("\n")
    except SyntaxError:
        return ""


def _again(run: RunRecord, archive: str) -> Iterator[str]:
    """The lines that make a run again, from its record, or without."""
    if run.published:
        return
    results = archive.removesuffix(".tar.xz") or "results"
    if archive:
        yield shlex.join(["mkdir", results])
        yield shlex.join(["tar", "-xJf", f"results/{archive}", "-C", results])
    if not run.external:
        place = "/".join([results, run.task, run.protocol, run.variant, run.path.name])
        where = [] if is_named(run.task) else ["--task", f"PATH/TO/{run.task}"]
        yield shlex.join(["dgbench", "reproduce", place, *where])
        yield "# or from its settings alone:"
    yield from commands([run], None)
