"""Folders of images as users have them: any files, names and task.toml; prepared as they are, or what is wrong told."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Folder, Refusal, answer, folder, inputs


def pictures(root: Path, domains: tuple[str, ...] = ("A", "B"), cases: tuple[str, ...] = ("x",)) -> None:
    """One PNG of 4 x 5 pixels for each case, all different, its mask 0 and 1."""
    for i, domain in enumerate(domains):
        for j, case in enumerate(cases):
            for part in ("images", "masks"):
                (root / domain / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(gray(10 * i + j)).save(root / domain / "images" / f"{case}.png")
            Image.fromarray(disc(10 * i + j)).save(root / domain / "masks" / f"{case}.png")


def gray(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 5), dtype=np.uint8)


def disc(seed: int) -> np.ndarray:
    return (gray(seed) > 99).astype(np.uint8)


# task.toml

KEYS = (
    "name", "structures", "spacing", "unit", "image_size", "steps", "intensity", "sources", "empty_masks", "citation",
    "licence", "collections", "modality", "threshold",
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["A", "B", "C", "disc", "mm", "px", "ct", "mr", "phantom", "", " ", "a/b", "../up", "ü"]),
    st.text(max_size=5),
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 15, 16, 64, 4096, 4097, -1, 10**30, True, False, math.inf, math.nan, 0.5, 1e308, 1e-320]),
    st.integers(-(2**63), 2**63 - 1), st.floats(),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(WORDS, NUMBERS, st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=5,
)


def toml(value: Any) -> str:
    """A value in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" if not c.isalnum() else c for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return repr(value)


TABLES = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), WORDS), VALUES, max_size=4)
TEXTS = st.one_of(
    TABLES.map(lambda t: "".join(f"{k if k in KEYS else toml(k)} = {toml(v)}\n" for k, v in t.items()).encode()),
    st.sampled_from([b"", b"\n", b"[", b"name", b"name = ", b'name = "a"\nname = "b"', b"\xff\xfe", b"\xef\xbb\xbf\n"]),
    st.binary(max_size=30),
    st.text(max_size=30).map(lambda text: text.encode(errors="surrogatepass")),
)


@inputs(40)
@given(TEXTS, st.booleans())
@example(b"steps = 1" + b"0" * 5000, False)
@example(b"spacing = [1e-320, 1]", False)
def test_a_task_toml_says_what_the_task_is_or_is_refused_by_its_path(text: bytes, mark: bool):
    with folder() as box:
        pictures(box.path)
        path = box.path / "task.toml"
        path.write_bytes(b"\xef\xbb\xbf" * mark + text)
        task = answer(lambda: FolderTask(box.path), box)
        if isinstance(task, Refusal):
            assert str(path) in task.cause + task.remedy and task.code == 2
            return
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        assert set(told) <= set(KEYS)
        for key in ("image_size", "steps", "unit", "empty_masks", "citation", "licence", "name"):
            assert getattr(task, key) == told.get(key, getattr(task, key)), key
        for key in ("sources", "spacing", "collections"):
            assert list(getattr(task, key) or ()) == list(told.get(key, getattr(task, key) or ())), key
        if "structures" in told:
            assert task.structures == tuple(told["structures"])
        assert 16 <= task.image_size <= 4096 and task.steps >= 1 and task.unit in ("mm", "px")
        case = answer(lambda: task.load("B", "x"), box)
        if not isinstance(case, Refusal):
            assert all(0 < s < math.inf for s in case.spacing)
            assert case.image.min() >= 0 and case.image.max() <= 1
            assert case.mask.shape == (1, len(task.structures), 4, 5)


VALID = st.fixed_dictionaries({}, optional={
    "name": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}[a-z]", fullmatch=True).filter(lambda n: n != "fundus"),
    "structures": st.lists(st.sampled_from(["disc", "cup", "Œdème", "left lung"]), min_size=1, max_size=3, unique=True),
    "spacing": st.lists(st.floats(0.01, 100), min_size=2, max_size=3), "unit": st.sampled_from(["mm", "px"]),
    "image_size": st.integers(16, 4096), "steps": st.integers(1, 10**6),
    "sources": st.sampled_from([["A"], ["B", "A"]]),
    "intensity": st.tuples(st.floats(-100, 100), st.floats(101, 300)).map(list), "empty_masks": st.booleans(),
    "citation": st.sampled_from(["Doe", "Œ, 2030"]),
    "collections": st.lists(st.sampled_from(["BUSI", "x"]), max_size=2),
    "modality": st.sampled_from(["mr", "photo", {"A": "ct"}, {"A": "xray", "B": "ct-lung"}]),
})  # fmt: skip


@inputs(20)
@given(VALID)
def test_a_task_toml_of_what_the_keys_mean_is_taken(table: dict[str, Any]):
    with folder() as box:
        pictures(box.path)
        (box.path / "task.toml").write_text("".join(f"{k} = {toml(v)}\n" for k, v in table.items()), encoding="utf-8")
        task = answer(lambda: FolderTask(box.path), box)
        assert isinstance(task, FolderTask), task
        if task.unit == "mm" and "spacing" not in table:
            return
        case = answer(lambda: task.load("A", "x"), box)
        low, high = table.get("intensity", (-160, 240) if table.get("modality") == {"A": "ct"} else (0, 255))
        np.testing.assert_allclose(case.image[0, 0], ((gray(0) - low) / (high - low)).clip(0, 1), atol=1e-5)
        np.testing.assert_array_equal(case.mask[0, 0], disc(0) > 0)
        assert case.spacing == ((1.0, *table["spacing"])[-3:] if "spacing" in table else (1.0, 1.0, 1.0))


# Names

LETTERS = st.sampled_from(
    [*"aZ09 _-.,;=+@'\"\\[](){}%$#~:*?|<>&!\n\t", "é", "\u0301", "ß", "漢", "🫀", "\u202e", "\x7f"]
)
NAMES = st.text(LETTERS, min_size=1, max_size=6).filter(lambda n: not n.startswith(".") and n != "..")


@inputs(25)
@given(st.lists(NAMES, min_size=1, max_size=2, unique=True), st.lists(NAMES, min_size=2, max_size=3, unique=True))
@example(["a_b", "a"], ["x", "y"])
@example(["\n", "\x1b"], ["x", "\n"])
def test_cases_and_domains_of_any_name_are_found_by_it_or_told(cases: list[str], domains: list[str]):
    with folder() as box:
        pictures(box.path / "t", tuple(domains), tuple(cases))
        task = answer(lambda: FolderTask(box.path / "t"), box)
        if isinstance(task, Refusal):
            return
        assert set(task.domains) == set(domains)
        problems = answer(task.verify, box)
        for i, domain in enumerate(domains):
            for j, case in enumerate(cases):
                found = answer(lambda d=domain, c=case: task.load(d, c), box)
                if isinstance(found, Refusal):
                    assert found.cause in problems
                else:
                    np.testing.assert_allclose(found.image[0, 0], gray(10 * i + j) / 255, atol=1e-6)
        if not problems:
            prepared_as_they_are(
                task, box, {(d, c): 10 * i + j for i, d in enumerate(domains) for j, c in enumerate(cases)}
            )


def prepared_as_they_are(task: FolderTask, box: Folder, seeds: dict[tuple[str, str], int]) -> None:
    for domain in task.domains:
        prepared = answer(lambda d=domain: prepare(task, d, 16, box.path / box.written), box)
        assert set(prepared.cases) == {c for d, c in seeds if d == domain}
        for case in prepared.cases:
            np.testing.assert_array_equal(prepared.reference(case)[0, 0], disc(seeds[domain, case]) > 0)


# What happens to folders


@dataclass(frozen=True)
class Mishap:
    """What became of a file of the folder: damaged, gone, in another's place, or a folder by its name."""

    path: str
    how: Damage | str


PATHS = [f"{d}/{p}/{c}.png" for d in "AB" for p in ("images", "masks") for c in ("x", "y")]
MISHAPS = st.builds(
    Mishap, st.sampled_from([*PATHS, "A/images", "B/masks", "A", "task.toml", "A/images/z.png", "B/masks/x_cup.png"]),
    st.one_of(DAMAGE, st.sampled_from(["gone", "other", "folder", "link", "unreadable name", "upper case"])),
)  # fmt: skip


def happen(mishap: Mishap, root: Path) -> None:
    path = root / mishap.path
    if isinstance(mishap.how, Damage):
        if path.parent.is_dir() and not path.is_dir():
            content = path.read_bytes() if path.is_file() else b"\x89PNG"
            path.write_bytes(mishap.how.of(content))
    elif path.parent.is_dir():
        place = path.with_name(path.name.upper() if mishap.how == "upper case" else "aside")
        if path.exists() and not place.exists():
            path.rename(place)
        if path.exists() or path.is_symlink():
            return
        if mishap.how == "folder":
            path.mkdir()
        elif mishap.how == "link":
            path.symlink_to(root / "nowhere")
        elif mishap.how == "other":
            path.write_bytes((root / PATHS[-1]).read_bytes() if (root / PATHS[-1]).is_file() else b"")
        elif mishap.how == "unreadable name":
            path.with_name("\udcff.png").write_bytes(b"")


@inputs(40)
@given(st.lists(MISHAPS, max_size=3))
@example([Mishap("A/images/x.png", "folder")])
@example([Mishap("A/images", how) for how in ("upper case", "folder", "upper case")])
def test_a_folder_after_mishaps_is_prepared_right_or_all_that_is_wrong_is_told(mishaps: list[Mishap]):
    """Where nothing is wrong, what is prepared is what the untouched files hold."""
    with folder() as box:
        pictures(box.path / "t", cases=("x", "y"))
        for mishap in mishaps:
            happen(mishap, box.path / "t")
        task = answer(lambda: FolderTask(box.path / "t"), box)
        if isinstance(task, Refusal):
            return
        problems = answer(task.verify, box)
        assert all(p.strip() and "\n" not in p for p in problems)
        assert "Unable to allocate" not in " ".join(problems)
        for domain in task.domains:
            found = answer(lambda d=domain: prepare(task, d, 16, box.path / box.written), box)
            if isinstance(found, Refusal):
                assert problems, found
            elif not problems:
                for case in found.cases.values():
                    np.testing.assert_array_equal(found.reference(case.id), task.load(domain, case.id).mask)
        if not mishaps:
            assert not problems
