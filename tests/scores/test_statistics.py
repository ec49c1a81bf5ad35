"""How sure a mean, a difference and a rank are: against SciPy, scikit-posthocs, hand-worked numbers and simulation."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dgbench.scores import statistics
from dgbench.scores.statistics import CaseScores, Resampling, difference, estimate


def scores(values, domain=None) -> CaseScores:
    """(R, N) or (N,), each domain equal, its cases equal."""
    values = np.atleast_2d(np.asarray(values, float))
    domain = np.zeros(values.shape[1], int) if domain is None else np.asarray(domain)
    size = np.bincount(domain)
    return CaseScores(values, 1 / (len(size) * size[domain]), domain)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_mean_weighs_domains_not_cases():
    assert scores([0.2, 0.4, 0.9], [0, 0, 1]).mean == pytest.approx(0.6)  # (0.3 + 0.9) / 2


def test_of_one_domain_and_one_seed_the_variance_is_that_of_a_mean():
    values = np.array([0.1, 0.5, 0.6, 0.8])
    found, _ = estimate(scores(values))
    assert found.case_variance == pytest.approx(values.var(ddof=1) / 4)
    assert found.seed_variance == 0


def test_seeds_add_the_variance_of_their_mean():
    # The seeds' means are 0.4, 0.5 and 0.6: variance 0.01, of their mean 0.01 / 3.
    values = np.array([[0.3, 0.5], [0.4, 0.6], [0.5, 0.7]])
    found, _ = estimate(scores(values))
    assert found.seed_variance == pytest.approx(0.01 / 3)
    assert found.case_variance == pytest.approx(0.02 / 2)  # the cases' means are 0.4 and 0.6


def test_a_part_weighs_one_again():
    part = scores([[0.2, 0.4, 0.9, 0.5]] * 2, [0, 0, 1, 1]).part(np.array([1, 2]))
    assert part.weight.tolist() == [0.5, 0.5] and part.domain.tolist() == [0, 1]
    assert part.values.tolist() == [[0.4, 0.9]] * 2 and part.mean == pytest.approx(0.65) and part.group is None


def test_a_part_keeps_its_groups():
    one = dataclasses.replace(scores([0.2, 0.4, 0.9, 0.5]), group=np.array([3, 3, 1, 1]))
    assert one.part(np.array([0, 2, 3])).group.tolist() == [3, 1, 1]


def test_the_spread_of_large_numbers_that_differ_little_is_not_lost():
    """Their squares have no digits left for it: 1e9 squared is 1e18, and a float has sixteen digits."""
    values = np.array([0.25, 0.5, 0.75, 1.0])
    near, far = (estimate(scores(values + level))[0] for level in (0.0, 1e9))
    assert far.case_variance == pytest.approx(near.case_variance) == pytest.approx(values.var(ddof=1) / 4)
    assert far.high - far.low == pytest.approx(near.high - near.low, rel=1e-6)


def test_cases_drawn_from_a_domain_lie_together_or_apart_and_give_the_same():
    """Whether the cases of a domain follow one another changes only which of them a draw hits."""
    values, domain = np.random.default_rng(2).random((2, 12)), np.repeat([0, 1, 2], 4)
    mixed = np.argsort(np.tile(np.arange(4), 3), kind="stable")  # 0, 1, 2, 0, 1, 2, ...
    one_off = np.array([0, 1, 2, 4, 3, *range(5, 12)])  # 0, 0, 0, 1, 0, 1, ...
    together, *others = (
        estimate(scores(values[:, order], domain[order]))[0] for order in (np.arange(12), mixed, one_off)
    )
    for apart in others:
        assert apart.case_variance == pytest.approx(together.case_variance)
        assert apart[:3] == pytest.approx(together[:3], abs=0.02)


def test_cases_drawn_once_for_all_are_weighed_as_each_method_asks():
    """One method tested from more sources than another weighs its cases otherwise: what was kept for one is not its."""
    values, heavy = np.array([[0.1, 0.4, 0.5, 0.9]]), np.array([0.7, 0.1, 0.1, 0.1])
    shared = Resampling(np.zeros(4, int))
    first, other, again = (
        estimate(CaseScores(values, w, shared.domain), resampling=shared)
        for w in (np.full(4, 0.25), heavy, np.full(4, 0.25))
    )
    alone = estimate(CaseScores(values, heavy, shared.domain))
    assert other[0] == alone[0] and (other[1] == alone[1]).all() and first[0] == again[0] != other[0]


def test_in_every_draw_a_domain_weighs_what_it_does_whichever_of_its_cases_are_drawn():
    """One case weighs as much as four others: where it is drawn twice, these would be next to nothing."""
    weight, domain = np.array([0.4, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), np.array([0, 0, 0, 0, 0, 1, 1])
    drawn = Resampling(domain, 50).weighted(weight)
    assert drawn[:, :5].sum(axis=1) == pytest.approx(0.8) and drawn[:, 5:].sum(axis=1) == pytest.approx(0.2)
    draws = estimate(CaseScores(np.full((2, 7), 0.3), weight, domain))[1]
    assert draws == pytest.approx(0.3)


def test_each_domain_varies_about_its_own_mean():
    """Two domains far apart with no spread inside: nothing is left to chance."""
    found, _ = estimate(scores([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 1]))
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)


def test_of_a_domain_with_one_case_no_interval_is_known():
    found, _ = estimate(scores([0.1, 0.2, 0.9], [0, 0, 1]))
    assert found.mean == pytest.approx(0.525) and math.isnan(found.low) and math.isnan(found.high)


def test_constant_scores_have_an_interval_of_no_width_whatever_was_rounded():
    """0.1 + 0.2 is 0.3 but for the last bit: a spread of 1e-17 is none, in a mean as in a difference."""
    noisy = [[0.3, 0.1 + 0.2, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3, 0.3]]
    for found, _ in (estimate(scores(noisy)), estimate(scores(noisy), scores([[0.2] * 4] * 2))):
        assert found.high - found.low < 1e-12 and found.low == pytest.approx(found.mean)


@pytest.mark.parametrize("what", ["cases", "seeds"])
def test_an_interval_is_that_of_all_draws_there_are(what: str):
    """Of six, 6^6 draws are equally likely; each has a mean and, as any sample, a standard error of its own."""
    x = np.array([0.2, 0.33, 0.41, 0.58, 0.69, 0.84])
    draws = x[np.indices((6,) * 6).reshape(6, -1)]
    with np.errstate(divide="ignore"):
        t = (draws.mean(axis=0) - x.mean()) / (draws.std(axis=0, ddof=1) / math.sqrt(6))
    high, low = np.quantile(np.clip(t, -6, 6), [0.025, 0.975])
    se = x.std(ddof=1) / math.sqrt(6)
    values = scores(x if what == "cases" else np.repeat(x[:, None], 3, axis=1))
    found, _ = estimate(values, resampling=Resampling(values.domain, 200_000))
    assert found.se == pytest.approx(se)
    assert (found.low, found.high) == pytest.approx((x.mean() - low * se, x.mean() - high * se), abs=0.05 * se)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_30_cases_hold_the_truth_as_often_as_they_say(seeds):
    """400 simulated studies of skewed scores, a tenth of them failures; 2 standard errors of a share of 400 are 2 %."""
    rng = np.random.default_rng(0)
    domain = np.arange(30) % 4
    resampling = Resampling(domain, draws=800)
    held = 0
    for _ in range(400):
        cases = np.where(rng.random(30) < 0.1, 0, rng.beta(8, 2, 30))
        noise = rng.normal(0, 0.02, (seeds, 1)) if seeds > 1 else 0
        found, _ = estimate(scores(cases + noise + rng.normal(0, 0.02, (seeds, 30)), domain), resampling=resampling)
        held += found.low <= 0.9 * 0.8 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_one_odd_case_does_not_blow_an_interval_up():
    """Nine of ten cases score the same: a third of the draws are without the odd one, SE* is 0 there, and t* infinite.
    6 SE is the farthest, on the side where the odd case lies; dropping these draws would end the interval at the mean.
    """
    found, _ = estimate(scores([[0.0] * 9 + [0.5]] * 3))
    assert found.high - found.mean == pytest.approx(6 * found.se)
    found, _ = estimate(scores([[0.5] * 9 + [0.0]] * 3))
    assert found.mean - found.low == pytest.approx(6 * found.se)


def test_two_cases_leave_nearly_everything_open():
    """Half of the draws are one case twice, which has no spread: that is no certainty."""
    found, _ = estimate(scores([0.2, 0.8]))
    assert found.se == pytest.approx(0.3)  # sqrt(0.18 / 2)
    assert (found.low, found.high) == pytest.approx((0.5 - 6 * 0.3, 0.5 + 6 * 0.3))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=12), st.floats(-5, 5))
def test_adding_a_constant_moves_the_interval_with_the_mean(values, constant):
    a, _ = estimate(scores(values), resampling=Resampling(np.zeros(len(values), int), 200))
    b, _ = estimate(scores(np.array(values) + constant), resampling=Resampling(np.zeros(len(values), int), 200))
    assert np.allclose(np.array(b[:3]) - constant, a[:3], atol=1e-6)


def test_the_draws_spread_as_the_standard_error_says():
    values = np.random.default_rng(1).normal(size=(2, 12))
    found, draws = estimate(scores(values, np.arange(12) % 3))
    assert draws.std() == pytest.approx(found.se)
    assert draws.mean() == pytest.approx(found.mean, abs=0.05 * found.se)


# --- groups ----------------------------------------------------------------------------------------------------------


def doubled(one: CaseScores, grouped: bool = True) -> CaseScores:
    """Every case twice, at half its weight, the two in one group."""
    values, weight, domain = np.repeat(one.values, 2, axis=1), np.repeat(one.weight, 2) / 2, np.repeat(one.domain, 2)
    return CaseScores(values, weight, domain, np.repeat(np.arange(len(one.domain)), 2) if grouped else None)


def test_every_case_twice_in_one_group_says_nothing_new():
    rng = np.random.default_rng(0)
    one, other = (scores(rng.random((3, 20)), np.arange(20) % 3) for _ in range(2))
    assert estimate(doubled(one))[0] == pytest.approx(estimate(one)[0], rel=1e-12)
    known, same = difference(one, other), difference(doubled(one), doubled(other))
    assert same.cases == 20 and same.estimate == pytest.approx(known.estimate, rel=1e-9, abs=1e-15)
    assert (same.p, same.effect, same.improved) == (known.p, known.effect, known.improved)
    alone = estimate(doubled(one, grouped=False))[0]  # as 40 patients: too sure
    assert alone.case_variance == pytest.approx(estimate(one)[0].case_variance / 2, rel=0.1)


def test_what_cases_of_a_group_add_together_is_what_varies():
    # Groups (0.2, 0.6), (0.5), (0.9), each case a quarter: deviations from 0.55 sum to -0.3, -0.05 and 0.35, a quarter
    # of each is -0.075, -0.0125, 0.0875, their squares sum to 0.0134375, times n / (n - 1) = 3 / 2.
    one = CaseScores(np.array([[0.2, 0.6, 0.5, 0.9]]), np.full(4, 0.25), np.zeros(4, int), np.array([7, 7, 3, 9]))
    assert estimate(one)[0].mean == pytest.approx(0.55)
    assert estimate(one)[0].case_variance == pytest.approx(1.5 * 0.0134375)


def test_a_patient_seen_in_two_domains_is_one_draw():
    """Each patient is 0.4 worse in the second domain: what varies is the patients' mean, as if seen once."""
    patients = np.array([0.9, 0.6, 0.7, 0.8, 0.5])
    domain, group = np.repeat([0, 1], 5), np.tile(np.arange(5), 2)
    both = dataclasses.replace(scores(np.concatenate([patients, patients - 0.4]), domain), group=group)
    found = estimate(both)[0]
    assert found.mean == pytest.approx(0.5) and found.case_variance == pytest.approx(patients.var(ddof=1) / 5)
    as_ten = estimate(dataclasses.replace(both, group=None))[0]
    assert as_ten.case_variance == pytest.approx(found.case_variance / 2)


def test_a_patient_without_a_case_in_the_hard_domain_is_not_better_for_it():
    """Five patients, all alike, one of them seen in the easy domain only: nothing is left to chance."""
    domain, group = np.repeat([0, 1], [5, 4]), np.array([0, 1, 2, 3, 4, 0, 1, 2, 3])
    one = dataclasses.replace(scores([0.9] * 5 + [0.3] * 4, domain), group=group)
    found = estimate(one)[0]
    assert found.mean == pytest.approx(0.6) and found.high - found.low < 1e-9


def test_domains_that_share_no_patient_vary_each_about_its_own_mean():
    domain, group = np.repeat([0, 1], 4), np.array([0, 0, 1, 1, 2, 2, 3, 3])
    one = dataclasses.replace(scores([0.1] * 4 + [0.9] * 4, domain), group=group)
    assert Resampling(domain, 10, group=group).domain.tolist() == [0, 0, 1, 1]
    assert estimate(one)[0].low == estimate(one)[0].high == pytest.approx(0.5)


# --- two methods -----------------------------------------------------------------------------------------------------


def test_what_the_cases_share_does_not_blur_a_difference():
    """Hard and easy cases differ by 0.8; one method is 0.1 better on each of them."""
    hard = np.linspace(0.1, 0.9, 12)
    d = difference(scores([hard + 0.1, hard + 0.1]), scores([hard, hard]))
    assert d.estimate.mean == pytest.approx(0.1)
    assert d.estimate.case_variance == pytest.approx(0, abs=1e-12)


def test_wilcoxons_test_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, (2, 25)), rng.normal(0, 1, (3, 25))
    assert difference(scores(a), scores(b)).p == stats.wilcoxon(a.mean(0), b.mean(0)).pvalue


def test_effect_size_and_improvement_by_hand():
    # Differences 0.1, 0.2, 0.3 and -0.4: ranks up 1 + 2 + 3, down 4; three of four cases are better.
    d = difference(scores([0.1, 0.2, 0.3, 0]), scores([0, 0, 0, 0.4]))
    assert d.effect == pytest.approx((6 - 4) / 10)
    assert d.improved == 0.75


def test_equal_methods_have_no_effect_and_no_claim():
    d = difference(scores([[0.5] * 8] * 2), scores([[0.5] * 8] * 2))
    assert (d.p, d.effect, d.improved, d.false_claim) == (1.0, 0.0, 0.5, 0.5)
    assert d.verdict(margin=0.01) == "equivalent"


def test_the_same_masks_under_three_seeds_and_under_two_are_equal():
    values = np.random.default_rng(0).random(40)
    three, two = scores([values] * 3), scores([values] * 2)
    assert (three.of_case != two.of_case).any()  # a sum of three, divided by three, differs in the last bit
    found = difference(three, two)
    assert (found.p, found.effect, found.improved, found.false_claim) == (1.0, 0.0, 0.5, 0.5)


def test_a_false_claim_has_the_probability_of_students_t():
    """Christodoulou et al.: P = t_(n-1)(-sqrt(n) mean / sd) of the paired differences."""
    gain = np.array([0.3, 0.1, -0.1, 0.2, 0.0])
    expected = stats.ttest_1samp(gain, 0, alternative="greater").pvalue
    assert difference(scores(gain), scores(np.zeros(5))).false_claim == pytest.approx(expected)
    # Of two cases, 0.3 and 0.1: t = 0.2 sqrt(2) / sqrt(0.02) = 2, of one degree of freedom: 1/2 - atan(2) / pi.
    two = difference(scores(gain[:2]), scores(np.zeros(2))).false_claim
    assert two == pytest.approx(0.5 - math.atan(2) / math.pi)


def verdict(gain, seeds=3, lower_is_better=False, margin=0.005):
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, 40)
    wobble = np.linspace(-0.001, 0.001, seeds)[:, None]
    d = difference(scores(base + gain + wobble), scores(base + wobble), lower_is_better)
    return dataclasses.replace(d, p_holm=d.p).verdict(margin)  # in a family of one, Holm changes nothing


GAIN = 0.05 + 0.02 * np.sin(np.arange(40))


def test_verdicts():
    assert verdict(GAIN) == "better"
    assert verdict(-GAIN) == "worse"
    assert verdict(GAIN, lower_is_better=True) == "worse"  # of a distance, more is worse
    assert verdict(0.001 * np.sin(np.arange(40))) == "equivalent"
    assert verdict(0.1 * np.sin(np.arange(40))) == "not resolved"


@pytest.mark.parametrize(
    ("mean", "costs", "both"),
    [
        ("better", "better", "better"),
        ("better", "equivalent", "better"),
        ("not resolved", "worse", "worse"),
        ("better", "worse", "not resolved"),
        ("equivalent", "equivalent", "equivalent"),
        ("equivalent", "not resolved", "not resolved"),
    ],
)
def test_of_two_differences_one_word(mean, costs, both):
    assert statistics.joint(mean, costs) == statistics.joint(costs, mean) == both


def test_nothing_is_better_by_one_seed():
    assert verdict(GAIN, seeds=1) == "not resolved"


def test_an_interval_without_zero_is_not_enough():
    """Both must speak: with p above 0.05 after Holm's correction the verdict stays open."""
    base = np.random.default_rng(0).uniform(0.3, 0.7, 40)
    d = difference(scores([base + GAIN] * 2), scores([base] * 2))
    assert d.estimate.low > 0
    assert dataclasses.replace(d, p_holm=0.06).verdict(0.005) == "not resolved"


def test_where_no_interval_is_known_nothing_is_resolved():
    """A domain with one case, whatever the test over all cases says."""
    domain = [*[0] * 40, 1]
    d = difference(scores([[*GAIN, 0.05]] * 2, domain), scores([np.zeros(41)] * 2, domain))
    assert d.p < 1e-6 and math.isnan(d.estimate.low)
    assert dataclasses.replace(d, p_holm=d.p).verdict(0.005) == "not resolved"


def test_a_small_p_is_not_enough():
    """An interval with 0 in it leaves the verdict open, whatever the test of the cases alone says."""
    d = difference(scores([GAIN] * 2), scores([np.zeros(40)] * 2))
    open_ = d.estimate._replace(mean=0.02, low=-0.01, high=0.05)
    assert dataclasses.replace(d, estimate=open_, p_holm=0.001).verdict(0.005) == "not resolved"


def test_four_times_the_cases_halve_what_they_leave_open():
    """Only cases vary; the difference is half of what these cases resolve, so four times as many are needed."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=50)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    resolved = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) / math.sqrt(50)
    d = difference(scores([noise + resolved / 2] * 2), scores([np.zeros(50)] * 2))
    cases, seeds = d.needed(margin=0.0)
    assert cases == pytest.approx(200) and math.isinf(seeds)


def test_what_would_resolve_a_difference_leaves_to_cases_or_seeds_what_the_others_do_not_bring():
    """Of mean 2.8016, the sum of the normal quantiles of 97.5 % and 80 %, the variance must fall to 1."""
    d = difference(scores([[0.1] * 10] * 3), scores([[0.0] * 10] * 5))
    size = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    for mean, margin in ((size, 0.0), (-size, 0.0), (0.0, size)):  # one below the margin need not be resolved
        of = dataclasses.replace(d, estimate=d.estimate._replace(mean=mean, case_variance=0.5, seed_variance=0.25))
        # Cases: 0.5 of 10, for which 0.75 are left. Seeds: 0.25 of 3, the fewer of both, for which 0.5 are left.
        assert of.needed(margin) == pytest.approx((10 * 0.5 / 0.75, 3 * 0.25 / 0.5))
    never = dataclasses.replace(d, estimate=d.estimate._replace(mean=size, case_variance=1.0, seed_variance=1.0))
    assert never.needed(0.0) == (math.inf, math.inf)


def test_holms_correction_is_that_of_statsmodels():
    """statsmodels 0.15.0, multipletests(method="holm")."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.2])


def test_a_test_that_could_not_be_made_does_not_count_in_the_family():
    found = statistics.holm([0.02, math.nan, 0.03])
    assert found[::2] == pytest.approx([0.04, 0.04]) and math.isnan(found[1])


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_equal_means_share_the_better_rank():
    assert list(statistics.ranks([0.7, 0.9, 0.9, 0.8])) == [4, 1, 1, 3]
    assert list(statistics.ranks([0.7, 0.9, 0.9, 0.8], lower_is_better=True)) == [1, 3, 3, 2]


def test_methods_that_cannot_be_told_apart_share_their_interval_of_ranks():
    rng = np.random.default_rng(0)
    draws = np.column_stack([rng.normal(0.8, 0.01, 4000), rng.normal(0.8, 0.01, 4000), rng.normal(0.2, 0.01, 4000)])
    assert statistics.rank_intervals(draws) == [(1, 2), (1, 2), (3, 3)]


@pytest.mark.parametrize(("draws", "ranks"), [(2, [(1, 1), (2, 2)]), (3, [(1, 2), (1, 2)])])
def test_a_rank_is_in_the_interval_from_the_fortieth_part_of_the_draws_on(draws: int, ranks: list[tuple[int, int]]):
    """In so many of 100 draws the second is first: 2 are below 2.5 %, 3 are above."""
    of_two = np.array([[0.8, 0.9]] * draws + [[0.8, 0.7]] * (100 - draws))
    assert statistics.rank_intervals(of_two) == ranks
    assert statistics.rank_intervals(-of_two, lower_is_better=True) == ranks


def formula() -> np.ndarray:
    i, j = np.mgrid[:8, :4]
    return np.round(0.5 + 0.3 * np.sin(1.7 * i + 0.9 * j) + 0.04 * j, 6)
