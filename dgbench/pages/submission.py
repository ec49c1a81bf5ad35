"""Submission: what a review of submitted scores found, as Markdown for a comment beside them."""

from __future__ import annotations

import math

from dgbench.pages.captions import heading
from dgbench.pages.table import Cell, Table, as_text
from dgbench.scores.ranking import Ranked, Ranking
from dgbench.scores.submission import DISCLOSED, Effect, Review


def markdown(review: Review) -> str:
    """The verdict first, then what was disclosed, what is wrong or odd, and what becomes of each board."""
    n = len(review.problems)
    verdict = f"**{n} problem{'s' if n > 1 else ''}: it cannot be taken so.**" if n else "**No problem was found.**"
    parts = [f"## {', '.join(review.archives)}", verdict]
    for name, told in review.disclosures.items():
        rows = [
            [Cell(question), Cell(str(told.get(key, "")) or "not disclosed")] for key, question in DISCLOSED.items()
        ]
        parts.append(_text(Table("disclosed", f"What {name} discloses", ("question", "answer"), [("", rows)])))
    for title, sentences in (("What is wrong", review.problems), ("To be looked at by a person", review.doubts)):
        if sentences:
            parts.append("\n".join([f"### {title}", "", *(f"- {_plain(s)}" for s in sentences)]))
    parts += [_text(effect(of)) for of in review.effects]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def effect(of: Effect) -> Table:
    """A row for each variant on the board before or after: its rank and mean then and now."""
    then = {r.variant: r for r in of.before.every} if of.before else {}
    now = {r.variant: r for r in of.after.every}
    rows = []
    for variant in (*now, *(v for v in then if v not in now)):
        one, other = then.get(variant), now.get(variant)
        cells = (variant, _rank(one), _rank(other), _mean(of.after, one), _mean(of.after, other), _change(one, other))
        rows.append([Cell(text) for text in cells])
    about = heading(of.after.study, of.after.metric.name)
    caption = f"Task {of.task}, protocol {of.protocol}: {about}, before and with it"
    header = ("variant", "rank before", "rank with it", "mean before", "mean with it", "what changes")
    foot = " ".join(of.after.study.left_out)
    return Table("effect", caption, header, [("", rows)], foot=foot)


def _rank(of: Ranked | None) -> str:
    return "" if of is None else of.rank_text or "not ranked"


def _mean(ranking: Ranking, of: Ranked | None) -> str:
    return "" if of is None else ranking.metric.number(of.row.mean)


def _change(one: Ranked | None, other: Ranked | None) -> str:
    if other is None:
        return "gone"
    if one is None:
        return f"new; {other.why}" if other.why else "new"
    same = one.row.mean == other.row.mean or (math.isnan(one.row.mean) and math.isnan(other.row.mean))
    told = [] if same else ["another mean"]
    told += [] if one.rank == other.rank else ["another rank"]
    told += [] if one.why == other.why else [other.why or "ranked now"]
    return "; ".join(told)


def _text(table: Table) -> str:
    return as_text([table], "md", table.caption)


def _plain(sentence: str) -> str:
    """In one line, and nothing of it read as Markdown or HTML."""
    text = " ".join(sentence.split())
    return "".join(f"\\{c}" if c in "\\`*_<>[]|#@" else c for c in text)
