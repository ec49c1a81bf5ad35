"""What a comparison says in words, and as a table."""

import re

from dgbench.pages.table import as_text
from dgbench.pages.verdict import comparison_table, sentence
from dgbench.protocol import PROTOCOLS
from dgbench.scores.comparison import Comparison, compare
from dgbench.scores.study import Study
from tests.scores.test_comparison import noisy
from tests.scores.test_ranking import BAD, DOMAINS, GOOD, runs_of


def compared(one: list, other: list, **more) -> Comparison:
    return compare(Study([*one, *other], PROTOCOLS["sdg"]), one[0].variant, other[0].variant, **more)


def test_the_sentence_says_how_sure_it_is():
    words = sentence(compared(GOOD, BAD))
    assert words.startswith("good is better than bad. Difference +20.00 points (95 % interval +")
    assert "on 24 cases with 3 and 3 seeds; 100% of the cases are better" in words
    assert re.search(r"Probability of a false claim, over cases: p (< |= )0\.\d{4}\.$", words)


def test_what_is_equivalent_says_within_what():
    words = sentence(compared(GOOD, runs_of("nearly", 0.8001)))
    assert words.startswith("good is equivalent to nearly. ")
    assert words.endswith("The whole interval lies within ± 0.50 points.")


def test_what_is_not_resolved_says_what_would_resolve_it():
    words = sentence(compared(noisy("one", 0.7), noisy("another", 0.69)))
    assert words.startswith("one against another: not resolved.")
    cases = re.search(r"A difference of \d\.\d\d points would be resolved \(power 80 %\) by about (\d+) cases", words)
    assert cases and int(cases[1]) > 24


def test_fewer_cases_than_there_are_never_resolve_what_these_have_not():
    """The interval is wide because two seeds say little of how far seeds differ."""
    wild = [r for seed, level in ((0, 0.9), (1, 0.7)) for r in runs_of("wild", level, seeds=(seed,))]
    words = sentence(compared(wild, runs_of("poor", 0.3, seeds=(0, 1))))
    assert ": not resolved. " in words
    assert words.endswith("How far seeds differ is not known well enough by 2 of them: make more.")


def test_cases_of_one_patient_are_counted_as_one_and_called_so():
    runs = [*runs_of("one", 0.7), *runs_of("other", 0.5)]
    for r in runs:
        r.cases["group"] = r.cases["case"].str.replace(r"[1357]$", "0", regex=True)
    c = compare(Study(runs, PROTOCOLS["sdg"]), "one", "other")
    assert " on 12 groups of cases with 3 and 3 seeds; 100% of the groups of cases are better" in sentence(c)
    assert comparison_table(c).rows[1][0].text == "A (4 groups of cases)"


def test_one_seed_resolves_nothing():
    words = sentence(compared(runs_of("lucky", 0.9, seeds=(0,)), BAD))
    assert "not resolved" in words and "at least three" in words


def test_a_distance_is_counted_in_its_unit():
    assert re.search(r"Difference -2\.00 mm \(95 % interval -", sentence(compared(GOOD, BAD, metric="asd")))


def test_the_table_has_a_row_for_each_target():
    table = comparison_table(compared(GOOD, BAD))
    assert [row[0].text for row in table.rows] == ["all targets (24 cases)", *(f"{d} (8 cases)" for d in DOMAINS)]
    assert all(row[-1].text == "better" and row[3].text.startswith("+20.00 [+") for row in table.rows)
    assert "good minus bad" in as_text([table], "md")
