"""Intensity distances worked out by hand and by SciPy, and what a domain's histogram is made of."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from dgbench.images.find_task import get_task
from dgbench.protocol import PROTOCOLS
from dgbench.scores import domain_shift
from dgbench.scores.domain_shift import BINS, CENTRES, Intensities
from dgbench.scores.study import Study
from tests.discs import DOMAINS, write_discs
from tests.toy_runs import run

HISTOGRAMS = st.lists(st.integers(0, 9), min_size=BINS, max_size=BINS).filter(any).map(lambda v: np.array(v) / sum(v))


def spike(gray: float) -> np.ndarray:
    """All pixels have one gray value."""
    histogram = np.zeros(BINS)
    histogram[int(gray * BINS)] = 1
    return histogram


def domain(inside: float, outside: float, name: str = "A") -> Intensities:
    return Intensities(name, "", 1, 1, spike(inside), spike(outside))


@pytest.fixture
def discs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    return get_task(str(write_discs(tmp_path / "discs")))


def test_an_image_made_brighter_by_a_quarter_is_a_quarter_away():
    assert domain_shift.wasserstein(spike(0.25), spike(0.5)) == pytest.approx(0.25)


@given(HISTOGRAMS, HISTOGRAMS)
def test_the_distance_is_scipys(one: np.ndarray, other: np.ndarray):
    assert domain_shift.wasserstein(one, other) == pytest.approx(
        wasserstein_distance(CENTRES, CENTRES, one, other), abs=1e-9
    )


def test_structures_that_turn_dark_where_the_ground_turns_bright_are_far_though_all_gray_values_are_the_same():
    bright, dark = domain(inside=0.75, outside=0.25), domain(inside=0.25, outside=0.75)
    assert domain_shift.distance(bright, dark) == pytest.approx(0.5)


def test_a_domain_without_any_structure_has_no_distance():
    empty = Intensities("B", "", 1, 1, np.full(BINS, np.nan), spike(0.5))
    assert np.isnan(domain_shift.distance(domain(0.5, 0.5), empty))


def test_statistics_of_two_equal_halves():
    found = domain_shift.statistics((spike(0.25) + spike(0.75)) / 2)
    assert found["mean"] == pytest.approx(0.5, abs=1 / BINS)
    assert found["std"] == pytest.approx(0.25)
    assert (found["p5"], found["p50"], found["p95"]) == pytest.approx((0.25, 0.25, 0.75), abs=1 / BINS)


def test_gray_values_are_counted_inside_and_outside_of_the_reference(discs):
    for name, (ground, disc) in DOMAINS.items():
        found = domain_shift.intensities(discs, name)
        assert (found.domain, found.cases, found.slices) == (name, 5, 5)
        assert found.inside.sum() == pytest.approx(1) == found.outside.sum()
        assert domain_shift.statistics(found.inside)["p50"] == pytest.approx(disc, abs=0.02)  # as they were drawn
        assert domain_shift.statistics(found.outside)["p50"] == pytest.approx(ground, abs=0.02)


def test_the_padding_around_a_long_image_is_no_dark_ground(discs, tmp_path: Path):
    from PIL import Image

    for kind, value in (("images", 200), ("masks", 0)):
        pixels = np.full((24, 48), value, np.uint8)
        pixels[8:16, 8:16] = 1 if kind == "masks" else value
        for path in (tmp_path / "discs" / "bright" / kind).glob("*.png"):
            Image.fromarray(pixels).save(path)
    assert domain_shift.statistics(domain_shift.intensities(discs, "bright").outside)["mean"] == pytest.approx(
        200 / 255, abs=0.01
    )


def test_a_loss_is_the_validation_dice_minus_that_of_the_target():
    records = [run("erm", "A", {"A": [0.9], "B": [0.8, 0.6], "C": [0.3]})]
    m = Study(records, PROTOCOLS["sdg"]).matrix("erm")
    domains = {"A": domain(0.5, 0.5), "B": domain(0.75, 0.5), "C": domain(0.5, 0.5)}
    found = domain_shift.losses([m], domains).set_index("target")
    assert found.loc["B", "loss"] == pytest.approx(0.2)
    assert found.loc["B", "distance"] == pytest.approx(0.125)  # half of 0.25: outside is the same
    assert (found.loc["C", "loss"], found.loc["C", "distance"]) == pytest.approx((0.6, 0.0))
    assert "A" not in found.index


def test_a_rank_correlation_needs_four_pairs():
    points = pd.DataFrame({"variant": "erm", "distance": [1.0, 2.0, 3.0, 4.0], "loss": [1.0, 3.0, 2.0, 4.0]})
    assert domain_shift.rank_correlation(points)["erm"] == pytest.approx(0.8)  # 1 - 6 (1 + 1) / (4 x 15)
    assert np.isnan(domain_shift.rank_correlation(points.head(3))["erm"])
