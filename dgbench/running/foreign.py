"""Foreign predictions: masks that another system wrote become a run like any other, measured by the same protocol.

What such a run cannot tell by itself is stated by whoever hands it in: `--stated KEY=VALUE`, or a file dgbench.toml
beside the predictions. A row is ranked when every source and three seeds are there, and budget and pretraining stated.

    method = "nnunet"                          # what tables call it
    budget = "1000 epochs of 250 iterations"   # what training took
    pretraining = "none"                       # the weights that it started from
    labels = { disc = [1, 2], cup = [2] }      # mask values by structure, of index masks whose structures overlap
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgbench import metrics
from dgbench.errors import DataError, UsageError, require
from dgbench.files import Taken, lock, make_folder
from dgbench.images import formats
from dgbench.images.preparation import PreparedCase, PreparedDomain, mask_to_network, prepare
from dgbench.images.volume_formats import ITK
from dgbench.names import problem
from dgbench.protocol import Protocol, get_protocol
from dgbench.registry import NEEDS
from dgbench.running import description, orientation
from dgbench.running.foreign_files import Found, Labels, Place, find, lines, read_mask
from dgbench.running.plan import Run, safe
from dgbench.running.records import EXTERNAL, SCHEMA, TO_BE_RANKED, RunRecord, lacking, read_run
from dgbench.running.test import Tested, measure_case
from dgbench.running.worker import finish, move_aside
from dgbench.task import Task

MARK = "not trained here"
STATEMENT = "dgbench.toml"
STATED = ("method", *TO_BE_RANKED, "labels")


class Foreign(NamedTuple):
    """What is handed in. given: statements by name, before those of the file beside the predictions."""

    predictions: Path
    source: str
    method: str | None = None
    seed: int = 0
    given: Mapping[str, str] = {}


@dataclass(frozen=True)
class Scored:
    """A run made of predictions. notes: what its reader should know, in sentences."""

    run: RunRecord
    notes: tuple[str, ...]


class _Wanted(NamedTuple):
    """A case to be measured, and where its reference lies."""

    role: str
    domain: PreparedDomain
    case: PreparedCase


def score(task: Task, foreign: Foreign, protocol: str, results: Path) -> Scored:
    """Measure predictions of every target case, and of the source's validation cases if they are there; write the run.

    An earlier run of the same name is moved aside. Raises `UsageError` for names and statements, `DataError` that names
    all predictions that are missing, extra, doubled, of another size, unreadable, or of the source's training cases:
    nothing is written then.
    """
    rule = get_protocol(protocol)
    if rule.budget == "compute":
        raise UsageError(
            f"protocol {protocol} gives a budget of compute, which nobody can check of a system outside dgbench",
            f"score by protocol {protocol.removesuffix('-compute')}, and state the budget",
        )
    if rule.folds:
        raise UsageError(
            f"protocol {protocol} trains a method anew for every fold, which nobody did of given masks",
            "score by protocol sdg",
        )
    require(foreign.source, task.source_domains, f"source of task {task.name}")
    folder = Path(foreign.predictions)
    if not folder.is_dir():
        raise UsageError(f"no such folder: {folder}", "give the folder with one file for each case")
    stated = _statement(folder, foreign.given, task)
    method = _method(foreign.method or str(stated.pop("method", "")) or folder.resolve().name)
    labels = stated.pop("labels", None)
    domains = {d: prepare(task, d, task.image_size) for d in (foreign.source, *task.targets(foreign.source))}
    masks, notes = _masks(task, foreign.source, folder, labels, domains)
    tested = [_measured(task, wanted, mask, rule) for wanted, mask in masks]
    run = _run(task, foreign, method, protocol, results)
    record = _record(task, run, stated, domains)
    run = dataclasses.replace(run, fingerprint=_fingerprint(record, masks))
    record["fingerprint"] = run.fingerprint
    _write(run, record, tested)
    targets = ((w, mask) for w, mask in masks if w.role == "target")
    askew = orientation.doubt((_unpacked(task, w.case, mask), w.domain.reference(w.case.id)) for w, mask in targets)
    return Scored(read_run(Path(run.folder)), tuple([*notes, *([askew] if askew else []), *lacking(record)]))


# --- what is stated --------------------------------------------------------------------------------------------------


def _statement(folder: Path, given: Mapping[str, str], task: Task) -> dict[str, Any]:
    """Of the file, and what was given besides, which goes before it."""
    path, stated = folder / STATEMENT, dict[str, Any]()
    if path.is_file():
        try:
            stated = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read: {error}", 'a line looks like budget = "1000 epochs"') from None
    stated |= given
    for name, value in stated.items():
        require(name, STATED, "statement")
        if name == "labels":
            stated[name] = _labels(value, task.structures)
        elif not isinstance(value, str):
            raise UsageError(f"{name} = {value!r} is no text", f'e.g. {name} = "none"')
    return stated


def _labels(given: Any, structures: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Mask values by structure, in the task's order."""
    if isinstance(given, str):
        try:
            given = tomllib.loads(f"labels = {given}")["labels"]
        except ValueError:
            given = None
    table = {k: v if isinstance(v, list) else [v] for k, v in given.items()} if isinstance(given, dict) else {}
    numbers = all(v and all(type(n) is int and n > 0 for n in v) for v in table.values())
    if set(table) != set(structures) or not numbers:
        example = ", ".join(f"{s} = [{i}]" for i, s in enumerate(structures, 1))
        raise UsageError("labels must give the mask values of every structure", f"e.g. labels={{ {example} }}")
    return {s: tuple(table[s]) for s in structures}


def _method(name: str) -> str:
    if why := problem(name, "method") or ("it ends in brackets" if name.endswith((")", "]")) else ""):
        raise UsageError(f"{name!r} cannot name a method: {why}", "give another one by --method")
    return name


# --- which predictions -----------------------------------------------------------------------------------------------


def _masks(
    task: Task, source: str, folder: Path, labels: Labels | None, domains: Mapping[str, PreparedDomain]
) -> tuple[list[tuple[_Wanted, np.ndarray]], list[str]]:
    """The cases to be measured with their masks, eight voxels a byte, and notes. Raises `DataError` that names all."""
    training, validation = task.split(source)
    cases = {d: list(task.case_ids(d)) for d in task.domains}
    found, wrong = find(folder, cases, task.structures)
    own = [i for i in validation if (source, i) in found]
    parts = [("validation", source, validation if own else [])]
    parts += [("target", d, task.tested(source, d)) for d in domains if d != source]
    wanted = [_Wanted(role, domains[d], domains[d].cases[i]) for role, d, ids in parts for i in ids]
    _name_the_rest(wrong, found, wanted, (source, training))
    overlapping = labels is None and any(_overlap(w.domain.reference(w.case.id)) for w in wanted)
    known = labels or (None if overlapping else _usual_labels(task))
    masks, empty = list[tuple[_Wanted, np.ndarray]](), list[str]()
    for w in wanted:
        place = (w.domain.name, w.case.id)
        if place not in found:
            wrong["missing"].append("/".join(place))
        elif (files := found[place]).is_clear(task.structures):
            try:
                mask = read_mask(files, w.case.shape, task.structures, known, _grids(task, place, w.case, files))
            except DataError as error:
                wrong[f"unusable ({error.remedy})"].append(error.cause)
                continue
            masks.append((w, np.packbits(mask)))
            empty += [] if mask.any() else ["/".join(place)]
    if empty and len(empty) == len(wanted):
        wrong["empty: no prediction holds a structure"], empty = empty, []
    if not any(w.role == "target" for w in wanted):
        wrong["no target"].append(f"task {task.name} tests nothing on source {source}")
    if wrong:
        remedy = "give one file for each case, see docs/submitting.md"
        raise DataError("\n- ".join([f"{folder} cannot be scored:", *lines(wrong)]), remedy)
    notes = [f"{line}: what is there counts as missed" for line in lines({"empty": empty} if empty else {})]
    return masks, notes + ([] if own else [f"no prediction of the validation cases of {source}: the gap is not known"])


def _usual_labels(task: Task) -> Labels | None:
    """Those of the task's own index masks, else 1, 2, ... in the order of its structures; None of a single one."""
    if len(task.structures) == 1:
        return None
    own: Labels = getattr(task, "values", {})  # of a folder of images; empty where each structure has a file
    return own if own and all(own.values()) else {s: (i,) for i, s in enumerate(task.structures, 1)}


def _name_the_rest(
    wrong: dict[str, list[str]], found: Mapping[Place, Found], wanted: Sequence[_Wanted], trained: tuple[str, list[str]]
) -> None:
    """Predictions of cases that are not measured: of a training case the system may have learned the answer.

    trained: the source, and its training cases.
    """
    measured = {(w.domain.name, w.case.id) for w in wanted}
    tested = {domain for domain, _ in measured}
    for domain, case_id in sorted(found.keys() - measured):
        kind = "extra: this source is not tested on it"
        if domain == trained[0] and case_id in trained[1]:
            kind = "of a training case of the source, which says nothing of other domains (take it out)"
        elif domain in tested:
            kind = "of a patient whose other images are trained on (take it out)"
        wrong[kind].append(f"{domain}/{case_id}")


def _overlap(reference: np.ndarray) -> bool:
    return bool(reference.sum(axis=1, dtype=np.uint8).max(initial=0) > 1)


def _grids(task: Task, place: Place, case: PreparedCase, files: Found) -> list[np.ndarray]:
    """Where the voxels of a case may lie: as its image says, or along the axes from the origin, as it is exported.

    None of them: where it lies is not looked at.
    """
    headers = (*formats.NIFTI, *ITK)
    image = next(iter(task.files(*place)), None)
    if not any(p.name.lower().endswith(headers) for p in files.paths):
        return []
    exported = np.diag([*case.spacing[::-1], 1.0])
    if image is None:
        return [exported]
    if not image.name.lower().endswith(headers):  # a photograph, or a series of which each file tells of its slice
        return []
    with contextlib.suppress(DataError):  # of several frames, the task knows which
        affine = formats.read(image).affine
        return [exported] if affine is None else [exported, affine]
    return []


# --- the run ---------------------------------------------------------------------------------------------------------


def _measured(task: Task, wanted: _Wanted, packed: np.ndarray, protocol: Protocol) -> Tested:
    """The scores of a mask that lies on the grid of its image."""
    role, domain, case = wanted
    mask = _unpacked(task, case, packed)
    if (scored := domain.scored(case.id)) is not None:
        mask = mask & scored
    kept = np.array(case.foreground) if protocol.slices == "foreground" else np.ones(len(mask), bool)
    if protocol.resolution == "network":
        prediction = mask_to_network(mask, domain.masks.shape[-1]).astype(bool)[kept]
        reference = domain.masks[np.array(case.slices)[kept]].astype(bool)
    else:
        prediction, reference = mask[kept], domain.reference(case.id)[kept]
    place = (role, domain.name, task.group(domain.name, case.id))
    return measure_case(place, case, prediction, reference, (task.structures, protocol, task.further_metrics))


def _unpacked(task: Task, case: PreparedCase, packed: np.ndarray) -> np.ndarray:
    """bool (D, K, H, W)."""
    depth, height, width = case.shape
    shape = (depth, len(task.structures), height, width)
    return np.unpackbits(packed, count=int(np.prod(shape))).view(bool).reshape(shape)


def _run(task: Task, foreign: Foreign, method: str, protocol: str, results: Path) -> Run:
    variant = f"{method} ({MARK})"
    folder = Path(results).resolve() / task.name / protocol / variant / f"{safe(foreign.source)}-seed{foreign.seed}"
    return Run(
        task=task.name, task_location=task.location, data=None, protocol=protocol, method=method, settings=(),
        variant=variant, source=foreign.source, seed=foreign.seed, checkpoint=None, plugins=(), folder=str(folder),
        fingerprint="",
    )  # fmt: skip


def _record(task: Task, run: Run, stated: Mapping[str, Any], domains: Mapping[str, PreparedDomain]) -> dict[str, Any]:
    """run.json. What training took is not known, and is not in it."""
    return {
        "schema": SCHEMA,
        **{name: getattr(run, name) for name in ("task", "protocol", "method", "variant", "source", "seed")},
        "origin": EXTERNAL,
        "stated": dict(stated),
        "hparams": {},
        "settings": {},
        "checkpoint": None,
        **description.of_task(task, run.source),
        "needs": dict.fromkeys(NEEDS, False),
        "code": description.code(task),
        "data": {d: of.folder.name.rpartition("-")[2] for d, of in domains.items()},
        "metrics_version": metrics.VERSION,
        "environment": {},
        "initialisation": str(stated.get("pretraining", "")) or "not stated",
        "started": description.now(),
    }


def _fingerprint(record: Mapping[str, Any], masks: Sequence[tuple[_Wanted, np.ndarray]]) -> str:
    """sha256 of what decides the numbers: the masks, the images, the protocol and the metrics."""
    content = [[w.domain.name, w.case.id, hashlib.sha256(mask.tobytes()).hexdigest()] for w, mask in masks]
    rule = dataclasses.asdict(get_protocol(record["protocol"]))
    whole = [content, record["data"], record["metrics_version"], rule]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _write(run: Run, record: dict[str, Any], tested: Sequence[Tested]) -> None:
    folder = make_folder(Path(run.folder))
    try:
        with lock(folder):
            move_aside(folder)
            finish(run, record, tested)
    except Taken as taken:
        raise UsageError(str(taken), "wait until it is done") from None
