"""Every method in methods/ passes the checks a contributor runs: a new file is tested without a line here."""

import itertools

import pytest

from dgbench.registry import METHODS, TASKS, get_method
from dgbench.running.conformance import check_method, run_checks
from dgbench.task import Task


@pytest.mark.parametrize("name", METHODS.names())
def test_method(name: str):
    assert check_method(get_method(name)) == []


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_has_settings_builds_and_predicts_probabilities(name: str):
    """The first three of the checks above, which train nothing."""
    found = list(itertools.islice(run_checks(get_method(name)), 3))
    assert len(found) == 3 and all(f.ok for f in found), found


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_has_a_card_and_at_least_one_source_with_targets(name: str):
    cls = TASKS.get(name)
    assert issubclass(cls, Task) and cls.name == name
    sources = cls.domains if cls.sources is None else cls.sources
    assert len(set(cls.domains)) == len(cls.domains) >= 2
    assert sources and set(sources) <= set(cls.domains)
    assert cls.structures and cls.unit in ("mm", "px")
    assert cls.intensity and cls.citation and cls.licence and cls.download
