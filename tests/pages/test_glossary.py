"""The pages that explain a word: every number on them is measured, and they can be read anywhere."""

import io
import re
import subprocess
import sys

import medpy.metric.binary as medpy
import pytest
from rich.console import Console

from dgbench import metrics
from dgbench.errors import UsageError
from dgbench.pages import glossary


def text(topic):
    console = Console(file=io.StringIO(), width=80)
    console.print(glossary.explain(topic))
    return console.file.getvalue()


def number(page, definition):
    (found,) = re.findall(rf"^{re.escape(definition)} +(-?[\d.]+|inf|nan)", page, re.MULTILINE)
    return float(found)


@pytest.mark.parametrize("topic", glossary.TOPICS)
def test_a_page_is_plain_text_of_80_columns_where_there_is_no_terminal(topic):
    lines = text(topic).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > 5
    assert "\x1b" not in text(topic)


def test_a_topic_without_a_page_is_met_with_the_right_ones():
    with pytest.raises(UsageError, match=r"unknown topic 'ads'\ndid you mean 'asd'.* known: asd, assd, hd95, dice"):
        glossary.explain("ads")


def test_asd_is_explained_with_what_medpy_gives_on_the_same_masks():
    page, (prediction, reference) = text("asd"), glossary.masks()
    there = medpy.asd(prediction, reference, glossary.SPACING)
    back = medpy.asd(reference, prediction, glossary.SPACING)
    assert number(page, "P to R, mm, 3-D (directed)") == pytest.approx(there, abs=5e-4)
    assert number(page, "R to P, mm, 3-D (directed)") == pytest.approx(back, abs=5e-4)
    assert number(page, "mean of these two means") == pytest.approx((there + back) / 2, abs=5e-4)
    assd = medpy.assd(prediction, reference, glossary.SPACING)
    assert number(page, "both pooled, mm, 3-D") == pytest.approx(assd, abs=5e-4)
    assert number(page, "P to R, voxels, 3-D") == pytest.approx(medpy.asd(prediction, reference), abs=5e-4)


def test_the_definitions_of_asd_all_differ_on_this_pair():
    found = re.findall(r" (\d+\.\d+) (?:mm|voxels)  ", text("asd"))
    assert len(found) == len(set(found)) == 8


def test_dice_by_hand():
    """Reference: 3 slices of 8 x 8. Prediction: 4 slices of 8 x 6, three of them inside of it."""
    page = text("dice")
    assert number(page, "whole volume") == 100 * 2 * 144 / (192 + 192)
    assert number(page, "slices of the reference only") == pytest.approx(100 * 2 * 144 / (192 + 144), abs=0.005)
    assert number(page, "mean of slices, empty ones left out") == pytest.approx(100 * 0.75 * 6 / 7, abs=0.005)


def test_means_by_hand():
    page = text("mean")
    assert number(page, "each target equal") == 80  # 90, 90 and 60
    assert number(page, "all target cases pooled") == 75  # half of 86 cases have 90, the others 60


def test_what_a_missed_structure_does_to_a_mean():
    page, (prediction, reference) = text("missed"), glossary.masks()
    found = metrics.asd(prediction, reference, glossary.SPACING)
    diagonal = (18**2 + 8**2 + 8**2) ** 0.5  # 6 x 3 mm, 16 x 0.5 mm twice
    assert number(page, "costs the image's diagonal") == pytest.approx((found + diagonal) / 2, abs=5e-4)
    assert number(page, "counts 0") == pytest.approx(found / 2, abs=5e-4)
    assert number(page, "infinite") == float("inf")


def test_the_numbers_are_measured_when_the_page_is_made(monkeypatch):
    before = text("asd"), text("hd95")
    monkeypatch.setattr(glossary, "SPACING", tuple(2 * s for s in glossary.SPACING))
    for page, old, definition in zip(
        (text("asd"), text("hd95")), before, ("both pooled, mm, 3-D", "P to R only"), strict=True
    ):
        assert number(page, definition) == pytest.approx(2 * number(old, definition), abs=2e-3)


def test_a_page_is_made_without_what_is_slow_to_import(root):
    code = "import sys, dgbench.pages.glossary as e; e.explain('asd'); print(*({'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
