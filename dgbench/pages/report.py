"""The report: all that the runs of one task under one protocol say, as one HTML page that opens without a network."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import dgbench
from dgbench.errors import DgbenchError
from dgbench.files import make_folder, write_atomic
from dgbench.images import preparation
from dgbench.metrics import METRICS
from dgbench.pages import cards, drawing, figures, leaderboard, pictures, rank_map, score_tables
from dgbench.pages import multiverse as multiverse_pages
from dgbench.pages.captions import ORDER_OF_MEANS, heading
from dgbench.pages.commands import commands
from dgbench.pages.pictures import Picture
from dgbench.pages.score_tables import Scale
from dgbench.pages.table import fill
from dgbench.plausibility import Doubt
from dgbench.scores import domain_shift, multiverse, published
from dgbench.scores.domain_shift import Intensities
from dgbench.scores.multiverse import Multiverse
from dgbench.scores.ranking import Ranking
from dgbench.scores.study import Study
from dgbench.task import Task

PICTURES, OF_VARIANT = 48, 4  # the most worst cases on the page, and of one variant
MASKS = 4  # the most masks of a domain that are shown because they are odd
LARGEST_SVG = 600_000  # characters; a drawing with more marks becomes an image
CURVES, CURVE_POINTS = "Training loss against step, a panel per variant", 60
FLAGS = {"missed": "missed", "false_positive": "falsely found", "both_empty": "in neither mask"}


class Drawing(NamedTuple):
    """A figure of the page: an <svg>, or else an image as a data URI. width: in CSS pixels."""

    alt: str
    width: int
    svg: str
    uri: str


class Odd(NamedTuple):
    """A mask that may not be what it was meant to be, beside its image. uri: both, width x height pixels."""

    uri: str
    width: int
    height: int
    alt: str
    doubt: Doubt


class Worst(NamedTuple):
    """A case that a variant did badly on."""

    picture: Picture
    alt: str
    score: str
    where: str


def write(task: Task | None, ranking: Ranking, folder: Path, universes: Multiverse | None = None) -> Path:
    """Write the page into a folder, as report.html. Everything else is as for `build`."""
    page = build(task, ranking, universes)
    path = make_folder(Path(folder)) / "report.html"
    write_atomic(path, page)
    return path


def build(task: Task | None, ranking: Ranking, universes: Multiverse | None = None) -> str:
    """The page: a function of its arguments, and of the task's images where there are any.

    task: None where the images are not at hand; the page then has no pictures and says so. universes: of the ranking,
    by default those that its scores alone allow. Runs that the ranking leaves out, for want of a source, are in no part
    of the page.
    """
    study = ranking.study
    links = {of.variant: f"#variant-{i}" for i, of in enumerate(ranking.every)}
    domains, no_images = _domains(task, study)
    return fill(
        "report.html.jinja",
        scripted=True,
        version=dgbench.__version__,
        made_of=_made_of(study),
        ranking=ranking,
        study=study,
        protocol=study.protocol,
        links=links,
        conclusion=leaderboard.conclusion(ranking),
        notes=leaderboard.notes(ranking),
        no_images=no_images,
        worst=_worst(task, ranking, domains) if task else {},
        scores_alone=[v for v in links if not any(r.has_predictions for r in study.runs[v])],
        card=cards.card(task) if task else {"task": study.task, "citation": study.records[0].record.get("citation")},
        odd=[odd for d, there in domains.items() if there.prepared for odd in _odd(d, there.prepared)],
        doubts=sum(len(there.prepared.doubts) for there in domains.values() if there.prepared),
        rules=study.protocol.rules(),
        order_of_means=ORDER_OF_MEANS[study.protocol.mean],
        commands={v: list(commands(study.runs[v], task)) for v in links if not study.row(v).published},
        quoted={v: words for v in links if (words := study.row(v).published)},
        papers={r.variant: p for r in study.records if (p := r.record.get("paper", "")).startswith("https://")},
        **_tables(ranking, links, domains),
        **_choices(universes or multiverse.multiverse(ranking)),
        **_shift(study, links, domains),
    )


def _tables(ranking: Ranking, links: Mapping[str, str], domains: Mapping[str, Intensities]) -> dict[str, Any]:
    """The page's tables, and the figures that show the same numbers."""
    study, variants = ranking.study, list(links)
    metrics = ("dice", *(m for m in study.metrics if m != "dice"))[:2]
    scales = {m: Scale.of([study.matrix(v, m) for v in variants]) for m in metrics}
    reached, costs = leaderboard.board_tables(ranking, links=links)
    quoted, made = published.load(study.task), [v for v in variants if not study.row(v).published]
    about = heading(study, ranking.metric.name)
    boxes = {m: f"{heading(study, m)}: a box for each variant and target" for m in metrics}
    return {
        "counts": {
            "variants": len(variants),
            "runs": len(study.records),
            "sources": len({r.source for r in study.records}),
            "target domains": len(study.targets),
            "target cases": len(study.case_means().index.droplevel("variant").unique()),
            "seeds": max(len(of.row.seeds) for of in ranking.every),
        },
        "reached": replace(reached, foot=""),  # the notes stand at the end of the page
        "costs": costs,
        "spent": _draw(figures.cost(ranking), f"{about} against the FLOPs of training") if _counted(ranking) else None,
        "forest": _draw(figures.forest(ranking), f"{about} of each variant, its mean and each target, with intervals"),
        "frames": figures.frames(ranking),
        "heat": {
            v: [score_tables.matrix_table(study.matrix(v, m), "", heading(study, m), scales[m]) for m in metrics]
            for v in variants
        },
        "boxes": {m: _draw(figures.target_boxes(study, m), alt) for m, alt in boxes.items()},
        "quartiles": {m: score_tables.quartiles(study, m, links) for m in metrics},
        "hardest": {m: score_tables.hardest(study, variants, m) for m in metrics},
        "intensities": score_tables.intensities(domains),
        "distances": score_tables.distances(domains),
        "curves": _draw(figures.learning_curves(study.only(made), CURVE_POINTS), CURVES) if made else None,
        "machines": score_tables.machines(study),
        "published": leaderboard.every_published_number(published.beside(quoted, study), list(quoted["citation"])),
    }


def _choices(found: Multiverse) -> dict[str, Any]:
    """What other choices would change."""
    alt = "The rank of each variant in every universe, as a number and as colour"
    ranks, *pairs = multiverse_pages.tables(found)
    return {
        "choices": multiverse_pages.sentence(found),
        "universes": len(found.universes),
        "rank_map": _draw(rank_map.rank_map(found), alt) if len(found.variants) > 1 else None,
        "choice_tables": [replace(ranks, foot=multiverse_pages.HONEST), *pairs],
        "choice_notes": [n for n in multiverse_pages.notes(found) if n != multiverse_pages.HONEST],
    }


def _counted(ranking: Ranking) -> bool:
    """Is there any variant whose training is counted in FLOPs?"""
    return any(math.isfinite(of.row.train_flops) and math.isfinite(of.row.mean) for of in ranking.every)


def _draw(figure: Figure, alt: str) -> Drawing:
    prefix = hashlib.sha256(alt.encode()).hexdigest()[:8]  # no two figures of a page show the same
    svg, width = drawing.svg(figure, f"f{prefix}"), round(96 * figure.get_figwidth())
    return Drawing(alt, width, svg, "") if len(svg) <= LARGEST_SVG else Drawing(alt, width, "", drawing.png(figure))


# --- images ----------------------------------------------------------------------------------------------------------


def _domains(task: Task | None, study: Study) -> tuple[dict[str, Intensities], str]:
    """The domains whose images are those the runs saw, and why others are left out."""
    if task is None:
        return {}, "The task's images are not at hand."
    if not any(r.record["data"] for r in study.records):
        return {}, "Of these runs only the scores are at hand."
    seen = {domain: fingerprint for r in study.records for domain, fingerprint in r.record["data"].items()}
    found, reasons = {}, []
    for domain in (d for d in study.domains if d in seen):
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


def _worst(task: Task, ranking: Ranking, domains: Mapping[str, Intensities]) -> dict[str, list[Worst]]:
    """By variant: the target cases that lose most Dice, of the domains whose images are there."""
    most = max(1, min(OF_VARIANT, PICTURES // len(ranking.every)))
    found = {}
    for of in ranking.every[:PICTURES]:
        runs = [r for r in ranking.study.runs[of.variant] if r.has_predictions]
        if chosen := pictures.worst(runs, most, domains):
            found[of.variant] = [_shown(task, example) for example in chosen]
    return found


def _shown(task: Task, example: pictures.Example) -> Worst:
    shown = pictures.seen(task, example)
    run, domain, case, dice = example
    rows = run.cases[(run.cases["domain"] == domain) & (run.cases["case"] == case)]
    flags = [f"{s} {FLAGS[f]}" for s, f in zip(rows["structure"], rows["flag"], strict=True) if f in FLAGS]
    volume = shown.of > 1
    alt = f"{f'Slice {shown.number} of {shown.of} of case' if volume else 'Case'} {case} of {domain}: the reference "
    alt += f"covers {shown.reference.any(0).mean():.1%}, the prediction {shown.prediction.any(0).mean():.1%} of it"
    where = example.where + (f", slice {shown.number} of {shown.of}" if volume else "")
    known = [] if math.isnan(dice) else [f"Dice {METRICS['dice'].number(dice)}"]
    score = ", ".join([*known, *flags])
    return Worst(pictures.picture(shown), alt, score, where)


def _odd(domain: str, prepared: preparation.PreparedDomain) -> Iterator[Odd]:
    """The first odd masks of a domain as the network sees them, of a volume the slice that shows most of them."""
    for doubt in prepared.doubts[:MASKS]:
        case = prepared.cases[doubt.case]
        depth, *sides = case.shape
        h, w = preparation.network_box(sides[0], sides[1], prepared.masks.shape[-1])
        masks = prepared.masks[case.first : case.first + depth, :, :h, :w].astype(bool)
        most = int(masks.sum((1, 2, 3)).argmax())
        image = preparation.restored(prepared.images[case.first + most, :, :h, :w]).mean(axis=0)
        both = np.hstack([image, masks[most].any(axis=0)])
        where = f", slice {most + 1} of {depth}" if depth > 1 else ""
        alt = f"Image and mask of case {case.id} of {domain}{where}"
        yield Odd(pictures.thumbnail(both), both.shape[1], both.shape[0], alt, doubt)


def _shift(study: Study, variants: Mapping[str, str], domains: Mapping[str, Intensities]) -> dict[str, Any]:
    """What is lost from source to target, against the distance of their intensities."""
    points = domain_shift.losses([study.matrix(v) for v in variants], domains)
    correlation = domain_shift.rank_correlation(points)
    figure = None
    if len(points):
        sources = [d for d in domains if d in set(points["source"])]
        alt = "Dice lost from source to target against the distance of their intensities, one panel per variant"
        figure = _draw(figures.domain_shift(points, correlation, sources), alt)
    return {"shift": figure, "shift_words": _correlation(correlation), "shift_definition": domain_shift.DEFINITION}


def _correlation(by_variant: pd.Series) -> str:
    known = by_variant.dropna()
    if known.empty:
        return "Too few pairs of source and target for a rank correlation."
    low, high = (f"{v:.2f}".replace("-", "\N{MINUS SIGN}") for v in (known.min(), known.max()))
    between = f"is {low}" if low == high else f"lies between {low} and {high} over the variants"
    found = f"Spearman's {figures.RHO} of distance and loss {between}."
    return f"{found} The pairs share domains and are not independent, so there is no p-value."


def _made_of(study: Study) -> str:
    """sha256 over the runs and what each was made from: two pages with one value tell of the same runs."""
    lines = [f"{r.variant}/{r.source}-seed{r.seed} {r.record['fingerprint']}\n" for r in study.records]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
