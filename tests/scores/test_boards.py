"""Published scores of cases are runs that were not made here: what they say, and what they may stand beside."""

import gzip
import itertools
import math
from pathlib import Path

import pytest

from dgbench import face
from dgbench.errors import DataError, UsageError
from dgbench.pages import leaderboard
from dgbench.protocol import PROTOCOLS
from dgbench.scores import comparison, published
from dgbench.scores.boards import Board
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests.toy_runs import run

METHODS = {"erm", "bigaug", "randconv", "mixstyle", "dsu", "maxstyle", "ada", "slaug"}
DECIMALS = {4: 6e-5, 3: 6e-4}  # half a unit of the last decimal that a report gives, and the rounding of the cases


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return Study.load(tmp_path_factory.mktemp("none"), "prostate", "audit")


def test_the_prostate_board_holds_every_run_and_case(audit):
    assert {r.method for r in audit.records} == METHODS
    assert len(audit.records) == 8 * 6 * 3
    cases = audit.cases.groupby(["variant", "source", "seed"]).size()
    assert cases.groupby(["variant", "seed"]).sum().eq(580).all()  # 116 cases, each the target of five sources
    assert audit.cases["dice"].between(0, 1).all()


def test_all_slices_are_another_protocol(tmp_path):
    study = Study.load(tmp_path, "prostate", "audit-all")
    assert {r.method for r in study.records} == {"erm", "bigaug"} and len(study.records) == 36
    assert study.protocol.slices == "all"


def test_the_cases_give_the_72_means_that_their_authors_reported(audit):
    """42 of a source's targets, with four decimals, and 30 of erm's pairs, with three."""
    numbers = published.load("prostate")
    of_audit = numbers["paper"].eq("sdg_audit_2026") & numbers["protocol"].str.startswith("foreground slices")
    told = numbers[of_audit & numbers["note"].eq("U-Net from scratch") & (numbers["metric"] == "dice")]
    told = told[told["source"].isin(audit.domains)]
    compared = 0
    for row in told.itertuples(index=False):
        values = audit.matrix(audit.named(row.method)).values
        found = values.loc[row.source, "mean" if row.target == "mean of targets" else row.target]
        decimals = 4 if row.target == "mean of targets" else 3
        assert found == pytest.approx(row.value, abs=DECIMALS[decimals]), row
        compared += 1
    assert compared == 72


def test_who_names_no_protocol_sees_what_is_published_and_is_told(tmp_path):
    study = face.ranking("prostate", results=tmp_path).study
    assert study.protocol.name == "audit"
    assert study.left_out == (
        f"No finished run of protocol sdg is in {tmp_path}: this is what was published under protocol audit.",
    )
    with pytest.raises(UsageError) as error:
        face.ranking("prostate", protocol="sdg", results=tmp_path)
    assert "published: --protocol audit, --protocol audit-all" in error.value.remedy
    with pytest.raises(UsageError, match="no finished run of task fundus under protocol sdg"):
        face.ranking("fundus", results=tmp_path)


def test_the_verdicts_are_paired_by_case_and_a_method_needs_no_mark(audit):
    compared = comparison.compare(audit, "bigaug", "erm")
    assert (compared.one, compared.other) == ("bigaug (published)", "erm (published)")
    assert compared.verdict() == "better" and compared.differences[comparison.OVERALL].cases == 116
    assert compared.means[comparison.OVERALL] == pytest.approx((0.6054, 0.3951), abs=6e-5)  # as published
    assert comparison.compare(audit, "mixstyle", "erm").verdict() == "not resolved"


def test_what_nobody_told_is_blank_and_not_zero(audit):
    ranking = rank(audit, baseline="erm", draws=200)
    reached, costs = leaderboard.board_tables(ranking)
    assert reached.caption.endswith("All published, not measured here.")
    assert costs.header == ("variant", "seeds", "±")  # neither validation nor missed structures, parameters, seconds
    assert "https://github.com/PengyangYujeffery/sdg-protocol-audit-pub" in reached.foot
    assert "missed, " not in reached.foot and "Metrics version" not in reached.foot
    with pytest.raises(UsageError, match="unknown metric 'asd'"):
        rank(audit, "asd")


# --- beside runs that were made here ---------------------------------------------------------------------------------


def board(protocol="audit", **told):
    """Of a toy task: a method that scores 0.5 on every case of two targets."""
    task = {"task": "toy", "domains": ["A", "B", "C"], "sources": ["A", "B", "C"], "structures": ["prostate"]}
    said = {"name": "doe", "protocol": protocol, "citation": "Doe 2030", "notes": [], "training": {}, "unit": "mm"}
    return Board(Path("doe.json"), {**task, **said, "metrics": ["dice"], "sha256": "", **told})


def scores(cases=2):
    lines = ["method,source,seed,target,case,structure,dice"]
    for (source, target), seed, case in itertools.product(itertools.permutations("ABC", 2), (0, 1, 2), range(cases)):
        lines.append(f"erm,{source},{seed},{target},{target}-{case},prostate,{0.5 + 0.02 * case + 0.01 * seed}")
    return gzip.compress("\n".join(lines).encode())


def made(variant="erm", protocol="audit", dice=0.8):
    return [
        run(variant, s, {d: [dice + 0.01 * seed, "missed"] for d in "ABC"}, seed=seed, protocol=protocol)
        for s in "ABC"
        for seed in (0, 1, 2)
    ]


def test_a_run_made_here_stands_beside_them_and_has_its_own_name():
    study = Study([*made(), *board().runs(scores(), "published")], PROTOCOLS["audit"])
    assert set(study.runs) == {"erm", "erm (published)"} and study.named("erm") == "erm"
    here, there = study.row("erm"), study.row("erm (published)")
    assert (here.published, there.published) == ("", "Doe 2030.")
    assert here.missed == 3 * 3 * 2 and math.isnan(there.missed) and math.isnan(there.parameters)
    assert there.mean == pytest.approx(0.52)
    reached, costs = leaderboard.board_tables(rank(study, draws=200))
    assert reached.caption.endswith("Rows marked as published, not measured here.")
    assert "Of 36 tested structures: 18 missed" in reached.foot  # of those that were measured
    shown = {row[0].text: [cell.text for cell in row] for row in costs.rows}
    assert shown["erm (published)"][costs.header.index("missed")] == ""
    assert study.matrix("erm (published)", "asd").values.isna().all(axis=None)  # it was not told, and is not ranked
    assert [of.variant for of in rank(study, "asd", draws=200).ranked] == ["erm"]


def test_another_protocol_or_other_cases_are_refused():
    with pytest.raises(UsageError, match="cannot mix protocol"):
        Study([*made(protocol="sdg"), *board().runs(scores(), "published")], PROTOCOLS["audit"])
    with pytest.raises(DataError, match="were tested on different cases of domain"):
        _ = Study([*made(), *board().runs(scores(cases=3), "published")], PROTOCOLS["audit"]).cases
