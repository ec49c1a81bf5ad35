"""Numbers from papers: whole, with a source, and put beside our own without being mixed with them."""

import math

import pytest

from dgbench.errors import DataError, UsageError
from dgbench.protocol import PROTOCOLS
from dgbench.scores import published
from dgbench.scores.study import Study
from tests.toy_runs import run

SDG = PROTOCOLS["sdg"]
HEADER = ",".join(published.COLUMNS)
OURS = {"hparams": {"steps": 50, "batch_size": 4}}


def quoted(method="erm", source="A", target="B", metric="dice", value="0.5", structure="prostate", note=""):
    said = f"{value},Doe 2020. https://doi.org/1,T1,all slices,{note}"
    return f"toy,{method},{source},{target},{structure},{metric},{said}"


@pytest.fixture
def quote(tmp_path):
    def written(*lines, task="toy"):
        path = tmp_path / "doe_2020.csv"
        path.write_text("\n".join([HEADER, *lines]) + "\n")
        return published.load(task, [path])

    return written


RECORDS = [
    run("erm", "A", {"A": [0.9], "B": [0.8], "C": [0.6]}, **OURS),
    run("erm", "B", {"A": [0.7], "B": [0.9], "C": [0.5]}, **OURS),
    run("erm[steps=9]", "A", {"A": [0.9], "B": [0.1], "C": [0.1]}, **OURS),
]


def beside(numbers, records=RECORDS, protocol=SDG):
    return published.beside(numbers, Study(records, protocol))


@pytest.mark.parametrize("task", ["prostate", "fundus"])
def test_the_numbers_that_come_with_dgbench_are_whole(task):
    numbers = published.load(task)
    assert list(numbers.columns) == [*published.COLUMNS, "paper"]
    assert (numbers["task"] == task).all()
    assert numbers["value"].between(0, 1).all()
    assert "sdg_audit_2026" in set(numbers["paper"])


def test_a_mean_over_targets_is_the_mean_of_its_cells():
    """Of the audit's pairs, which are given with three decimals, and of SAMMed's sites."""
    numbers = published.load("prostate")
    for method in ("erm", "nnunet", "sammed", "sammed_oracle"):
        for _, of_network in numbers[(numbers["method"] == method)].groupby(["paper", "note"]):
            for _, row in of_network.groupby("source"):
                pairs, mean = row[row["target"] != "mean of targets"], row[row["target"] == "mean of targets"]
                if len(pairs) and len(mean):
                    assert len(pairs) == 5
                    assert pairs["value"].mean() == pytest.approx(mean["value"].item(), abs=0.001)


def test_every_pair_of_erm_on_imagenet_and_of_sammed_is_there():
    numbers = published.load("prostate")
    pairs = numbers[numbers["target"] != "mean of targets"]
    imagenet = pairs[(pairs["method"] == "erm") & pairs["note"].str.startswith("U-Net with an ImageNet ResNet-34")]
    assert len(imagenet) == len(imagenet[["source", "target"]].drop_duplicates()) == 30
    unlike = imagenet[imagenet["note"].str.endswith("the report's mean of this source is not that of its pairs")]
    told = numbers[numbers["note"].eq("U-Net with an ImageNet ResNet-34") & (numbers["method"] == "erm")]
    means = told[told["target"] == "mean of targets"].set_index("source")["value"]
    off = (imagenet.groupby("source")["value"].mean() - means).dropna().abs()
    assert set(unlike["source"]) == set(off.index[off > 0.001]) == {"HK", "I2CVB", "RUNMC"}
    for method in ("sammed", "sammed_oracle"):
        sites = pairs.loc[pairs["method"] == method, ["source", "target"]]
        assert len(sites) == len(sites.drop_duplicates()) == 30 and (sites["source"] != sites["target"]).all()


def test_a_task_that_no_paper_reports_has_none():
    assert published.load("toy").empty


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (quoted(value="52.1"), "Dice 52.1 is no fraction"),
        (quoted(value="high"), "'high' is no number"),
        (quoted(value="nan"), "nan is no score"),
        (quoted(metric="jaccard"), "metric 'jaccard' is none of dice"),
        (quoted(source=""), "source is empty"),
        (quoted() + ",more", "another number of columns"),
        (quoted().replace("https", "http"), "no link"),
    ],
)
def test_a_line_that_cannot_be_looked_up_or_read_is_named(quote, line, problem):
    with pytest.raises(DataError, match=rf"doe_2020\.csv:3: .*{problem}"):
        quote(quoted(target="C"), line)


def test_a_number_may_stand_there_once(quote):
    with pytest.raises(DataError, match="same number as in line 2"):
        quote(quoted(), quoted(value="0.6"))
    assert len(quote(quoted(), quoted(value="0.6", note="ImageNet"))) == 2


def test_columns_of_another_name_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("method,value\nerm,0.5\n")
    with pytest.raises(DataError, match=r"x\.csv:1"):
        published.load("toy", [tmp_path / "x.csv"])


def test_the_difference_is_measured_minus_published_of_the_same_cell(quote):
    (row,) = beside(quote(quoted(value="0.75"))).itertuples()
    assert (row.paper, row.published, row.measured) == ("doe_2020", 0.75, 0.8)
    assert row.difference == pytest.approx(0.05)


def test_means_are_those_of_the_matrix(quote):
    found = beside(quote(quoted(target="mean of targets"), quoted(source="mean of sources", target="mean of targets")))
    assert list(found["measured"]) == pytest.approx([0.7, (0.7 + 0.6) / 2])


def test_the_default_variant_stands_beside_and_no_other(quote):
    assert beside(quote(quoted())).loc[0, "measured"] == 0.8  # erm[steps=9] has 0.1
    found = beside(quote(quoted()), RECORDS[2:])
    assert math.isnan(found.loc[0, "measured"])
    assert "erm was not run with its default settings" in found.loc[0, "reasons"]


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (quoted(method="csdg"), "csdg was not run"),
        (quoted(source="Decathlon"), "'Decathlon' is no domain of this task"),
        (quoted(structure="cup"), "structure 'cup' is not in this task"),
        (quoted(target="A", source="C"), "a run that it needs is not there"),
    ],
)
def test_where_nothing_was_measured_it_says_why_and_the_number_stays(quote, number, why):
    (row,) = beside(quote(number)).itertuples()
    assert math.isnan(row.measured) and math.isnan(row.difference) and row.published == 0.5
    assert why in row.reasons


def test_the_reasons_name_both_protocols_the_note_and_our_budget(quote):
    (row,) = beside(quote(quoted(note="ImageNet ResNet-34"))).itertuples()
    assert row.reasons.startswith("theirs: all slices; ImageNet ResNet-34. ours: protocol sdg: all slices, masks")
    assert row.reasons.endswith("initialisation scratch; 50 steps of batch 4; 1 seed")


def test_a_metric_that_the_protocol_does_not_have_is_not_looked_for(quote):
    records = [run("erm", s, {d: [0.5] for d in "ABC"}, protocol="dapsam", **OURS) for s in "ABC"]
    (row,) = beside(quote(quoted(metric="hd95", value="7.5")), records, PROTOCOLS["dapsam"]).itertuples()
    assert math.isnan(row.measured) and "hd95 is no metric of protocol dapsam" in row.reasons


def test_numbers_of_another_task_are_refused(quote):
    with pytest.raises(UsageError, match="two tasks"):
        beside(quote(quoted().replace("toy", "fundus", 1), task="fundus"))
    assert beside(quote(task="toy")).empty
