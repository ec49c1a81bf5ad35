"""Cases that belong together: whole groups are held out, training patients are never tested, and `verify` looks."""

import numpy as np
import pytest

from dgbench.errors import DataError
from dgbench.task import Case, Task


class Ward(Task):
    """`patients`: by domain, of each patient the number of cases; case "P1-0" is the first of patient P1."""

    name, structures, image_size = "ward", ("lesion",), 8

    def __init__(self, patients, paired=False, held_out=None):
        super().__init__()
        self.patients, self.paired, self.held_out = patients, paired, held_out
        self.domains = tuple(patients)

    def case_ids(self, domain):
        return sorted(f"{p}-{k}" for p, n in self.patients[domain].items() for k in range(n))

    def group(self, domain, case_id):
        return case_id.partition("-")[0]

    def split(self, source):
        if self.held_out is None:
            return super().split(source)
        ids = self.case_ids(source)
        return [i for i in ids if i not in self.held_out], [i for i in ids if i in self.held_out]

    def load(self, domain, case_id):
        image = np.random.default_rng([*f"{domain}/{case_id}".encode()]).random((1, 1, 4, 4), np.float32)
        return Case(case_id, image, np.ones((1, 1, 4, 4), bool), (1.0, 1.0, 1.0))


def ten(cases: int) -> dict[str, int]:
    return {f"P{n}": cases for n in range(10)}


def test_a_patient_s_cases_stay_on_one_side_of_the_split():
    """Three volumes of each of ten patients: 6 of 30 cases are held out, those of two patients."""
    task = Ward({"A": ten(3), "B": ten(3)})
    training, validation = task.split("A")
    assert len(training) == 24 and len({i[:2] for i in training}) == 8 and len({i[:2] for i in validation}) == 2
    assert not {i[:2] for i in training} & {i[:2] for i in validation}
    assert task.split("A") == (training, validation)


def test_a_large_group_is_held_out_whole_and_never_the_last_one():
    training, validation = Ward({"A": {"P1": 9, "P2": 1}, "B": ten(1)}).split("A")
    assert sorted([len(training), len(validation)]) == [1, 9]


def test_one_patient_is_no_source_however_many_cases_there_are():
    with pytest.raises(DataError, match=r"'A' of task 'ward' has 4 case\(s\) of 1 group: a source needs at least"):
        Ward({"A": {"P1": 4}, "B": ten(1)}).split("A")


def test_where_domains_show_the_same_patients_those_trained_on_are_not_tested():
    task = Ward({"A": ten(1), "B": ten(2)}, paired=True)
    _, validation = task.split("A")
    tested = task.tested("A", "B")
    assert {i[:2] for i in tested} == {i[:2] for i in validation} and len(tested) == 4
    assert task.excluded("A") == {"B": 16}
    # The same two patients are held out whichever domain is the source, so that all sources test the same cases.
    assert {i[:2] for i in task.split("B")[1]} == {i[:2] for i in validation}
    assert not task.verify()


def test_of_other_patients_by_the_same_names_all_are_tested():
    task = Ward({"A": ten(1), "B": ten(1)})
    assert len(task.tested("A", "B")) == 10 and task.excluded("A") == {}
    assert {i[:2] for i in task.split("A")[1]} != {i[:2] for i in task.split("B")[1]}


def test_verify_names_a_patient_on_both_sides_of_a_split():
    task = Ward({"A": ten(2), "B": ten(2)}, held_out={"P3-1", "P5-0"})
    assert task.verify() == [
        f"group P3, P5 is among the training cases of '{s}' and among the validation cases of '{s}'" for s in "AB"
    ]


def test_a_target_of_which_every_patient_is_trained_on_cannot_be_tested():
    task = Ward({"A": ten(1), "B": ten(1)}, paired=True, held_out=set())
    with pytest.raises(DataError, match="every patient of domain 'B' is among the training patients of source 'A'"):
        task.tested("A", "B")
    assert len(task.verify()) == 2


def test_verify_counts_the_cases_of_the_release_and_of_drawn_ones_nothing(monkeypatch):
    task = Ward({"A": ten(1), "B": ten(1)})
    task.cases_expected = {"A": 10, "B": 12}
    assert task.verify() == ["domain 'B' has 10 case(s), the release 12"]
    monkeypatch.setattr(Ward, "is_mock", True)
    assert task.verify() == []
