"""The report: all that the runs of one task under one protocol say, as one HTML page that opens without a network."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

import dgbench
from dgbench import registry
from dgbench.errors import DgbenchError
from dgbench.files import make_folder, write_atomic
from dgbench.pages import cards, figures, html_tables, plots, present, tables
from dgbench.pages.figures import Interval, Picture
from dgbench.pages.tables import number
from dgbench.protocol import Protocol
from dgbench.running.records import RunRecord
from dgbench.scores import domain_shift, published, ranking
from dgbench.scores.domain_shift import Intensities
from dgbench.scores.ranking import Leaderboard, possible
from dgbench.scores.statistics import CaseScores, Friedman, Resampling, estimate, friedman
from dgbench.task import Task

PICTURES, OF_VARIANT = 48, 4  # the most worst cases on the page, and of one variant
LARGEST_SVG = 600_000  # characters; a drawing with more marks becomes an image
CURVE_POINTS = 60
FLAGS = {"missed": "missed", "false_positive": "falsely found", "both_empty": "in neither mask"}


class Drawing(NamedTuple):
    """A figure of the page: an <svg>, or else an image as a data URI. width: in CSS pixels."""

    alt: str
    width: int
    svg: str
    uri: str


class Worst(NamedTuple):
    """A case that a variant did badly on."""

    picture: Picture
    alt: str
    score: str
    where: str


def write(
    task: Task | None, records: Sequence[RunRecord], protocol: Protocol, board: Leaderboard, folder: Path
) -> Path:
    """Write the page into a folder, as report.html. Everything else is as for `build`."""
    page = build(task, records, protocol, board)
    path = make_folder(Path(folder)) / "report.html"
    write_atomic(path, page)
    return path


def build(task: Task | None, records: Sequence[RunRecord], protocol: Protocol, board: Leaderboard) -> str:
    """The page: a function of its arguments, and of the task's images where there are any.

    task: None where the images are not at hand; the page then has no pictures and says so. board: of these records;
    runs whose seed it leaves out, for want of a source, are in no other part of the page either.
    """
    seeds = {row.variant: row.seeds for row in (*board.rows, *board.apart)}
    records = [r for r in records if r.seed in seeds.get(r.variant, ())]
    records.sort(key=lambda r: (r.variant, r.source, r.seed))
    first, variants = records[0].record, list(seeds)
    links = {variant: f"#variant-{i}" for i, variant in enumerate(variants)}
    cells = tables.cells(records, protocol)
    metrics = ("dice", *(m for m in protocol.metrics if m != "dice"))[:2]
    headings = {m: tables.heading(cells, records, protocol, m, None) for m in metrics}
    matrices = {m: [tables.matrix(cells, protocol, v, m) for v in variants] for m in metrics}
    means = {m: plots.case_means(records, protocol, m) for m in metrics}
    reached, costs = ranking.board_tables(board)
    friedmans, no_ranking = _friedman(board)
    domains, no_images = _domains(task, records)
    points = domain_shift.losses(matrices["dice"], domains)
    quoted = published.load(records[0].task)
    correlation = domain_shift.rank_correlation(points)
    counter = itertools.count()

    def draw(figure: Figure, alt: str) -> Drawing:
        svg, width = figures.svg(figure, f"figure{next(counter)}"), round(96 * figure.get_figwidth())
        return Drawing(alt, width, svg, "") if len(svg) <= LARGEST_SVG else Drawing(alt, width, "", figures.png(figure))

    page: dict[str, Any] = {
        "version": dgbench.__version__,
        "made_of": _made_of(records),
        "task": records[0].task,
        "protocol": protocol,
        "board": board,
        "links": links,
        "counts": {
            "variants": len(variants),
            "runs": len(records),
            "sources": len({r.source for r in records}),
            "target domains": len({d for r in records for d in r.record["targets"]}),
            "target cases": len(means["dice"].index.droplevel("variant").unique()),
            "seeds": max(map(len, seeds.values())),
        },
        "conclusion": ranking.conclusion(board),
        "reached": html_tables.sheet(reached, links),
        "costs": html_tables.sheet(costs, links, costs.foot),
        "forest": draw(_forest(board), f"{board.heading} of each variant, its mean and each target, with intervals"),
        "ranking": friedmans,
        "no_ranking": no_ranking,
        "heat": {
            variant: [html_tables.heat(of[i], headings[m], of) for m, of in matrices.items()]
            for i, variant in enumerate(variants)
        },
        "boxes": {
            m: draw(plots.target_boxes(records, protocol, m), f"{headings[m]}: a box for each variant and target")
            for m in metrics
        },
        "quartiles": {m: html_tables.quartiles(means[m], m, headings[m], links) for m in metrics},
        "hardest": html_tables.hardest(means["dice"], variants),
        "worst": _worst(task, records, variants, domains) if task else {},
        "no_images": no_images,
        "scores_alone": [v for v in variants if not any(r.has_predictions for r in records if r.variant == v)],
        "shift": None,
        "shift_words": _correlation(correlation),
        "shift_definition": domain_shift.DEFINITION,
        "intensities": html_tables.intensities(domains),
        "distances": html_tables.distances(domains),
        "curves": draw(plots.learning_curves(records, CURVE_POINTS), "Training loss against step, a panel per variant"),
        "card": cards.card(task) if task else {"task": first["task"], "citation": first.get("citation", "")},
        "rules": asdict(protocol),
        "means": tables.MEANS[protocol.mean],
        "environment": html_tables.environment(records),
        "commands": {v: _commands([r for r in records if r.variant == v], task) for v in variants},
        "papers": {r.variant: paper for r in records if (paper := r.record.get("paper", "")).startswith("https://")},
        "published": html_tables.published(
            published.beside(quoted, cells, records, protocol), list(quoted["citation"])
        ),
    }
    if friedmans:
        average = {r.variant: float(rank) for r, rank in zip(board.rows, friedmans.average_ranks, strict=True)}
        words = ", ".join(f"{v} {rank:.2f}" for v, rank in average.items())
        page["ranks"] = draw(figures.critical_difference(average, friedmans.critical), f"Average ranks: {words}")
    if len(points):
        sources = [d for d in domains if d in set(points["source"])]
        alt = "Dice lost from source to target against the distance of their intensities, one panel per variant"
        page["shift"] = draw(figures.domain_shift(points, correlation, sources), alt)
    return _render(page)


def _render(page: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    environment.filters["digest"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(page)


def _breakable(text: str) -> Markup:
    """A name, escaped, that may go on in a new line after a bracket, a comma or the like."""
    return Markup(re.sub(r"(?<=[\[;,_/])(?=\w)", "<wbr>", str(escape(text))))


def _forest(board: Leaderboard) -> Figure:
    """The interval of every variant's mean and of its mean on each target."""
    rows, of_case = (*board.rows, *board.apart), np.array([domain for domain, _ in board.cases])
    scale = 100 if board.metric == "dice" else 1
    panels = {"mean": [Interval(r.mean * scale, r.low * scale, r.high * scale) for r in rows]}
    for target in dict.fromkeys(of_case):
        at = of_case == target
        drawn = Resampling(np.zeros(at.sum(), np.int64))
        panels[str(target)] = []
        for row in rows:
            found = Interval(row.targets.get(str(target), math.nan), math.nan, math.nan)
            scores = board.scores.get(row.variant)
            if scores is not None and scores.weight[at].sum() > 0:
                of_target = CaseScores(scores.values[:, at], scores.weight[at] / scores.weight[at].sum(), drawn.domain)
                of_mean = estimate(of_target, resampling=drawn)[0]
                found = Interval(of_mean.mean, *possible(of_mean, board.metric))
            panels[str(target)].append(Interval(*(scale * v for v in found)))
    label = f"{tables.TITLES.get(board.metric, board.metric)} ({board.unit})"
    limits = (-2.0, 102.0) if board.metric == "dice" else (0.0, math.inf)
    return figures.forest([r.variant for r in rows], panels, label, len(board.rows), limits)


def _friedman(board: Leaderboard) -> tuple[Friedman | None, str]:
    """The test of the ranked variants over target cases, or why there is none."""
    try:
        values = np.array([board.scores[r.variant].of_case for r in board.rows]).reshape(-1, len(board.cases))
        return friedman(values.T, board.lower_is_better), ""
    except ValueError as error:
        return None, str(error)


def _worst(
    task: Task, records: Sequence[RunRecord], variants: Sequence[str], domains: Mapping[str, Intensities]
) -> dict[str, list[Worst]]:
    """By variant: the target cases with the lowest Dice, each case once, by the run that did worst on it."""
    most = max(1, min(OF_VARIANT, PICTURES // len(variants)))
    found: dict[str, list[Worst]] = {}
    for variant in variants[:PICTURES]:
        scored: list[tuple[float, str, str, int]] = []
        for i, run in enumerate(records):
            if run.variant == variant and run.has_predictions:
                tested = run.cases[(run.cases["role"] == "target") & run.cases["domain"].isin(domains)]
                dice = tested.groupby(["domain", "case"], sort=False)["dice"].mean().dropna()
                scored += [(value, domain, case, i) for (domain, case), value in dice.items()]
        worst = {(entry[1], entry[2]): entry for entry in sorted(scored, reverse=True)}  # the worst one stays
        for value, domain, case, i in sorted(worst.values())[:most]:
            run = records[i]
            image, reference = present.seen(task, run, domain, case)
            prediction = run.predictions(domain, case)
            shown = plots.panel("", image, reference, prediction)
            d, n = plots.telling(reference, prediction) + 1, len(image)
            rows = run.cases[(run.cases["domain"] == domain) & (run.cases["case"] == case)]
            flags = [f"{s} {FLAGS[f]}" for s, f in zip(rows["structure"], rows["flag"], strict=True) if f in FLAGS]
            alt = f"{f'Slice {d} of {n} of case' if n > 1 else 'Case'} {case} of {domain}: the reference covers "
            alt += f"{shown.reference.any(0).mean():.1%}, the prediction {shown.prediction.any(0).mean():.1%} of it"
            where = f"{run.source} → {domain}, {case}, seed {run.seed}{f', slice {d} of {n}' if n > 1 else ''}"
            picture = figures.picture(shown.image, shown.reference, shown.prediction)
            score = ", ".join([f"Dice {number(value, 'dice')}", *flags])
            found.setdefault(variant, []).append(Worst(picture, alt, score, where))
    return found


def _domains(task: Task | None, records: Sequence[RunRecord]) -> tuple[dict[str, Intensities], str]:
    """The domains whose images are those the runs saw, and why others are left out."""
    if task is None:
        return {}, "The task's images are not at hand."
    seen = {domain: fingerprint for r in records for domain, fingerprint in r.record["data"].items()}
    found, reasons = {}, []
    for domain in (d for d in records[0].record["domains"] if d in seen):
        try:
            there = domain_shift.intensities(task, domain)
        except DgbenchError as error:
            reasons.append(f"{domain}: {error.cause}.")
            continue
        if there.fingerprint.startswith(seen[domain]):
            found[domain] = there
        else:
            reasons.append(f"{domain}: its images, or the task's code, changed since these runs.")
    return found, " ".join(reasons)


def _correlation(by_variant: pd.Series) -> str:
    known = by_variant.dropna()
    if known.empty:
        return "Too few pairs of source and target for a rank correlation."
    low, high = (f"{v:.2f}".replace("-", "\N{MINUS SIGN}") for v in (known.min(), known.max()))
    between = f"is {low}" if low == high else f"lies between {low} and {high} over the variants"
    found = f"Spearman's {figures.RHO} of distance and loss {between}."
    return f"{found} The pairs share domains and are not independent, so there is no p-value."


def _made_of(records: Sequence[RunRecord]) -> str:
    """sha256 over the runs and what each was made from: two pages with one value tell of the same runs."""
    lines = [f"{r.variant}/{r.source}-seed{r.seed} {r.record['fingerprint']}\n" for r in records]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _commands(records: Sequence[RunRecord], task: Task | None) -> list[str]:
    """The lines for a shell that make the runs of one variant again."""
    name, plugins = records[0].task, registry.METHODS.plugins()
    data = str(task.data) if task and task.data else f"PATH/TO/{name}"
    where = ["--task", name if name in registry.TASKS.names() else data, "--protocol", records[0].protocol]
    sources: dict[tuple[str, tuple, str | None], dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        settings = tuple(sorted(r.record.get("settings", {}).items()))
        sources[r.method, settings, r.record.get("checkpoint")][r.seed].append(r.source)
    lines = []
    for (method, settings, checkpoint), by_seed in sources.items():
        plugin = []
        for part in method.split("+"):
            known = plugins.get(part)
            if known is None or known.origin == str(known.path):
                plugin.append(str(known.path) if known else f"{part}.py")
        for these in dict.fromkeys(map(tuple, by_seed.values())):
            seeds = ",".join(str(seed) for seed, of in by_seed.items() if tuple(of) == these)
            words = ["dgbench", "run", "--method", method, *where, "--seed", seeds]
            if set(these) != set(records[0].record.get("sources", ())):
                words += [w for source in these for w in ("--source", source)]
            words += [w for key, value in settings for w in ("--set", f"{key}={value}")]
            words += ["--checkpoint", checkpoint] if checkpoint else []
            lines.append(shlex.join([*words, *(w for p in plugin for w in ("--plugin", p))]))
    return lines
