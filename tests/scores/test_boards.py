"""Published scores of cases are runs that were not made here: what they say, and what they may stand beside."""

import pytest

from dgbench.scores import published
from dgbench.scores.study import Study

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
