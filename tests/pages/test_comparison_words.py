"""What a comparison says in words. (port me)"""

def test_the_sentence_says_how_sure_it_is():
    words = comparison.sentence(comparison.compare(Study([*GOOD, *BAD], SDG), "good", "bad"))
    assert words.startswith("good is better than bad. Difference +20.00 points (95 % interval +")
    assert "on 24 cases with 3 and 3 seeds; 100% of the cases are better" in words


def test_what_is_not_resolved_says_what_would_resolve_it():
    words = comparison.sentence(
        comparison.compare(Study([*noisy("one", 0.7), *noisy("another", 0.69)], SDG), "one", "another")
    )
    assert words.startswith("one against another: not resolved.")
    cases = re.search(r"about (\d+) cases", words)
    assert cases and int(cases[1]) > 24


def test_one_seed_resolves_nothing():
    words = comparison.sentence(comparison.compare(Study([*runs_of("lucky", 0.9, seeds=(0,)), *BAD], SDG), "lucky", "bad"))
    assert "not resolved" in words and "at least three" in words


def test_the_table_has_a_row_for_each_target():
    t = comparison.table(comparison.compare(Study([*GOOD, *BAD], SDG), "good", "bad"))
    assert [row[0].text for row in t.rows] == ["all targets (24 cases)", *(f"{d} (8 cases)" for d in DOMAINS)]
    assert "good minus bad" in tables.markdown([t])
