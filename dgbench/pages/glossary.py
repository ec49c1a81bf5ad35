"""Explain: what the words of a table mean, the definitions that circulate, and what each gives on one pair of masks.

The masks are drawn here and measured when the page is made; no result is typed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgbench import metrics
from dgbench.errors import require
from dgbench.metrics import Mask

SPACING = (3.0, 0.5, 0.5)  # mm between slices, rows and columns: thick slices, as most MRI
VOXELS = (1.0, 1.0, 1.0)
Lines = Sequence[tuple[str, str, str]]  # (a definition, its number, who uses it)


def masks() -> tuple[Mask, Mask]:
    """(prediction, reference), bool (6, 16, 16): the prediction lacks a side and has one slice too many."""
    reference = np.zeros((6, 16, 16), dtype=bool)
    reference[1:4, 4:12, 4:12] = True
    prediction = np.zeros_like(reference)
    prediction[1:5, 4:12, 6:12] = True
    return prediction, reference


def explain(topic: str) -> Group:
    """A page for `rich.console.Console.print`: it fits 80 columns, and is plain text where there is no terminal.

    Raises `UsageError` for a topic that there is no page on.
    """
    return TOPICS[require(topic, list(TOPICS), "topic")]()


# --- distances -------------------------------------------------------------------------------------------------------


def _asd() -> Group:
    prediction, reference = masks()
    kept = reference.any(axis=(1, 2))
    to_reference = metrics.asd(prediction, reference, SPACING)
    to_prediction = metrics.asd(reference, prediction, SPACING)
    sliced = [metrics.asd(p, r, SPACING[1:]) for p, r in zip(prediction, reference, strict=True) if (p | r).any()]
    diagonal = metrics.image_diagonal(prediction.shape[1:], SPACING[1:])
    found = [d for d in sliced if math.isfinite(d)]
    foreground = metrics.asd(prediction[kept], reference[kept], VOXELS)
    penalised = [min(d, diagonal) for d in sliced]
    speck = np.zeros_like(reference)
    speck[2, 4, 4] = True
    return _page(
        "ASD and ASSD: how far one surface lies from the other",
        "P and R are the border voxels of prediction and reference. Every voxel of one of them has a distance to the "
        "nearest voxel of the other. What is averaged, and in which unit, differs between papers that print the same "
        "three letters.",
        _masks_text(),
        _numbers(
            [
                ("P to R, mm, 3-D (directed)", _mm(to_reference), "ASD here, in MedPy, in DoFE"),
                ("R to P, mm, 3-D (directed)", _mm(to_prediction), "arguments the other way round"),
                ("mean of these two means", _mm((to_reference + to_prediction) / 2), "not ASSD: surfaces weigh alike"),
                ("both pooled, mm, 3-D", _mm(metrics.assd(prediction, reference, SPACING)), "ASSD here, in MedPy"),
                ("P to R, voxels, 3-D", _voxels(metrics.asd(prediction, reference, VOXELS)), "no spacing given"),
                ("P to R, voxels, slices of R only", _voxels(foreground), "protocol dapsam, as the authors' code"),
                ("P to R, mm, mean of 2-D slices", _mm(np.mean(found)), "extra slice skipped, so hidden"),
                ("the same, with a penalty", _mm(np.mean(penalised)), "extra slice costs its diagonal"),
            ]
        ),
        "A directed distance is blind on one side: a single voxel on the reference's border has ASD "
        f"{_mm(metrics.asd(speck, reference, SPACING))} and ASSD {_mm(metrics.assd(speck, reference, SPACING))}, at a "
        f"Dice of {metrics.dice(speck, reference):.3f}. Read ASD beside Dice, or read ASSD.",
        "What an empty mask does to any of these: dgbench explain missed.",
    )


def _hd95() -> Group:
    prediction, reference = masks()
    there, back = metrics.surface_distances(prediction, reference, SPACING)
    return _page(
        "HD95: how far off the worst parts of a surface are",
        "The Hausdorff distance is the largest of all surface distances, so one stray voxel decides it. HD95 takes the "
        "95th percentile instead. Of which list, is where libraries differ.",
        _masks_text(),
        _numbers(
            [
                ("95th percentile of both pooled", _mm(np.percentile(np.r_[there, back], 95)), "HD95 here, MedPy"),
                ("larger of two 95th percentiles", _mm(max(np.percentile(d, 95) for d in (there, back))), ""),
                ("mean of two 95th percentiles", _mm(np.mean([np.percentile(d, 95) for d in (there, back)])), ""),
                ("P to R only", _mm(np.percentile(there, 95)), "directed"),
                ("R to P only", _mm(np.percentile(back, 95)), "directed"),
                ("maximum (Hausdorff distance)", _mm(max(there.max(), back.max())), "HD"),
                ("pooled, in voxels", _voxels(metrics.hd95(prediction, reference, VOXELS)), "no spacing given"),
            ]
        ),
        "SAMed's code counts a missed structure as HD95 0, the best value there is: dgbench explain missed.",
    )


# --- overlap and means -----------------------------------------------------------------------------------------------


def _dice() -> Group:
    prediction, reference = masks()
    kept = reference.any(axis=(1, 2))
    slices = [metrics.dice(p, r) for p, r in zip(prediction, reference, strict=True)]
    known, filled = [d for d in slices if not math.isnan(d)], np.nan_to_num(slices, nan=1.0)
    foreground = metrics.dice(prediction[kept], reference[kept])
    return _page(
        "Dice: how much two masks overlap",
        "2 |P and R| / (|P| + |R|) over voxels: 1 is best, 0 is no overlap. It is 2-D or 3-D depending on the voxels "
        "that are counted together, and foreground slices only or all of a volume.",
        _masks_text(),
        _numbers(
            [
                ("whole volume", _percent(metrics.dice(prediction, reference)), "protocol sdg"),
                ("slices of the reference only", _percent(foreground), "protocol dapsam; DeSAM"),
                ("mean of slices, empty ones left out", _percent(np.mean(known)), "an extra slice costs a 0"),
                ("mean of slices, empty ones count 1", _percent(np.mean(filled)), "slices without organ raise it"),
            ]
        ),
        "Where both masks are empty Dice is 0/0. Here that is not applicable: counted, shown, in no mean. The "
        "sdg-protocol-audit counts it as 1. Slices chosen by the reference tell the method where the organ is, so a "
        "false positive elsewhere costs nothing.",
    )


def _mean() -> Group:
    cases = {"A": [0.9] * 30, "B": [0.9] * 13, "C": [0.6] * 43}
    of_domain = [float(np.mean(scores)) for scores in cases.values()]
    pooled = float(np.mean([s for scores in cases.values() for s in scores]))
    counts = ", ".join(f"{len(s)} cases of Dice {100 * s[0]:.0f} in {d}" for d, s in cases.items())
    return _page(
        "mean: what is averaged over what, in which order",
        f"One source, three targets: {counts}.",
        _numbers(
            [
                ("each target equal", _percent(np.mean(of_domain)), "protocol sdg"),
                ("all target cases pooled", _percent(pooled), "protocol dapsam; DeSAM"),
                ("the worst target", _percent(min(of_domain)), "shown beside the mean"),
            ]
        ),
        "protocol sdg: cases, then structures, then targets (each equal), then sources. protocol dapsam: the cases of "
        "all targets pooled, then structures, then sources. Seeds are averaged in each cell of the matrix. A published "
        "number may be one row of the matrix (one source) or the mean of all rows: compare like with like.",
        "A mean over a missing cell is blank: a method that failed on its hardest source is not better for it. The "
        "source's own validation cases are in no mean.",
    )


# --- what is left out of a mean --------------------------------------------------------------------------------------


def _missed() -> Group:
    prediction, reference = masks()
    found = metrics.asd(prediction, reference, SPACING)
    missed = metrics.measure(np.zeros_like(reference), reference, SPACING)
    diagonal = metrics.image_diagonal(reference.shape, SPACING)
    two = [found, missed.asd]
    return _page(
        "missed: a structure that is there and was not predicted",
        f"Its Dice is {missed.dice:.0f}; its surface distances do not exist (here {missed.asd}, flag "
        f"'{missed.flag}'). Two cases, one found with an ASD of {_mm(found)}, one missed. Their mean ASD, by what a "
        "code does with the second:",
        _numbers(
            [
                ("infinite", _mm(np.mean(two)), "no table can show it"),
                ("NaN", _mm(np.mean([found, math.nan])), "protocol dapsam, as the authors' code"),
                ("costs the image's diagonal", _mm(np.mean([found, diagonal])), "protocol sdg"),
                ("skipped", _mm(np.mean([found])), "'found' here, beside the count"),
                ("counts 0", _mm(np.mean([found, 0.0])), "SAMed's HD95: better than finding it"),
            ]
        ),
        "Skipping rewards a method for giving up on hard cases, and 0 even more. Look at the count of missed "
        "structures before comparing distances. 'false_positive' is the reverse, a structure predicted where there is "
        "none: same distances, same penalty. Both empty: not applicable, counted, in no mean.",
    )


def _oracle() -> Group:
    return _page(
        "oracle: a number that needed the answer",
        "SAM and its kin take a prompt, a point or a box. A prompt drawn from the target's reference mask tells the "
        "method where the organ is, in which slices, and how large. SAMMed's records have both kinds for one network: "
        "boxes of the reference mask add about 10 to 29 points of prostate Dice over predicted ones.",
        "Choosing the epoch or a setting on the targets is an oracle too: in the sdg-protocol-audit it added 0.0376 of "
        "Dice (7.4 %) to three methods, more than some methods add to plain training.",
        "Such rows stand apart here and are never ranked with the others. A method says it needs them by "
        "uses_target_masks = True; the weights that are tested are those of the last step, whatever the targets say.",
    )


def _gap() -> Group:
    return _page(
        "gap: how much worse a method does on the targets than on its own source",
        "Dice on the source's validation cases (held out, never trained on) minus mean Dice on the targets, in points; "
        "for distances the targets minus validation, so that a positive gap is always a loss.",
        "A small gap is no merit by itself: a method that is poor on its source has little to lose. Scoring the "
        "source on its training cases makes the gap look larger: 0.9353 instead of 0.8535 for plain training in the "
        "sdg-protocol-audit. The validation cases are few, so the gap is less certain than the mean.",
    )


TOPICS: dict[str, Callable[[], Group]] = {
    "asd": _asd, "assd": _asd, "hd95": _hd95, "dice": _dice, "mean": _mean, "missed": _missed, "oracle": _oracle,
    "gap": _gap,
}  # fmt: skip


# --- layout ----------------------------------------------------------------------------------------------------------


def _page(title: str, *parts: str | Table) -> Group:
    spaced = [piece for part in parts for piece in (Text(), Text(part) if isinstance(part, str) else part)]
    return Group(Text(title, "bold"), *spaced)


def _masks_text() -> str:
    """The pair in words, and one slice of it: r and p where only one of the masks is, # where both are."""
    prediction, reference = masks()
    middle = [np.where(reference[s] & prediction[s], 3, reference[s] + 2 * prediction[s]) for s in (2, 4)]
    rows = ["   ".join("".join(".rp#"[v] for v in line) for line in pair) for pair in zip(*middle, strict=True)]
    return (
        f"One pair of masks, {' x '.join(map(str, reference.shape))} voxels of "
        f"{' x '.join(map(str, SPACING))} mm: the prediction lacks a side of the organ and has one slice too many. "
        "A slice in the middle, and the extra one (r: reference only, p: prediction only, #: both):\n\n"
        + "\n".join(rows[3:13])
    )


def _numbers(lines: Lines) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("definition", no_wrap=True)
    table.add_column("gives", justify="right", no_wrap=True)
    table.add_column("who")
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def _shown(value: SupportsFloat, unit: str) -> str:
    number = 100 * float(value) if unit == "%" else float(value)
    return f"{number:.{2 if unit == '%' else 3}f} {unit}" if math.isfinite(number) else str(number)


_mm, _voxels, _percent = (functools.partial(_shown, unit=unit) for unit in ("mm", "voxels", "%"))
