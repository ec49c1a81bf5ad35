"""Tables of the site, and addresses: boards, their rows with drawn intervals, methods over tasks, a run's scores."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import pandas as pd

from dgbench import registry
from dgbench.metrics import METRICS
from dgbench.names import MOST, WINDOWS
from dgbench.pages import leaderboard
from dgbench.pages.captions import counted, heading
from dgbench.pages.score_tables import facts
from dgbench.pages.table import Cell, Table, groups
from dgbench.running.records import RunRecord
from dgbench.scores.collection import Collected, key
from dgbench.scores.mean_ranks import LEAST_TASKS, MeanRanks, row_name
from dgbench.scores.ranking import Ranked, Ranking

BASELINE = "baseline"  # the family of plain training
SEEN, FAMILY, COST = "weights saw", "family", ("train TFLOP", "train s")
DRAWN = "95 % interval"


# --- addresses -------------------------------------------------------------------------------------------------------


def part(name: str) -> str:
    """A name as part of an address, the same wherever the site is made: as it is, where every system stores it so.

    Else what can be kept of it and a hash of the whole, so that two names are never one.
    """
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and len(name) <= MOST and not WINDOWS.fullmatch(name):
        return name if name != "index" else "index-"
    kept = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:60]
    return f"{kept}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}".lstrip("-")


def board_page(board: str) -> str:
    """The address of a board."""
    return f"boards/{part(board)}.html"


def method_page(method: str, board: str = "", variant: str = "") -> str:
    """The address of a method, or of one of its rows there."""
    return f"methods/{part(method)}.html" + (f"#{row_id(board, variant)}" if board else "")


def row_id(board: str, variant: str) -> str:
    """Of a row on its method's page."""
    return f"{part(board)}--{part(variant)}"


def run_page(board: str, run: RunRecord) -> str:
    """The address of a run."""
    return f"runs/{part(board)}/{part(run.variant)}/{part(run.source)}-seed{run.seed}.html"


# --- boards ----------------------------------------------------------------------------------------------------------


def boards_table(boards: Mapping[str, Collected]) -> Table:
    """One row for each board."""
    rows = []
    for name, board in boards.items():
        ranking = board.ranking
        study, first = ranking.study, next(iter(ranking.ranked), None)
        best = f"{first.variant} {_with_interval(ranking, first)}" if first else "nothing can be ranked"
        seeds = sorted({len(of.row.seeds) for of in ranking.every})
        texts = (
            f"{len(ranking.ranked)} of {len(ranking.every)}",
            "published" if all(r.published for r in study.records) else "here",
            "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))),
            f"{len(study.sources)} x {len(study.targets)}",
            str(len(ranking.target_cases.cases)),
            best,
        )
        rows.append([Cell(name, href=board_page(name)), Cell(study.task), Cell(study.protocol.name), *map(Cell, texts)])
    header = ("board", "task", "protocol", "ranked", "made", "seeds", "domains", "cases", "first by its mean")
    caption = "All boards. domains: sources x targets; cases: of all targets; in brackets a 95 % interval"
    return Table("boards", caption, header, [("", rows)], filters=_choices("task", "protocol", "made"))


def _choices(*columns: str) -> dict[str, Literal["choice", "most"]]:
    return dict.fromkeys(columns, "choice")


def _with_interval(ranking: Ranking, of: Ranked) -> str:
    mean, low, high = map(ranking.metric.number, (of.row.mean, of.low, of.high))
    return f"{mean} [{low} to {high}]" if low else mean


class Known(NamedTuple):
    """A method as its file describes it: the idea in a sentence, what its classes state, and its kind of idea."""

    idea: str
    facts: Mapping[str, str]
    family: str


def rows_table(ranking: Ranking, links: Mapping[str, str], known: Mapping[str, Known]) -> list[Table]:
    """The leaderboard's own tables, the first with intervals drawn and with columns by which rows can be chosen.

    links: where a variant's name leads. known: the methods that are at hand.
    """
    reached, costs = leaderboard.board_tables(ranking, links=links)
    scale = ranking.metric.number
    ends = [v for of in ranking.every for v in (of.low, of.high, of.row.mean) if math.isfinite(v)] or [0.0, 1.0]
    least, most = min(ends), max(ends)
    drawn, last = reached.header.index(DRAWN), len(reached.header) - 1
    said = [facts(of.row, ranking.metric) for of in ranking.every]
    cost = next((name for name in COST if any(told[name] not in ("", "-") for told in said)), "")
    rows = []
    for row, of, told in zip(reached.rows, ranking.every, said, strict=True):
        span = None
        if math.isfinite(of.row.mean):
            low, high = (v if math.isfinite(v) else of.row.mean for v in (of.low, of.high))
            start, at, end = ((v - least) / ((most - least) or 1) for v in (low, of.row.mean, high))
            span = start, at, end
        cells = [*row]
        cells[drawn] = row[drawn]._replace(span=span, kind="" if of.rank else "home")
        more = [family(ranking.study.runs[of.variant][0], known), told["initialisation"], of.row.contaminated]
        cells[last:last] = [Cell(text) for text in [*more, *([told[cost].replace("-", "")] if cost else [])]]
        rows.append(cells)
    new = (FAMILY, "pretraining", SEEN, *([cost] if cost else []))
    foot = f"{SEEN}: which images of this task the weights that a row started from are known or likely to have seen."
    return [
        replace(
            reached,
            header=(*reached.header[:last], *new, reached.header[last]),
            groups=groups(rows, len(ranking.ranked), "not ranked"),
            axis={DRAWN: (scale(least), scale(most))},
            filters=_choices(*new[:3]) | dict.fromkeys(new[3:], "most"),
            foot=foot,
        ),
        costs,
    ]


def family(run: RunRecord, methods: Mapping[str, Known]) -> str:
    """What kind of idea a row shows, by the headers of its method's files; of ideas over plain training the ideas'."""
    if run.external:
        return "of another system"
    said = dict.fromkeys(methods[part].family for part in run.method.split("+") if part in methods)
    ideas = [name for name in said if name not in ("", BASELINE)]
    return " + ".join(ideas) or (BASELINE if BASELINE in said else "not known")


# --- methods over tasks ----------------------------------------------------------------------------------------------


def overview_table(protocol: str, boards: Mapping[str, Collected], found: MeanRanks | None) -> Table:
    """Row x board: the interval of its rank; and its mean rank, where there is one."""
    of_row: dict[str, dict[str, tuple[Ranking, Ranked]]] = {}
    for name, of_board in boards.items():
        for of in sorted(of_board.ranking.every, key=lambda of: not of.row.published):
            of_row.setdefault(row_name(of.row), {})[name] = of_board.ranking, of
    means = {} if found is None else {row.name: row for row in found.rows}
    order = sorted(of_row, key=lambda name: (means[name].mean if name in means else math.inf, name))
    rows = []
    for name in order:
        cells = [Cell(name, href=method_page(next(iter(of_row[name].values()))[1].row.method))]
        for board in boards:
            if board not in of_row[name]:
                cells.append(Cell(""))
                continue
            ranking, of = of_row[name][board]
            if of.rank is None:
                cells.append(Cell("not ranked", "home"))
            else:
                level = 1 - (sum(of.rank) / 2 - 1) / max(1, len(ranking.ranked) - 1)
                href = method_page(of.row.method, board, of.variant)
                cells.append(Cell(f"{of.rank_text} of {len(ranking.ranked)}", level=level, href=href))
        if found is not None:
            mean = means.get(name)
            cells.append(Cell(f"{mean.mean:.2f} [{mean.low:.2f} to {mean.high:.2f}]" if mean else ""))
        rows.append(cells)
    caption = f"The rank on each board of protocol {protocol}: lowest and highest in 95 % of the draws, of how many"
    header = ("row", *boards, *(["mean rank"] if found else []))
    return Table(f"overview-{protocol}", caption, header, [("", rows)])


def words_of(boards: Sequence[str], found: MeanRanks | None) -> list[str]:
    """How the mean ranks were computed, and what they cannot say."""
    if found is None:
        few = f"{counted(len(boards), 'board')} of this protocol"
        return [f"No mean ranks: they need two boards that rank the same two rows, and there are none among {few}."]
    whole = f"{counted(len(found.rows), 'row')} that each of {', '.join(found.boards)} ranks"
    how = (
        f"Mean rank: of the {whole}, ranked among themselves on each board, equal ones sharing the mean of their "
        "ranks; boards of one task count as one. In brackets 95 % of that over the bootstrap draws of seeds and cases"
    )
    if not found.drawn:
        few = f"{counted(len(found.tasks), 'task')}, fewer than {LEAST_TASKS}"
        return [f"{how}.", f"Too few tasks ({few}) to say anything of others: the intervals are of these tasks alone."]
    p = "" if math.isnan(found.p) else f" Friedman's test that no row is better than another one: p = {found.p:.2g}."
    return [f"{how} and of tasks.{p}"]


# --- a method, a run -------------------------------------------------------------------------------------------------


def methods_table(methods: Mapping[str, Known | None], rows: Mapping[str, int]) -> Table:
    """One row for each method: its idea, what it needs, what it starts from, on how many boards it stands."""
    cells = []
    for name, known in methods.items():
        idea, facts, of = known or Known("", {}, "")
        needs = ", ".join(words for what, words in registry.NEEDS.items() if what in facts)
        texts = (idea.rstrip("."), of, needs, facts.get("pretrained", ""), str(rows.get(name, 0)))
        cells.append([Cell(name, href=f"{part(name)}.html"), *map(Cell, texts)])
    header = ("method", "what it is", FAMILY, "needs", "pretrained", "rows")
    caption, filters = "rows: on all boards, with any settings", _choices(FAMILY, "needs", "pretrained")
    return Table("methods", caption, header, [("", cells)], filters=filters)


def method_rows(boards: Mapping[str, Collected], method: str) -> list[tuple[str, Collected, Ranked]]:
    """Every row of a method: its board's name, the board, the row."""
    return [(n, b, of) for n, b in boards.items() for of in b.ranking.every if of.row.method == method]


def method_table(rows: Sequence[tuple[str, Collected, Ranked]]) -> Table:
    """The rows of a method on all boards."""
    cells = []
    for name, board, of in rows:
        ranking = board.ranking
        rank = f"{of.rank_text} of {len(ranking.ranked)}" if of.rank else "not ranked"
        mean, low, high = map(ranking.metric.number, (of.row.mean, of.low, of.high))
        texts = (rank, mean, f"{low} to {high}" if low else "", str(len(of.row.seeds)), of.row.initialisation)
        first = Cell(of.variant, href=f"#{row_id(name, of.variant)}")
        cells.append([first, Cell(name, href=f"../{board_page(name)}"), *map(Cell, texts)])
    header = ("row", "board", "rank", "mean", DRAWN, "seeds", "pretraining")
    title = METRICS[rows[0][1].ranking.metric.name].title if rows else ""
    return Table("rows", f"Its rows on all boards; mean: {title} in %", header, [("", cells)])


def runs_table(name: str, board: Collected, variant: str) -> Table:
    """The runs of a row, a link each: sources x seeds."""
    runs = board.ranking.study.runs[variant]
    seeds = sorted({r.seed for r in runs})
    by_source: dict[str, dict[int, RunRecord]] = {}
    for r in runs:
        by_source.setdefault(r.source, {})[r.seed] = r
    rows = []
    for source, of in by_source.items():
        cells = [Cell(source)]
        for seed in seeds:
            said = f"seed {seed}" if seed in of else ""
            if seed in of and (again := board.again.get(key(of[seed]))):
                said += f", reproduced: {again.verdict}"
            cells.append(Cell(said, href=f"../{run_page(name, of[seed])}" if seed in of else ""))
        rows.append(cells)
    header = ("source", *(f"seed {seed}" for seed in seeds))
    return Table("runs", f"The runs of {variant} on {name}", header, [("", rows)])


def scores_table(ranking: Ranking, run: RunRecord) -> Table:
    """What a run reached on each target and structure, by all metrics."""
    study = ranking.study
    cells = study.cells_of[run.variant]
    cells = cells[(cells["source"] == run.source) & (cells["seed"] == run.seed) & (cells["role"] != "")]
    several, rows = len(study.structures) > 1, []
    for (target, structure), these in cells.groupby(["target", "structure"], observed=True):
        of = these.set_index("metric")
        first = of.iloc[0]
        texts = [METRICS[m].number(float(of["value"][m])) for m in study.metrics]
        home = "home" if first["role"] == "validation" else ""
        counts = ["" if pd.isna(n) else str(n) for n in (first["n_cases"], first["n_missed"])]
        named = f"{target} (validation)" if home else str(target)
        row = [Cell(named, home), *([Cell(str(structure))] if several else []), *(Cell(t, home) for t in texts)]
        rows.append([*row, *map(Cell, counts)])
    metrics = [f"{METRICS[m].title} ({study.unit(m)})" for m in study.metrics]
    header = ("target", *(["structure"] if several else []), *metrics, "cases", "missed")
    what = heading(study, "dice").partition(" of ")[2]
    return Table("scores", f"Means over the cases of each domain, of {what}", header, [("", rows)])
