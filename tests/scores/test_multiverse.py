"""The multiverse: its first universe is the leaderboard, and what hangs on one choice changes with that one alone."""

import dataclasses
import itertools
import math
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores import multiverse as scores
from dgbench.scores.case_cube import MEAN, MISSED, CaseCube, Choices, Missed
from dgbench.scores.multiverse import Multiverse, multiverse, of_folder
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests.scores.test_study import on_disk
from tests.toy_runs import DIAGONAL, changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
DOMAINS, SEEDS = ("A", "B", "C"), (0, 1, 2)
Levels = Callable[[str, str, int], Any]  # (source, target, seed) -> the scores of its cases


def of(variant: str, levels: Levels, **record: Any) -> list[RunRecord]:
    """Every source and seed of a variant; its own cases stand for the validation."""
    return [
        run(variant, s, {d: levels(s, d, seed) if d != s else [0.9] for d in DOMAINS}, seed, **record)
        for s, seed in itertools.product(DOMAINS, SEEDS)
    ]


def look(*variants: list[RunRecord], protocol=SDG, metric: str = "dice", **more: Any) -> Multiverse:
    study = Study([r for runs in variants for r in runs], protocol)
    return multiverse(rank(study, metric, draws=500), **more)


def drawn(variant: str, seed: int, flags: bool = True, **record: Any) -> list[RunRecord]:
    """Scores at random, some structures missed, falsely found or in neither mask (these alike for every variant)."""
    rng, empty = np.random.default_rng(seed), {("B", 1), ("C", 0)} if flags else set()

    def case(d: str, i: int) -> float | str:
        lost = flags and rng.random() < 0.15
        return "both_empty" if (d, i) in empty else "missed" if lost else round(float(rng.random()), 3)

    return of(variant, lambda s, d, n: [case(d, i) for i in range(5 + DOMAINS.index(d))], **record)


# --- the leaderboard -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["phantom", "breast_us"])
@pytest.mark.parametrize("metric", ["dice", "asd", "hd95"])
def test_the_first_universe_is_the_committed_leaderboard(archives: Path, task: str, metric: str):
    board = rank(Study.load(archives, task, "sdg"), metric, draws=20)
    first = multiverse(board).universes[0]
    assert first.means.tolist() == pytest.approx([r.row.mean for r in board.ranked], rel=1e-12)
    assert first.ranks.tolist() == list(range(1, len(board.ranked) + 1)) and not first.parts


@pytest.fixture(scope="module")
def archives(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for task in ("phantom", "breast_us"):
        with tarfile.open(root / f"results/scores-{task}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("metric", SDG.metrics)
@pytest.mark.parametrize("missed", ["penalty", "nan"])
@pytest.mark.parametrize("mean", ["domains", "cases"])
def test_a_mean_under_other_choices_is_that_of_a_protocol_with_these_choices(metric: str, missed, mean):
    """Two ways to one number: the arrays here, and the matrix of a study whose protocol says the same."""
    runs = [*drawn("x", 0), *drawn("y", 1)]
    found = CaseCube(Study(runs, SDG), ["x", "y"]).means(Choices(metric, missed, mean))
    other = Study(runs, dataclasses.replace(SDG, missed=missed, mean=mean))
    expected = [other.matrix(v, metric).mean for v in ("x", "y")]
    assert found.tolist() == pytest.approx(expected, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("what, part", [("seed", 1), ("source", "B")])
def test_what_is_left_out_might_as_well_not_have_been_run(what: str, part):
    runs = [*drawn("x", 0), *drawn("y", 1)]
    found = CaseCube(Study(runs, SDG), ["x", "y"]).means(Choices("asd", "penalty", "domains", (what, part)))
    rest = Study([r for r in runs if getattr(r, what) != part], SDG)
    assert found.tolist() == pytest.approx([rest.matrix(v, "asd").mean for v in ("x", "y")], rel=1e-12)


def test_a_target_that_is_left_out_might_as_well_not_have_been_tested():
    runs = [*drawn("x", 0), *drawn("y", 1)]
    found = CaseCube(Study(runs, SDG), ["x", "y"]).means(Choices("dice", "penalty", "domains", ("target", "B")))
    rest = []
    for r in runs:
        told = {**r.record, "targets": [d for d in r.record["targets"] if d != "B"]}
        kept = (r.cases["domain"] != "B") | (r.cases["role"] != "target")
        rest.append(RunRecord(r.path, told))
        vars(rest[-1])["cases"] = r.cases[kept]
    assert found.tolist() == pytest.approx([Study(rest, SDG).matrix(v).mean for v in ("x", "y")], rel=1e-12)


# --- every choice, worked out by loops -------------------------------------------------------------------------------

UNEVEN = {"A": 2, "B": 5, "C": 4}  # cases of a domain
EMPTY = {("A", 0, "cup"), ("B", 1, "cup"), ("B", 4, "disc"), ("C", 0, "disc"), *(("C", i, "cup") for i in range(4))}
Scores = Mapping[tuple[str, int], Mapping[str, Mapping[str, list[Any]]]]  # by source and seed, domain, structure


def uneven(variant: str, seed: int, empty: set[tuple[str, int, str]]) -> tuple[Scores, list[RunRecord]]:
    """Two structures with scores at random; some that the references do not hold are found all the same."""
    rng, two = np.random.default_rng(seed), ("disc", "cup")

    def score(d: str, i: int, structure: str) -> float | str:
        lost = rng.random() < 0.3
        if (d, i, structure) in empty:
            return "false_positive" if lost else "both_empty"
        return "missed" if lost and i == 3 else round(float(rng.random()), 3)

    scores = {
        (s, n): {d: {k: [score(d, i, k) for i in range(m)] for k in two} for d, m in UNEVEN.items()}
        for s, n in itertools.product(DOMAINS, SEEDS)
    }
    return scores, [run(variant, s, of, n, structures=list(two)) for (s, n), of in scores.items()]


def counted(scores: list[Any], metric: str, missed: str) -> list[float]:
    """What of these is in a mean, and as what."""
    lost, best, empty = (0.0, 1.0, 0.0) if metric == "dice" else (DIAGONAL, 0.0, math.nan)
    rules = {
        "missed": {"penalty": lost, "nan": empty, "absent": lost},
        "false_positive": {"nan": empty, "absent": lost},
        "both_empty": {"nan": math.nan, "absent": best},
    }
    values = [rules[x].get(missed) if isinstance(x, str) else x if metric == "dice" else 10 * (1 - x) for x in scores]
    return [float(v) for v in values if v is not None]


def charge(scores: Iterable[Any], metric: str, missed: str) -> float:
    """What those found falsely among all of them cost."""
    one = 1 if metric == "dice" else DIAGONAL
    return one * fmean(x == "false_positive" for x in scores) if missed == "penalty" else 0.0


def mean_of(runs: Scores, metric: str, missed: str, mean: str) -> float:
    middle, sign = np.median if mean == "median" else np.mean, 1 if metric == "dice" else -1
    nets: dict[str, list[float]] = {}  # by target
    for (source, _), of_run in runs.items():
        targets = {d: of for d, of in of_run.items() if d != source}
        if mean == "cases":
            targets = {"all": {s: [x for of in targets.values() for x in of[s]] for s in ("disc", "cup")}}
        for d, of in targets.items():
            held = [x for x in of.values() if missed in ("nan", "absent") or set(x) - {"false_positive", "both_empty"}]
            cells = [counted(x, metric, missed) for x in held]
            score = fmean(float(middle(cell)) if cell else math.nan for cell in cells)
            nets.setdefault(d, []).append(score - sign * charge(itertools.chain(*of.values()), metric, missed))
    of_targets = [fmean(of) for of in nets.values()]
    return float((np.min if sign > 0 else np.max)(of_targets)) if mean == "worst" else fmean(of_targets)


def ranks_of(variants: list[Scores], metric: str, missed: str) -> list[float]:
    sign, of_domains = -1 if metric == "dice" else 1, []
    for d, n in UNEVEN.items():
        of_domain = []
        for i in range(n):
            each = [[x[i] for (s, _), of in runs.items() if s != d for x in of[d].values()] for runs in variants]
            scores = [counted(of, metric, missed) for of in each]
            if all(scores):  # of every variant something counts
                costs = [sign * fmean(x) + charge(of, metric, missed) for x, of in zip(scores, each, strict=True)]
                of_domain.append(costs)
        of_domains.append(of_domain)
    known = ~np.isnan([c for of in of_domains for c in of]).any(axis=0)
    ranks = np.full(len(variants), np.nan)
    each = [np.mean([stats.rankdata(np.round(np.array(c)[known], 9)) for c in of], axis=0) for of in of_domains]
    ranks[known] = np.mean(each, axis=0)
    return ranks.tolist()


@pytest.mark.parametrize("missed", MISSED)
def test_a_mean_under_any_choice_is_that_of_nested_loops(missed: Missed):
    """By Dice and a distance, with what is missed, falsely found and in neither mask, in domains of unequal size."""
    made = {v: uneven(v, i, set() if missed == "nan" else EMPTY) for i, v in enumerate("xyz")}
    cube = CaseCube(Study([r for _, runs in made.values() for r in runs], SDG), list(made))
    scores = [of for of, _ in made.values()]
    for metric, mean in itertools.product(("dice", "asd"), MEAN):
        expected = (
            [mean_of(of, metric, missed, mean) for of in scores]
            if mean != "ranks"
            else ranks_of(scores, metric, missed)
        )
        found = cube.means(Choices(metric, missed, mean)).tolist()
        assert found == pytest.approx(expected, rel=1e-9, nan_ok=True), (metric, mean)


def test_what_a_false_finding_costs_need_not_be_known_where_none_is_charged():
    """The scores of others say nothing of an image's diagonal. Of what was found, 0.9 and 0.7, the ASD is 1 and 3."""
    runs = of("x", lambda s, d, seed: [0.9, "false_positive", 0.7])
    study = Study([changed(r, cases=r.cases.assign(diagonal=math.nan)) for r in runs], SDG)
    of_rule = {missed: CaseCube(study, ["x"]).means(Choices("asd", missed, "domains")).item() for missed in MISSED}
    assert of_rule["found"] == pytest.approx(2) and math.isnan(of_rule["penalty"])


# --- one choice ------------------------------------------------------------------------------------------------------


def with_sizes(runs: list[RunRecord], sizes=(10, 20, 30)) -> list[RunRecord]:
    """The references of a domain's cases are of these sizes."""
    return [changed(r, cases=r.cases.assign(n_reference=_numbers(r, sizes))) for r in runs]


def _numbers(r: RunRecord, sizes) -> list[int]:
    return [sizes[int(case.rpartition("-")[2])] for case in r.cases["case"]]


def with_metric(runs: list[RunRecord], **values: float) -> list[RunRecord]:
    """The found structures have these values of a metric."""
    found = [(r, r.cases["flag"] == "") for r in runs]
    return [changed(r, cases=r.cases.assign(**{m: r.cases[m].mask(f, v) for m, v in values.items()})) for r, f in found]


def two(variant: str, **levels: float) -> list[RunRecord]:
    """Every case scores so on two structures."""
    each = {structure: [level] for structure, level in levels.items()}
    scored = {d: each for d in DOMAINS}
    return [run(variant, s, scored, seed, structures=list(levels)) for s in DOMAINS for seed in SEEDS]


STEADY: Levels = lambda s, d, seed: [0.7]  # noqa: E731
HANGS: Mapping[str, tuple[list[RunRecord], list[RunRecord], dict[str, tuple[str, ...]]]] = {
    # x: a large HD95 though its Dice is better.
    "the metric": (
        with_metric(of("x", lambda s, d, seed: [0.8]), hd95=50.0),
        of("y", STEADY),
        {"metric": ("HD95",)},
    ),
    # x: 0.75, 0.5 and a miss: mean 0.417, of those found 0.625. y: 0.6 everywhere.
    "missed structures": (
        of("y", lambda s, d, seed: [0.6, 0.6, 0.6]),
        of("x", lambda s, d, seed: [0.75, "missed", 0.5]),
        {"missed structures": ("left out",)},
    ),
    # x is nearer to the reference where it finds the structure, by ASD alone, and overlaps less.
    "a metric and missed structures together": (
        of("y", lambda s, d, seed: [0.8, 0.81, 0.79]),
        with_metric(of("x", lambda s, d, seed: [0.7, "missed", 0.7]), asd=1.0),
        {"several at once": ("ASD, missed structures left out",)},
    ),
    # x: 0.9 in the one case of A, 0.68 in two of B and of C. From A 0.68, from B and from C (0.9 + 0.68) / 2 = 0.79:
    # 0.753. Of cases pooled, from B and C (0.9 + 2 x 0.68) / 3 = 0.753: 0.729. y: 0.73 everywhere.
    "the mean": (
        of("x", lambda s, d, seed: [0.9] if d == "A" else [0.68, 0.68]),
        of("y", lambda s, d, seed: [0.73] if d == "A" else [0.73, 0.73]),
        {
            "mean": ("cases pooled", "the worst target", "mean rank over cases"),
            "target left out": ("A",),
        },
    ),
    # x: disc 0.9, cup 0.54, mean 0.72; y: 0.7 and 0.7.
    "a structure": (
        two("x", disc=0.9, cup=0.54),
        two("y", disc=0.7, cup=0.7),
        {"structure left out": ("disc",)},
    ),
    # x: 0.6 from A, 0.74 from B and C, mean 0.693.
    "a source": (
        of("y", STEADY),
        of("x", lambda s, d, seed: [0.6 if s == "A" else 0.74]),
        {"source left out": ("A",)},
    ),
    # x: 0.72, 0.72 and 0.65 by seed, mean 0.697.
    "a seed": (
        of("y", STEADY),
        of("x", lambda s, d, seed: [0.65 if seed == 2 else 0.72]),
        {"seed left out": ("seed 2",)},
    ),
    # Without the smallest x has (0.6 + 0.5) / 2 and y (0.59 + 0.55) / 2; by median and by ranks x stays first.
    "some cases": (
        with_sizes(of("x", lambda s, d, seed: [0.9, 0.6, 0.5])),
        with_sizes(of("y", lambda s, d, seed: [0.6, 0.59, 0.55])),
        {"cases left out": ("smallest third",)},
    ),
}


@pytest.mark.parametrize("choice", HANGS)
def test_an_order_that_hangs_on_a_choice_changes_with_it_and_with_no_other(choice: str):
    first, second, expected = HANGS[choice]
    (pair,) = look(first, second).pairs
    assert (pair.one, pair.other) == (first[0].variant, second[0].variant)
    assert pair.changed == expected and pair.kept < pair.known


def test_a_third_of_the_cases_is_left_out_by_size_where_sizes_are_known():
    same = look(of("x", lambda s, d, seed: [0.9, 0.6, 0.5]), of("y", lambda s, d, seed: [0.6, 0.59, 0.55]))
    assert same.missing["cases left out"] == scores.NO_THIRDS
    assert "cases left out" not in same.kinds


# --- which universes there are ---------------------------------------------------------------------------------------


def test_universes_with_the_same_numbers_are_one_and_are_named():
    """Targets of one size weigh the same when cases are pooled, by any metric; alike by accident is not the same."""
    found = look(of("x", lambda s, d, seed: [0.8, 0.5]), of("y", lambda s, d, seed: [0.6, 0.7]))
    same = {u.label: [s.label for s in u.same] for u in found.universes}
    assert "cases pooled" in same["leaderboard"] and "cases pooled" not in same
    assert same["ASD"] == ["ASD, cases pooled"]
    found = look(*HANGS["a seed"][:2])  # without seed 0 or without seed 1 the same two numbers are left
    assert [found.universes[i].name for i in found.kinds["seed left out"]] == ["seed 0", "seed 1", "seed 2"]


def test_a_shift_is_how_many_places_are_gained_against_the_leaderboard():
    """y is first there; without seed 2 x is."""
    found = look(*HANGS["a seed"][:2])
    (without,) = (i for i, u in enumerate(found.universes) if u.name == "seed 2")
    assert found.variants == ["y", "x"] and found.shifts[without].tolist() == [-1, 1]
    assert found.shifts[0].tolist() == [0, 0]


def test_what_cannot_be_chosen_is_said():
    found = look(
        of("x", STEADY), of("y", lambda s, d, seed: [0.6]), protocol=dataclasses.replace(SDG, metrics=("dice",))
    )
    assert found.missing["metric"] == "these runs have Dice alone"
    assert found.missing["structure left out"] == "there is no second structure"


def test_a_metric_that_a_task_asks_for_besides_is_the_leaderboards_own():
    """By clDice `y` is first; the rest of the choices is judged against that order."""
    runs = [*of("x", STEADY), *of("y", lambda s, d, seed: [0.6])]
    for r in runs:
        r.record["further_metrics"] = ["cldice"]
        r.cases["cldice"] = 1 - r.cases["dice"]
    found = multiverse(rank(Study(runs, SDG), "cldice"))
    assert (found.variants, found.universes[0].parts, found.universes[0].metric) == (["y", "x"], (), "cldice")
    assert found.ranks[0].tolist() == [1, 2] and found.pairs[0].changed.keys() == {"metric"}
    assert set(of_folder(found.board, None, Path("none")).missing) >= {"slices", "resolution", "distances"}


def test_without_a_miss_no_rule_for_misses_is_tried():
    found = look(of("x", STEADY), of("y", lambda s, d, seed: [0.6]))
    assert found.missing["missed structures"] == "every structure was there and found"
    assert not any("missed" in u.label for u in (*found.universes, *(s for u in found.universes for s in u.same)))


def test_an_absent_structure_may_be_left_out_or_perfect():
    """x finds 0.5; y 0.6, or with the empty pair as a perfect one: (0.6 + 1) / 2 against (0.5 + 1) / 2."""
    found = look(of("x", lambda s, d, seed: [0.5, "both_empty"]), of("y", lambda s, d, seed: [0.6, "both_empty"]))
    means = {u.label: u.means.tolist() for u in found.universes if u.metric == "dice"}
    assert means["leaderboard"] == pytest.approx([0.6, 0.5])
    assert means["missed structures absent from both masks count as perfect"] == pytest.approx([0.8, 0.75])


def test_a_variant_without_a_mean_in_a_universe_has_no_rank_there_and_is_in_no_pair():
    """z misses every structure of B: over those that it found nothing can be averaged."""
    levels = {"x": STEADY, "y": lambda s, d, seed: [0.6], "z": lambda s, d, seed: ["missed" if d == "B" else 0.5]}
    found = look(*(of(v, level) for v, level in levels.items()))
    (left_out,) = (u for u in found.universes if u.parts == (("missed structures", "left out"),))
    assert left_out.ranks.tolist()[:2] == [1, 2] and math.isnan(left_out.ranks[2])
    known = {(p.one, p.other): p.known for p in found.pairs}
    assert known["x", "z"] == known["y", "z"] < known["x", "y"] == len(found.universes)


def test_where_fewer_than_two_have_a_mean_there_is_no_universe_and_it_is_said():
    found = look(of("x", lambda s, d, seed: [0.8, "missed"]), of("y", lambda s, d, seed: [0.7, "missed"]))
    assert found.missing["ASD, missed structures make the mean NaN"] == "fewer than two of the means are known"


def test_equal_variants_share_their_rank_and_an_order_that_becomes_a_tie_is_not_kept():
    found = look(of("x", STEADY), of("y", STEADY), of("z", lambda s, d, seed: [0.5]))
    assert found.universes[0].ranks.tolist() == [1, 1, 3]
    (pair,) = (p for p in found.pairs if (p.one, p.other) == ("x", "y"))
    assert pair.kept == pair.known == len(found.universes)


def test_every_kind_of_choice_weighs_the_same():
    """The seed alone changes the order, in 1 of 3: the other kinds keep it, however many universes each has."""
    first, second, _ = HANGS["a seed"]
    found = look(first, second)
    (pair,) = found.pairs
    n = len(found.kinds)
    assert pair.share == pytest.approx((n - 1 + 2 / 3) / n)
    assert pair.kept == pair.known - 1


def test_what_is_not_on_the_leaderboard_is_in_no_universe():
    alone = [r for r in of("alone", lambda s, d, seed: [0.99]) if r.seed == 0]
    assert look(of("x", STEADY), of("y", lambda s, d, seed: [0.6]), alone).variants == ["x", "y"]


def test_a_board_of_nothing_has_one_universe_and_no_pair():
    alone = [r for r in of("alone", STEADY) if r.seed == 0]
    found = look(alone)
    assert not found.pairs and found.variants == [] and len(found.universes) == 1 and found.frame().empty


def test_the_frame_has_a_row_for_every_universe_and_variant():
    found = look(*HANGS["a seed"][:2])
    frame = found.frame()
    assert len(frame) == 2 * len(found.universes)
    seed_2 = frame[frame["universe"] == "seed 2"].set_index("variant")
    assert seed_2["rank"].to_dict() == {"y": 2, "x": 1} and seed_2["mean"]["x"] == pytest.approx(0.72)


@settings(max_examples=5, deadline=None)
@given(order=st.permutations(["a", "b", "c", "d"]), seed=st.integers(0, 2**16))
def test_the_names_of_the_variants_change_nothing(order: list[str], seed: int):
    """Each keeps its ranks whatever it is called, and so whatever place it is read at."""
    ranks = []
    for names in (["a", "b", "c", "d"], order):
        found = look(*(drawn(name, seed + i) for i, name in enumerate(names)))
        at = [found.variants.index(name) for name in names]
        ranks.append({u.label: u.ranks[at].tolist() for u in found.universes})
    assert ranks[0].keys() == ranks[1].keys()
    assert all(ranks[0][label] == pytest.approx(ranks[1][label], nan_ok=True) for label in ranks[0])


# --- runs of another protocol ----------------------------------------------------------------------------------------


def test_runs_of_another_protocol_are_a_universe_of_their_own(tmp_path: Path):
    ours = [of("x", STEADY), of("y", lambda s, d, seed: [0.6])]
    theirs = [of(v, lambda s, d, seed, a=a: [a], protocol="dapsam") for v, a in (("x", 0.5), ("y", 0.6), ("z", 0.9))]
    on_disk(tmp_path, *itertools.chain(*ours, *theirs))
    board = rank(Study.load(tmp_path, "toy", "sdg"), draws=20)
    (pair,) = of_folder(board, None, tmp_path).pairs
    assert pair.changed == {"runs of another protocol": ("dapsam",)}


def test_runs_of_another_protocol_on_other_images_are_left_out_and_it_is_said(tmp_path: Path):
    other = of("x", STEADY, protocol="dapsam", data={"A": "other"})
    on_disk(tmp_path, *of("x", STEADY), *of("y", lambda s, d, seed: [0.6]), *other)
    found = of_folder(rank(Study.load(tmp_path, "toy", "sdg"), draws=20), None, tmp_path)
    assert found.missing["protocol dapsam"] == "its runs saw other images"
    assert found.missing["slices"] == "the task's images are not at hand"


def test_a_protocol_without_the_leaderboards_metric_is_left_out_and_it_is_said(tmp_path: Path):
    on_disk(tmp_path, *of("x", STEADY), *of("y", lambda s, d, seed: [0.6]), *of("x", STEADY, protocol="dapsam"))
    found = of_folder(rank(Study.load(tmp_path, "toy", "sdg"), "hd95", draws=20), None, tmp_path)
    assert found.missing["protocol dapsam"] == "it has no HD95" and "runs of another protocol" not in found.missing


def test_without_runs_of_another_protocol_it_is_said(tmp_path: Path):
    on_disk(tmp_path, *of("x", STEADY), *of("y", lambda s, d, seed: [0.6]))
    found = of_folder(rank(Study.load(tmp_path, "toy", "sdg"), draws=20), None, tmp_path)
    assert "there is none" in found.missing["runs of another protocol"]
