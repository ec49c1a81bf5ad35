"""What a user may say of images of their own: the keys of task.toml, or of the TOML file beside a table of cases."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dgbench import names
from dgbench.errors import UsageError, require

Window = tuple[float, float] | None  # the file's numbers that become 0 and 1; None: by the format and percentiles
# Of CT the usual widths and levels, in HU. Numbers of all others mean nothing by themselves.
MODALITIES: dict[str, Window] = {
    "ct": (-160, 240),  # soft tissue
    "ct-lung": (-1350, 150),
    "ct-bone": (-500, 1300),
    "ct-brain": (0, 80),
    **dict.fromkeys(("mr", "pet", "ultrasound", "xray", "photo")),
}


def windows(own: Mapping[str, Any], domains: Sequence[str]) -> dict[str, Window]:
    """By domain: what `intensity` says of it or of all, else what its `modality` has."""
    found = {}
    for domain in domains:
        both = {key: own.get(key) for key in ("intensity", "modality")}
        said = {key: value.get(domain) if isinstance(value, dict) else value for key, value in both.items()}
        window = said.get("intensity") or MODALITIES[said.get("modality") or "mr"]
        found[domain] = tuple(window) if window else None
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """task.toml, checked; lists as tuples and `structures` as {name: mask values}."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", 'a line looks like name = "my_task"') from None
    for key, value in table.items():
        is_valid, meaning = SETTINGS[require(key, list(SETTINGS), f"key in {path}:")]
        if not is_valid(value):
            raise UsageError(f"{path}: {key} = {value!r} is no valid setting", f"{key}: {meaning}")
    table |= {key: [*map(names.one_form, table[key])] for key in ("sources",) if key in table}
    for key in ("intensity", "modality"):
        if isinstance(table.get(key), dict):
            table[key] = {names.one_form(domain): value for domain, value in table[key].items()}
    structures = table.get("structures")
    if isinstance(structures, list):
        structures = {name: [i] if len(structures) > 1 else [1, 255] for i, name in enumerate(structures, 1)}
    if structures:
        named = {names.one_form(name): values for name, values in structures.items()}
        table["structures"] = {n: tuple(v) if isinstance(v, list) else (v,) for n, v in named.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _is_number(value: Any, low: float, high: float = math.inf, whole: bool = False) -> bool:
    return type(value) in ((int,) if whole else (int, float)) and low < value < high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_structures(value: Any) -> bool:
    if not value or not isinstance(value, list | dict) or not all(map(_is_text, value)):
        return False
    if isinstance(value, list):
        return len(set(value)) == len(value)
    groups = [v if isinstance(v, list) else [v] for v in value.values()]
    return all(group and all(_is_number(v, 0, 1 << 31, whole=True) for v in group) for group in groups)


def _are_numbers(value: Any, low: float, lengths: Sequence[int]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(_is_number(v, low) for v in value)


def _is_window(value: Any) -> bool:
    return _are_numbers(value, -math.inf, (2,)) and value[0] < value[1]


def _of_all_or_each(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return bool(value) and all(map(is_valid, value.values())) if isinstance(value, dict) else is_valid(value)


# The keys of task.toml: (is the value valid?, what it means).
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        lambda v: _is_text(v) and bool(re.fullmatch(r"\w[\w.-]*\w|\w", v)),
        "the task's name in tables and paths: letters, digits, _ - and . (default: the folder's)",
    ),
    "structures": (
        _are_structures,
        "names in the order of the mask values 1..K, or a table of values such as {disc = [1, 2], cup = 2}",
    ),
    "spacing": (
        lambda v: _are_numbers(v, 0, (2, 3)),
        "[slices, height, width] or [height, width] between voxel centres, each above 0, for files that have none",
    ),
    "unit": (lambda v: v in ("mm", "px"), 'of the spacing: "mm" or "px"'),
    "image_size": (
        lambda v: _is_number(v, 15, 4097, whole=True),
        "side of the square the network sees, 16 to 4096 pixels",
    ),
    "steps": (lambda v: _is_number(v, 0, whole=True), "training steps of a run, at least 1"),
    "intensity": (
        lambda v: _of_all_or_each(v, _is_window),
        "[low, high]: the numbers in the files that become 0 and 1; or one for each domain, {scanner = [-160, 240]}",
    ),
    "modality": (
        lambda v: _of_all_or_each(v, lambda name: name in MODALITIES),
        f'{", ".join(MODALITIES)}: of all domains, or by domain, {{one = "ct", other = "mr"}}',
    ),
    "threshold": (
        lambda v: _is_number(v, 0),
        "the value from which on a mask of one structure with soft borders is the structure, such as 128",
    ),
    "sources": (lambda v: isinstance(v, list) and bool(v) and all(map(_is_text, v)), "the domains to train on"),
    "paired": (
        lambda v: isinstance(v, bool),
        "true when domains show the same patients: a `group`, or else a case, of one name is then the same one",
    ),
    "empty_masks": (lambda v: isinstance(v, bool), "true when a case may hold no structure at all"),
    "citation": (_is_text, "text: the paper to cite"),
    "licence": (_is_text, "text: the terms of the images"),
    "collections": (
        lambda v: isinstance(v, list) and all(map(_is_text, v)),
        'the public collections that the images are from, such as ["BUSI"]: pretrained weights may have seen them',
    ),
}
