"""Multiverse in words: which ranks and which pairs hold under every choice, and what the others depend on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dgbench.files import make_folder, write_atomic
from dgbench.pages.captions import counted, heading
from dgbench.pages.table import Cell, Table, as_text, csv_text
from dgbench.scores.multiverse import Multiverse, Pair

PAIRS = 30  # the most that a table lists
HONEST = (
    "The universes share nearly all of their data: that many of them agree is no evidence that a difference is real, "
    "which is what intervals and tests are for. kept: the share of the universes that have the leaderboard's rank or "
    "order, inside each kind of choice, averaged over the kinds, so that a kind with many universes weighs no more "
    "than one with few."
)


def render(found: Multiverse, kind: str) -> str:
    """The tables as "md", "tex" or "html", or every rank in every universe as "csv"."""
    if kind == "csv":
        return csv_text(found.frame())
    return as_text(tables(found), kind, f"{found.board.study.task}: what would change the order")


def write(found: Multiverse, folder: Path) -> list[Path]:
    """Write the tables and the picture into the folders `tables` and `plots` of a folder; returns the paths."""
    from dgbench.pages import drawing, rank_map

    figure = rank_map.rank_map(found)
    texts = {make_folder(folder / "tables") / f"multiverse.{k}": render(found, k) for k in ("csv", "md", "tex", "html")}
    for path, text in texts.items():
        write_atomic(path, text)
    plots = make_folder(folder / "plots")
    return [*texts, *(drawing.save(figure, plots / f"multiverse.{kind}") for kind in ("png", "pdf"))]


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(found: Multiverse) -> list[Table]:
    """The ranks of every variant by kind of choice; and the pairs whose order is not the same everywhere."""
    return [_ranks(found), *([pairs] if (pairs := _pairs(found)) else [])]


def _ranks(found: Multiverse) -> Table:
    kinds, rows = found.kinds, []
    for v, of in enumerate(found.board.ranked):
        ranks = found.ranks[:, v]
        known, kept = ~np.isnan(ranks), found.shifts[:, v] == 0
        others = {kind: ranks[u] for kind, u in kinds.items() if (known[u] & ~kept[u]).any()}
        told = "; ".join(f"{kind} {_span(these)}" for kind, these in others.items())
        texts = [of.variant, _span(ranks[:1]), of.rank_text, _span(ranks), _percent(found.share(kept, known)), told]
        rows.append([*map(Cell, texts)])
    study, n = found.board.study, len(found.universes)
    caption = (
        f"Rank by {heading(study, found.board.metric.name)}, task {study.task}, protocol {study.protocol.name}: on the "
        f"leaderboard, and over {counted(n, 'universe')}."
    )
    header = ("variant", "rank", "95 %", "over all", "kept", "another rank with")
    return Table(_label(found, "ranks"), caption, header, [("", rows)], foot=" ".join(notes(found)))


def _pairs(found: Multiverse) -> Table | None:
    changed = _changed(found)
    if not changed:
        return None
    rows = [
        [Cell(f"{p.one} before {p.other}"), Cell(f"{p.kept} of {p.known}"), Cell(_percent(p.share)), Cell(_causes(p))]
        for p in changed[:PAIRS]
    ]
    every = len(found.pairs)
    foot = f"The other {every - len(changed)} of {counted(every, 'pair')} keep their order in every universe."
    if len(changed) > PAIRS:
        foot = f"Not shown: {counted(len(changed) - PAIRS, 'pair')} more. {foot}"
    caption = "Pairs of variants whose order is not that of the leaderboard in every universe."
    return Table(_label(found, "pairs"), caption, ("order", "universes", "kept", "depends on"), [("", rows)], foot=foot)


def _changed(found: Multiverse) -> list[Pair]:
    """Pairs whose order hangs on a choice: those of the first places first."""
    return [p for p in found.pairs if p.kept < p.known]


def _label(found: Multiverse, what: str) -> str:
    return f"{found.board.study.task}-{found.board.study.protocol.name}-{found.board.metric.name}-{what}"


def _span(ranks: np.ndarray) -> str:
    """ "2", or "1-3"; "" where it is never ranked."""
    known = ranks[~np.isnan(ranks)]
    if not len(known):
        return ""
    low, high = int(known.min()), int(known.max())
    return f"{low}" if low == high else f"{low}-{high}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


# --- words -----------------------------------------------------------------------------------------------------------


def sentence(found: Multiverse, most: int = 3) -> str:
    """What holds everywhere and what depends on a choice; of the pairs that change, `most` are named."""
    variants, n = found.variants, len(found.universes)
    if len(variants) < 2:
        return "Fewer than two variants can be ranked: there is no order that could change."
    first, changed = _first(found), _changed(found)
    if not changed:
        return f"{first} The order of all {len(variants)} variants is the same in all {n} universes."
    told = [f"{p.one} is before {p.other} in {p.kept} of {p.known}: it depends on {_causes(p, 3)}" for p in changed]
    more = f"; {counted(len(changed) - most, 'pair')} more" if len(changed) > most else ""
    keep = len(found.pairs) - len(changed)
    held = [kind for kind in found.kinds if not any(kind in p.changed for p in changed)]
    words = [first, f"{keep} of {counted(len(found.pairs), 'pair')} keep their order everywhere."]
    words += [f"{'; '.join(told[:most])}{more}.", f"No order changes with: {', '.join(held)}." if held else ""]
    return " ".join(filter(None, words))


def _first(found: Multiverse) -> str:
    """How often the first of the leaderboard is first."""
    ranks = found.ranks[:, 0]
    n, known = int((ranks == 1).sum()), int((~np.isnan(ranks)).sum())
    return f"{found.variants[0]} is first in {f'all {n}' if n == known else f'{n} of {known}'} universes."


def _causes(pair: Pair, most: int = 9) -> str:
    """What changes the order of a pair: kinds of choice, and at most so many of the choices of each."""
    return ", ".join(f"{kind} ({_listed(names, most)})" for kind, names in pair.changed.items())


def _listed(names: Sequence[str], most: int) -> str:
    return "; ".join(names[:most]) + (f"; {len(names) - most} more" if len(names) > most else "")


def notes(found: Multiverse) -> list[str]:
    """What a universe is, how little their number says, what changes no number, what could not be looked at."""
    told = [
        "A universe is the leaderboard under another choice: the same variants, ranked by the same rule; one without a "
        "mean there has no rank there. 95 %: the rank's bootstrap interval on the leaderboard. over all: the lowest "
        "and the highest.",
        HONEST,
        "left out: each target, source, seed, or third of every target's cases by the size of its references, one at a "
        "time; a seed of one variant has nothing in common with that of another.",
    ]
    for universe in found.universes:
        if universe.same:
            whose = f"as with {universe.label}" if universe.parts else "as on the leaderboard"
            told.append(f"The same numbers {whose}: {'; '.join(same.label for same in universe.same)}.")
    return [*told, *missing(found.missing)]


def missing(reasons: Mapping[str, str]) -> list[str]:
    """What could not be looked at, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for what, why in reasons.items():
        by_reason.setdefault(why, []).append(what)
    return [f"Not looked at: {', '.join(these)} ({why})." for why, these in by_reason.items()]
