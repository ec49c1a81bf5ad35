"""The phantom: synthetic, the same everywhere, and as different between its sites as real hospitals are."""

import hashlib
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from dgbench.datasets import phantom
from dgbench.errors import UsageError
from dgbench.images.find_task import get_task
from dgbench.task import Case, case_problems

TASK = get_task("phantom")


@cache
def cases(domain: str) -> tuple[Case, ...]:
    return tuple(TASK.load(domain, case_id) for case_id in TASK.case_ids(domain))


def digest(case: Case) -> str:
    return hashlib.sha256(case.image.tobytes() + case.mask.tobytes()).hexdigest()


def test_a_case_depends_on_its_domain_and_number_alone():
    first = digest(TASK.load("B", "case03"))
    np.random.seed(1)
    TASK.load("C", "case00")
    assert digest(TASK.load("B", "case03")) == first
    assert len({digest(case) for domain in TASK.domains for case in cases(domain)}) == len(TASK.domains) * phantom.CASES


@pytest.mark.parametrize(
    ("domain", "mean", "deviation", "voxels"),
    [
        ("A", 0.4943, 0.2562, 5422),
        ("B", 0.2391, 0.1598, 6936),
        ("C", 0.6155, 0.1673, 2981),
        ("D", 0.4489, 0.2066, 3754),
    ],
)
def test_the_drawn_numbers_stay_what_they_are_on_every_machine(domain, mean, deviation, voxels):
    case = TASK.load(domain, "case00")
    assert case.image.mean() == pytest.approx(mean, abs=1e-3)
    assert case.image.std() == pytest.approx(deviation, abs=1e-3)
    assert case.mask.sum() == pytest.approx(voxels, rel=1e-3)


def test_another_process_draws_the_same_case():
    code = (
        "import hashlib; from dgbench.images.find_task import get_task; c = get_task('phantom').load('D', 'case07');"
        "print(hashlib.sha256(c.image.tobytes() + c.mask.tobytes()).hexdigest())"
    )
    drawn = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert drawn.stdout.strip() == digest(TASK.load("D", "case07"))


@pytest.mark.parametrize("domain", TASK.domains)
def test_every_case_is_whole(domain):
    site = phantom.SITES[domain]
    for case in cases(domain):
        assert case_problems(case, TASK, f"{domain}/{case.id}") == []
        assert case.image.shape == case.mask.shape == (site.slices, 1, site.pixels, site.pixels)


def test_verify_finds_nothing():
    assert TASK.verify() == [] and TASK.doubts == []


@pytest.mark.parametrize("domain", TASK.domains)
def test_slices_at_both_ends_hold_no_prostate(domain):
    for case in cases(domain):
        held = case.mask.any((1, 2, 3))
        assert not held[0] and not held[-1] and held.sum() >= 4


@pytest.mark.parametrize("domain", TASK.domains)
def test_the_gland_is_no_small_target(domain):
    widths = [case.mask.any((0, 1, 2)).mean() for case in cases(domain)]
    assert 0.25 < np.mean(widths) < 0.45


def test_each_slice_spans_the_whole_range():
    for case in cases("A"):
        assert np.allclose(case.image.min((1, 2, 3)), 0) and np.allclose(case.image.max((1, 2, 3)), 1)


def test_the_intensity_rule_ignores_voxels_without_signal():
    one = np.zeros((1, 20, 20), np.float32)
    one[0, 10:] = np.linspace(5, 10, 200).reshape(10, 20)
    unit = phantom.to_unit(one)[0]
    assert (unit[:10] == 0).all() and unit[10, 0] == 0 and unit[-1, -1] == 1


def test_voxels_are_anisotropic_and_differ_between_sites():
    spacings = [case.spacing for case in (cases(domain)[0] for domain in TASK.domains)]
    assert len(set(spacings)) == len(spacings)
    assert all(deep > 3 * high and high == wide for deep, high, wide in spacings)


def test_sites_differ_in_brightness_more_than_their_cases_do():
    brightness = {d: [case.image.mean() for case in cases(d)] for d in TASK.domains}
    between = np.std([np.mean(v) for v in brightness.values()])
    within = np.mean([np.std(v) / len(v) ** 0.5 for v in brightness.values()])
    assert between > 3 * within


def test_only_at_site_c_the_gland_is_darker_than_muscle():
    def gland_over_muscle(domain: str) -> float:
        tissue = phantom.SITES[domain].tissue
        return (tissue["transition"] + tissue["peripheral"]) / 2 - tissue["muscle"]

    assert {d: gland_over_muscle(d) > 0 for d in TASK.domains} == {"A": True, "B": True, "C": False, "D": True}


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="unknown domain 'E'"):
        TASK.case_ids("E")
    with pytest.raises(UsageError, match="unknown case of domain 'A' 'case99'"):
        TASK.load("A", "case99")
