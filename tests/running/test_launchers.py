import os
from types import SimpleNamespace

import pytest

from dgbench.running import launchers
from dgbench.running.launchers import Options


@pytest.mark.parametrize(
    ("options", "runs", "places"),
    [
        (Options(), 9, ["cpu"] * 3),  # as many as there are free cores
        (Options(), 2, ["cpu"] * 2),
        (Options(jobs=5), 9, ["cpu"] * 5),  # the user knows better
    ],
)
def test_on_a_cpu_there_is_a_place_for_a_run_on_each_free_core(monkeypatch, options, runs, places):
    monkeypatch.setattr(launchers, "free_cores", lambda: 3)
    assert launchers._places(["cpu"], options, runs) == places


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (Options(), ["cuda:0", "cuda:1"]),
        (Options(per_device=2), ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (Options(per_device=2, jobs=3), ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_gpus_are_filled_in_turn(options, places):
    assert launchers._places(["cuda:0", "cuda:1"], options, 9) == places


LIGHT, HUNGRY = SimpleNamespace(variant="light"), SimpleNamespace(variant="hungry")
US = SimpleNamespace(pid=os.getpid())  # a process that can be looked at


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(launchers, "free_memory_mb", lambda: 15_000.0)
    return launchers._Memory(bounded=True)


def test_alone_a_run_starts_whatever_it_needs(memory):
    memory.seen["hungry"] = 1e9
    assert memory.allows(HUNGRY, [])


def test_the_second_run_waits_until_it_is_seen_what_the_first_one_needs(memory):
    assert not memory.allows(LIGHT, [(LIGHT, US)])
    assert memory.look(LIGHT, os.getpid()) > 0
    assert memory.allows(LIGHT, [(LIGHT, US)])


def test_a_run_starts_beside_others_when_a_tenth_more_than_its_variant_s_need_is_free(memory):
    memory.look(LIGHT, os.getpid())
    memory.seen["hungry"] = 13_000.0
    assert memory.allows(HUNGRY, [(LIGHT, US)])
    memory.seen["hungry"] = 14_000.0
    assert not memory.allows(HUNGRY, [(LIGHT, US)])


def test_memory_that_a_running_one_has_yet_to_take_is_not_free(memory):
    memory.seen |= {"light": 1000.0, "hungry": 20_000.0}
    assert not memory.allows(LIGHT, [(HUNGRY, US)])


def test_a_number_of_jobs_that_the_user_gave_is_kept(memory):
    memory.bounded = False
    memory.seen["hungry"] = 1e9
    assert memory.allows(HUNGRY, [(HUNGRY, US)])
