"""Remeasure: the masks that runs stored, compared with the references in another way than their protocol's.

What was stored is a mask after its threshold, on the slices and at the resolution of the run's protocol. Slices can be
taken from it and none added; another resolution is reached by nearest neighbour, where a run of another protocol would
have resized probabilities.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from dgbench import metrics
from dgbench.errors import DgbenchError
from dgbench.images.preparation import PreparedCase, PreparedDomain, mask_to_network, network_box, prepare
from dgbench.metrics import METRICS, Mask, Metric, Scores
from dgbench.protocol import Protocol
from dgbench.running.records import RunRecord
from dgbench.scores.study import Study
from dgbench.task import Task

OTHER: dict[str, dict[str, tuple[str, str]]] = {  # by field of `Protocol` and its value, another one and its name
    "slices": {"all": ("foreground", "only those with a structure")},
    "resolution": {"image": ("network", "the network's"), "network": ("image", "the image's own")},
    "distances": {"physical": ("voxel", "in voxels"), "voxel": ("physical", "by the image's spacing")},
}


def remeasured(study: Study, metric: Metric, task: Task | None) -> tuple[dict[tuple[str, str], Study], dict[str, str]]:
    """The same runs under protocols that differ in one choice, by (choice, name); and what could not be had, and why.

    The studies know `metric` alone. task: None where its images are not at hand.
    """
    if metric.name in metrics.FURTHER:
        return {}, dict.fromkeys(OTHER, f"{metric.title} is measured by runs alone")
    ways: dict[tuple[str, str], Protocol] = {}
    missing: dict[str, str] = {}
    for field, others in OTHER.items():
        value = getattr(study.protocol, field)
        if field == "distances" and not _is_distance(metric):
            continue
        if value not in others:
            missing[field] = "other slices than those of this protocol were not predicted"
            continue
        other, name = others[value]
        change: dict[str, Any] = {field: other, "metrics": (metric.name,)}
        ways[field, name] = dataclasses.replace(study.protocol, **change)
    scores_alone = sum(not r.has_predictions for r in study.records)
    try:
        if task is None:
            raise DgbenchError("the task's images are not at hand")
        if scores_alone:
            raise DgbenchError(f"of {scores_alone} of {len(study.records)} runs only the scores are at hand")
        return _studies(study, ways, task), missing
    except DgbenchError as error:
        return {}, missing | {field: error.cause for field, _ in ways}


def _studies(study: Study, ways: Mapping[tuple[str, str], Protocol], task: Task) -> dict[tuple[str, str], Study]:
    prepared: dict[tuple[str, int], PreparedDomain] = {}
    found: dict[tuple[str, str], list[RunRecord]] = {way: [] for way in ways}
    for r in study.records:
        size = r.record["hparams"].get("image_size") or r.record["image_size"]
        for domain in r.record["targets"]:
            if (domain, size) not in prepared:
                prepared[domain, size] = prepare(task, domain, size)
            if not prepared[domain, size].fingerprint.startswith(r.record["data"][domain]):
                raise DgbenchError(f"the images of {domain} are others than these runs saw")
        domains = {domain: prepared[domain, size] for domain in r.record["targets"]}
        for way, protocol in ways.items():
            again = RunRecord(r.path, r.record)
            vars(again)["cases"] = pd.DataFrame(_rows(r, domains, study.protocol, protocol))
            found[way].append(again)
    return {way: Study(records, ways[way]) for way, records in found.items()}


def _rows(
    run: RunRecord, domains: Mapping[str, PreparedDomain], own: Protocol, other: Protocol
) -> Iterator[dict[str, object]]:
    """The rows of cases.csv of a run's target cases, as the other protocol would have them."""
    targets = run.cases[run.cases["role"] == "target"]
    tested = targets.assign(group=targets.get("group", targets["case"])).drop_duplicates(["domain", "case"])
    for name, domain in domains.items():
        for case_id, group in tested.loc[tested["domain"] == name, ["case", "group"]].itertuples(index=False):
            case = domain.cases[case_id]
            prediction, reference = _masks(run.predictions(name, case.id), domain, case, own, other)
            spacing = _spacing(case, domain.masks.shape[-1], other)
            for k, structure in enumerate(run.record["structures"]):
                scores = _scores(prediction[:, k], reference[:, k], spacing, other.metrics)
                what = {"role": "target", "domain": name, "case": case.id, "group": group, "structure": structure}
                diagonal = metrics.image_diagonal(reference[:, k].shape, spacing)
                yield {**what, **scores._asdict(), "diagonal": diagonal}


def _masks(
    prediction: Mask, domain: PreparedDomain, case: PreparedCase, own: Protocol, other: Protocol
) -> tuple[Mask, Mask]:
    """(prediction, reference), bool (D, K, H, W), as the other protocol compares them."""
    kept = np.array(case.foreground) if other.slices == "foreground" else np.ones(case.shape[0], bool)
    if own.slices == "all":
        prediction = prediction[kept]
    size = domain.masks.shape[-1]
    if other.resolution == "network":
        reference = domain.masks[np.array(case.slices)[kept]].astype(bool)
        return prediction if own.resolution == "network" else mask_to_network(prediction, size).astype(bool), reference
    if own.resolution == "network":
        height, width = case.shape[1:]
        h, w = network_box(height, width, size)
        cut = torch.from_numpy(prediction[..., :h, :w].astype(np.uint8))
        prediction = F.interpolate(cut, (height, width), mode="nearest-exact").numpy().astype(bool)
    return prediction, domain.reference(case.id)[kept]


def _spacing(case: PreparedCase, size: int, protocol: Protocol) -> tuple[float, float, float]:
    """Between the voxels that are compared: of the network's grid, they lie further apart."""
    if protocol.distances == "voxel":
        return (1.0, 1.0, 1.0)
    if protocol.resolution == "image":
        return case.spacing
    (height, width), (h, w) = case.shape[1:], network_box(*case.shape[1:], size)
    return (case.spacing[0], case.spacing[1] * height / h, case.spacing[2] * width / w)


def _scores(prediction: Mask, reference: Mask, spacing: tuple[float, float, float], names: tuple[str, ...]) -> Scores:
    """As `metrics.measure`, without surfaces where they are not asked for: they take nearly all of the time."""
    sizes = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if any(_is_distance(METRICS[name]) for name in names) or not all(sizes):
        return metrics.measure(prediction, reference, spacing)
    return Scores(metrics.dice(prediction, reference), math.nan, math.nan, math.nan, "", *sizes)


def _is_distance(metric: Metric) -> bool:
    return metric.unit("mm") == "mm"
