"""Scores that others measured come in whole or not at all, and stand beside nothing they cannot be compared with."""

import gzip
import itertools
from pathlib import Path

import pandas as pd
import pytest

import dgbench
from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.scores import importing
from dgbench.scores.study import Study
from tests.test_cli import dgbench as command

BETTER = {"theirs": 0.6, "older": 0.4}


def rows(methods=BETTER, seeds=(0, 1, 2), cases=4):
    """Of every source and target of the phantom; the better method is 0.2 better in every case."""
    return pd.DataFrame(
        {"method": m, "source": s, "seed": n, "target": t, "case": f"case{c:02}", "dice": d + 0.03 * c + 0.01 * n}
        for (m, d), (s, t), n, c in itertools.product(
            methods.items(), itertools.permutations("ABCD", 2), seeds, range(cases)
        )
    )


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Imports a table, by default one without mistakes, from a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def imported(table=None, file="doe.csv", **options):
        (rows() if table is None else table).to_csv(file, index=False)
        return dgbench.import_scores(file, "phantom", **{"citation": "Doe 2030", "protocol": "doe", **options})

    return imported


def problems(table, task="phantom"):
    table.to_csv("told.csv", index=False)
    return importing.problems(importing.read_table(Path("told.csv")), get_task(task))


def test_what_comes_in_is_a_board_for_every_page(keep, tmp_path):
    path = keep(stated="All slices of 2-D networks")
    board = dgbench.leaderboard("phantom", against="older", protocol="doe")
    assert list(board["variant"]) == ["theirs (published)", "older (published)"]
    assert list(board["verdict"]) == ["better", ""] and list(board["seeds"]) == [3, 3]
    assert board["mean"][0] == pytest.approx(0.6 + 0.03 * 1.5 + 0.01)
    said = dgbench.compare("theirs", "older", "phantom", protocol="doe")
    assert said.sentence.startswith("theirs (published) is better than older (published). Difference +20.00 points")
    page = dgbench.report("phantom", protocol="doe").read_text(encoding="utf-8")
    assert "Doe 2030. All slices of 2-D networks." in page and "only the scores are at hand" in page
    assert path == Path("results/phantom/doe/published/doe.json")
    text = command(tmp_path, "leaderboard", "--task", "phantom")  # no run of sdg, so these are shown, and it says so
    assert text.startswith("No finished run of protocol sdg is in results: this is what was published under protocol")


def test_cases_of_one_patient_are_told_by_a_column_and_drawn_together(keep):
    """Two patients of two cases each: the interval is of eight groups, not of 16 cases."""
    table = rows()
    alone = keep(table, name="alone", protocol="alone")
    told = keep(table.assign(group=table["case"].map(lambda c: f"P{int(c[4:]) // 2}")), name="told", protocol="told")
    groups = {p.stem: Study.load(p.parents[3], "phantom", p.stem).target_cases().group for p in (alone, told)}
    assert groups["alone"] is None and groups["told"].tolist() == [g for g in range(8) for _ in range(2)]
    assert problems(table.assign(group="")) == [
        "group is blank in lines 2, 3, 4 and 285 more",
    ]


def test_scores_of_another_protocol_are_in_no_table_with_them(keep):
    keep()
    keep(rows({"other": 0.5}), "roe.csv", protocol="roe", citation="Roe 2031")
    for protocol, methods in (("doe", {"theirs", "older"}), ("roe", {"other"})):
        assert {r.method for r in Study.load(Path("results"), "phantom", protocol).records} == methods


def test_two_boards_of_one_protocol_stand_together_each_by_its_name(keep):
    keep()
    keep(rows({"theirs": 0.5}), "roe.csv", citation="Roe 2031")
    assert set(Study.load(Path("results"), "phantom", "doe").runs) == {
        "theirs (published, doe)", "older (published, doe)", "theirs (published, roe)",
    }  # fmt: skip


def test_a_compressed_file_from_a_spreadsheet_comes_in_as_well(keep):
    Path("doe.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + rows().to_csv(index=False).encode()))
    assert dgbench.import_scores("doe.csv.gz", "phantom", citation="Doe", protocol="doe").is_file()


def test_all_that_is_wrong_is_said_at_once_and_nothing_is_written(keep):
    table = rows(seeds=(0,)).astype({"seed": str, "dice": str})
    table.loc[0, "dice"], table.loc[1, "dice"], table.loc[2, "seed"], table.loc[3, "method"] = "-0.1", "nan", "x", ""
    table.loc[4, "target"], table.loc[5, "source"], table.loc[6, "case"] = "E", "a", "case99"
    table = pd.concat([table, table.iloc[[20]]])
    with pytest.raises(UsageError) as error:
        keep(table)
    assert error.value.exit_code == 2 and not Path("results").exists()
    for line in (
        "method is blank in line 5",
        "seed is no whole number in line 4 ('x')",
        "dice is no number in line 3 ('nan'): leave it blank where a structure is in neither mask",
        "dice is outside [0, 1] in line 2 ('-0.1')",
        "source 'a' is none of task phantom: A, B, C, D",
        "target 'E' is none of task phantom: A, B, C, D",
        "task phantom has no case case99 in domain C",
        f"the same run, case and structure again in line {len(table) + 1}",
        "theirs from A with seed 0 lacks case case00, case01",
    ):
        assert f"- {line}" in error.value.cause.replace("cases", "case"), line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.drop(columns=["seed", "dice"]), ["no column seed", "no column dice"]),
        (lambda t: t.assign(jaccard=0.5), ["column 'jaccard' is none of method, source, seed"]),
        (lambda t: t.assign(dice=100 * t["dice"]), ["dice is given in percent (up to 71): divide it by 100"]),
        (lambda t: t.assign(asd=-1.0), ["asd is outside [0, inf] in lines 2 ('-1.0'), 3 ('-1.0'), 4 ('-1.0') and 285"]),
        (lambda t: t.assign(target=t["source"]), ["the source itself is the target in lines 2, 3, 4 and 285 more"]),
        (lambda t: t.assign(structure="cup"), ["structure 'cup' is none of task phantom: prostate"]),
        (lambda t: t.head(0), ["it holds no row"]),
        (lambda t: t.assign(method="a\x1b[2J"), ["method holds a line break or another control character in lines 2"]),
        (lambda t: t[(t["seed"] > 0) | (t["target"] != "B")], ["theirs from A with seed 0 lacks cases case00"]),
        (lambda t: t.assign(n_reference=0), ["dice is above 0 in lines 2"]),
        (
            lambda t: t.assign(**{c: [0, *[v] * (len(t) - 1)] for c, v in (("dice", 0.7), ("n_reference", 9))}),
            ["dice is above 0 in lines"],
        ),  # a case that failed says that there was nothing to find
        (lambda t: t.assign(seed="00"), ["seed is no whole number in lines 2 ('00')"]),
        (lambda t: t.assign(dice="", n_reference=9), ["dice is blank though the reference is not in lines 2"]),
    ],
)
def test_a_problem_is_named(tmp_path, monkeypatch, change, problem):
    monkeypatch.chdir(tmp_path)
    found = problems(change(rows()))
    for sentence in problem:
        assert any(line.startswith(sentence) for line in found), found


def test_a_blank_dice_is_a_structure_in_neither_mask_and_counts_in_no_mean(keep):
    table = rows({"theirs": 0.6}, cases=2)
    table.loc[table["case"] == "case01", "dice"] = float("nan")
    keep(table)
    row = Study.load(Path("results"), "phantom", "doe").row("theirs (published)")
    assert row.mean == pytest.approx(0.61) and row.both_empty == 4 * 3 * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "sdg"}, "all rows of protocol sdg are measured by dgbench"),
        ({"protocol": "a/b"}, "'a/b' cannot name a protocol"),
        ({"citation": " "}, "nobody is cited"),
        ({"name": "../doe"}, "cannot name a board"),
    ],
)
def test_what_it_is_called_is_checked(keep, options, words):
    with pytest.raises(UsageError, match=words):
        keep(**options)
    assert not Path("results").exists()


def test_a_board_is_not_written_over_nor_beside_one_of_other_cases(keep):
    keep()
    with pytest.raises(UsageError, match="a board is there already"):
        keep()
    with pytest.raises(UsageError, match="were tested on different cases of domain"):
        keep(rows(cases=3), "roe.csv")
    assert {p.name for p in Path("results/phantom/doe/published").iterdir()} == {"doe.csv.gz", "doe.json"}


def test_a_board_that_was_changed_since_is_no_board(keep):
    path = keep()
    path.with_name("doe.csv.gz").write_bytes(gzip.compress(b"method\n"))
    with pytest.raises(DataError, match=r"doe\.csv\.gz is missing or was changed since"):
        dgbench.leaderboard("phantom", protocol="doe")


def test_the_command_ends_in_exit_code_2_and_lists_every_problem(tmp_path):
    rows().assign(dice=2.0, seed="x").to_csv(tmp_path / "doe.csv", index=False)
    how = ("import", "doe.csv", "--task", "phantom", "--citation", "Doe", "--protocol", "doe")
    text = command(tmp_path, *how, code=2)
    assert "- seed is no whole number" in text and "- dice is given in percent" in text and "Traceback" not in text
    rows().to_csv(tmp_path / "doe.csv", index=False)
    assert "next: dgbench leaderboard --task phantom --protocol doe" in command(tmp_path, *how)
