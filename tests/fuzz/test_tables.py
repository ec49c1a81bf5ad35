"""Tables of cases as users and their spreadsheets write them: each case as it lies there, or what is wrong told."""

import csv
import io
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from dgbench.images.adopt import Adoption, adopt
from dgbench.images.table_task import TableTask
from dgbench.names import one_form
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Folder, Refusal, answer, folder, inputs
from tests.fuzz.test_folders import MISHAPS as OF_FOLDERS
from tests.fuzz.test_folders import Mishap, disc, gray, happen, pictures

CASES, DOMAINS = ("x", "y"), ("A", "B")
NEEDED = ("case", "domain", "image", "mask")
EXTRA: dict[str, list[str]] = {
    "group": ["", "p1", "p2"], "spacing": ["", "0.5 0.75", "3 0.5 0.75", "[1, 2]", "1,5 2", "0 1", "nan 1", "1e400 1"],
    "frame": ["", "0", "1", "-1", "٣", "²", "9" * 30],
    "intensity": ["", "0 255", "10 200", "5 5", "-1e308 1e308", "inf 0"],
    "modality": ["", "mr", "CT", "photo", "x"], "note": ["", "=1+1", "a\nb"], "mask_disc": ["A/masks/x.png"], "": [""],
    "Image": ["x"], "imag": ["x"], "case": ["z"],
}  # fmt: skip
CELLS = st.one_of(
    st.sampled_from([
        "", " ", "x", "y", "A", "B", "a", "A/images/x.png", "A\\images\\x.png", "./A/images/x.png", "B/masks/y.png",
        "/nowhere", "A", "..", "~", "nul", "a" * 300, "é", "e\u0301", "\u202e", "x\0", '"', "a,b", "a\nb", "a\rb", "=1",
        "../A", "task.csv", "mean",
    ]),
    st.text(max_size=4),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7), CELLS), max_size=2)
MORE = st.lists(st.sampled_from(sorted(EXTRA)), max_size=2, unique=True)


def rows() -> list[dict[str, str]]:
    """A row for each of four cases."""
    return [
        {"case": c, "domain": d, "image": f"{d}/images/{c}.png", "mask": f"{d}/masks/{c}.png"}
        for d in DOMAINS for c in CASES
    ]  # fmt: skip


def text_of(table: list[dict[str, str]], delimiter: str, ending: str) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(table[0]), restval="", delimiter=delimiter, lineterminator=ending)
    writer.writeheader()
    writer.writerows(table)
    return stream.getvalue()


def read_or_told(box: Folder, plain: bool) -> None:
    """Every case of the table that is plain: the pixels of its files; else a task that answers, or a refusal."""
    path = box.path / "task.csv"
    task = answer(lambda: TableTask(path), box)
    if isinstance(task, Refusal):
        assert str(path) in task.cause + task.remedy or path.stem in task.cause
        assert not plain, task
        return
    problems = answer(task.verify, box)
    assert all(p.strip() and "\n" not in p for p in problems)
    told = {(r["case"], r["domain"]): r for r in rows()}
    for domain in task.domains:
        for case in task.case_ids(domain):
            found = answer(lambda d=domain, c=case: task.load(d, c), box)
            if isinstance(found, Refusal):
                assert found.cause in problems and not plain
            elif plain:
                seed = 10 * DOMAINS.index(domain) + CASES.index(case)
                np.testing.assert_allclose(found.image[0, 0], gray(seed) / 255, atol=1e-6)
                np.testing.assert_array_equal(found.mask[0, 0], disc(seed) > 0)
                assert (case, domain) in told
            else:
                assert np.isfinite(found.image).all() and all(0 < s < float("inf") for s in found.spacing)


@inputs(25)
@example([(0, 2, "a" * 300)], [], None, ",", "\n", "")
@given(
    EDITS, MORE, st.data(), st.sampled_from(",,,;\t"), st.sampled_from(["\n", "\r\n"]), st.sampled_from(["", "\ufeff"])
)
def test_a_table_of_cases_is_read_as_it_lies_or_all_that_is_wrong_is_told(edits, more, data, delimiter, ending, mark):
    table: list[dict[str, Any]] = rows()
    for column in more:
        cells = data.draw(st.lists(st.sampled_from(EXTRA[column]), min_size=4, max_size=4), label=column)
        table = [row | {column: cell} for row, cell in zip(table, cells, strict=True)]
    for line, column, cell in edits:
        table[line][list(table[line])[column % len(table[line])]] = cell
    with folder() as box:
        pictures(box.path, DOMAINS, CASES)
        content = mark + text_of(table, delimiter, ending)
        (box.path / "task.csv").write_bytes(content.encode(errors="surrogatepass"))
        read_or_told(box, not edits and set(more) <= {"note"})


@inputs(10)
@given(DAMAGE, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
@example(Damage("twice", 0.5), "utf-8")
def test_a_damaged_table_of_cases_is_read_or_refused(damage: Damage, encoding: str):
    with folder() as box:
        pictures(box.path, DOMAINS, CASES)
        (box.path / "task.csv").write_bytes(damage.of(text_of(rows(), ",", "\n").encode(encoding)))
        read_or_told(box, plain=False)


@inputs(10)
@given(st.lists(OF_FOLDERS, max_size=3))
@example([Mishap(f"A/{part}/x.png", "unreadable name") for part in ("images", "masks")])
@example([Mishap("task.toml", Damage("flipped", 0.0, 0))])
def test_what_is_adopted_of_a_folder_after_mishaps_are_files_that_are_there(mishaps: list):
    """And the table that is written of them is a task, or is refused with what is wrong."""
    with folder() as box:
        pictures(box.path / "t", cases=CASES)
        for mishap in mishaps:
            happen(mishap, box.path / "t")
        found = answer(lambda: adopt(box.path / "t"), box)
        if isinstance(found, Refusal):
            assert mishaps
            return
        assert isinstance(found, Adoption) and len({(r["domain"], one_form(r["case"])) for r in found.rows}) == len(
            found.rows
        )
        table = box.path / box.written / "task.csv"
        written = answer(lambda: found.write(table), box)
        assert not isinstance(written, Refusal) and table in written
        task = answer(lambda: TableTask(table), box)
        if not mishaps:
            assert isinstance(task, TableTask) and len(found.rows) == 4 and not task.verify()
