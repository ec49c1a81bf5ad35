"""Protocol `in_domain`: trained inside each target on all folds but one, tested on that one; shown, never ranked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from dgbench.errors import DataError, UsageError
from dgbench.face import Ran
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.pages import leaderboard
from dgbench.pages.after_run import show
from dgbench.protocol import DEFAULT, IN_DOMAIN, PROTOCOLS, get_protocol
from dgbench.running import launchers, plan, slurm, worker
from dgbench.running.records import read_run
from dgbench.scores.bounds import joined
from dgbench.scores.ranking import TRAINED_INSIDE, rank
from dgbench.scores.study import Study
from dgbench.task import Task
from tests.discs import write_discs


class Hospitals(Task):
    """A has ten cases of four patients (a: 4, b: 3, c: 2, d: 1), B five of a patient each; C may only be tested."""

    name, domains, sources, structures, image_size = "hospitals", ("A", "B", "C"), ("A", "B"), ("disc",), 32
    cases: ClassVar = {"A": "aaaabbbccd", "B": "efghi", "C": "jk"}

    def case_ids(self, domain):
        return [f"{patient}{n}" for n, patient in enumerate(self.cases[domain])]

    def group(self, domain, case_id):
        return case_id[0]

    def load(self, domain, case_id):
        raise NotImplementedError


# Folds


def test_every_case_is_in_one_fold_and_no_patient_in_two():
    folds = Hospitals().folds("A", 3)
    assert sorted(case for fold in folds for case in fold) == Hospitals().case_ids("A")
    patients = [{case[0] for case in fold} for fold in folds]
    assert sum(map(len, patients)) == 4 and sorted(map(len, patients)) == [1, 1, 2]


def test_there_are_no_more_folds_than_patients_and_no_fewer_than_two():
    assert [len(Hospitals().folds(domain, 5)) for domain in "ABC"] == [4, 5, 2]
    assert Hospitals().folds("A", 5) == Hospitals().folds("A", 4)
    alone = Hospitals()
    alone.cases = {"A": "aaa"}
    with pytest.raises(DataError, match=r"3 case.* of 1 group"):
        alone.folds("A", 5)


def test_folds_are_dealt_in_the_order_of_the_split_so_its_held_out_patients_lead_them():
    task = Hospitals()
    held_out = {case[0] for case in task.split("B")[1]}
    assert held_out == {task.folds("B", 5)[0][0][0]}


def test_where_domains_show_the_same_patients_the_folds_are_the_same():
    task = Hospitals()
    task.cases = {"A": "abcdef", "B": "abcdef"}
    apart = [[c[0] for c in fold] for fold in task.folds("A", 3)], [[c[0] for c in fold] for fold in task.folds("B", 3)]
    task.paired = True
    same = [[c[0] for c in fold] for fold in task.folds("A", 3)], [[c[0] for c in fold] for fold in task.folds("B", 3)]
    assert apart[0] != apart[1] and same[0] == same[1]


# Runs


@pytest.fixture
def discs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderTask:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    return FolderTask(write_discs(tmp_path / "discs"))


def planned(task: Task, results: Path, method: str = "constant", protocol: str = IN_DOMAIN, **given) -> list[plan.Run]:
    settings = {"image_size": "32"}
    return plan.plan(task, [method], protocol=protocol, settings=settings, results=results, **given)


def test_each_case_of_each_domain_is_tested_once_by_a_run_that_did_not_train_on_it(discs, tmp_path):
    runs = planned(discs, tmp_path / "results")
    for domain in discs.domains:
        of = [r for r in runs if r.source == domain]
        folds = min(5, len(discs.case_ids(domain)))
        assert [Path(r.folder).name for r in of] == [f"{domain}-fold{n}-seed0" for n in range(1, folds + 1)]
        tested = Counter(case for r in of for case in r.tested(discs, domain))
        assert tested == Counter(discs.case_ids(domain))
        for r in of:
            trained, validated = r.split(discs)
            assert validated == [] and r.targets(discs) == (domain,)
            assert sorted([*trained, *r.tested(discs, domain)]) == discs.case_ids(domain)
    assert len({r.fingerprint for r in runs}) == len(runs)


def test_domains_that_may_only_be_tested_are_trained_in_and_those_never_tested_are_not(discs, tmp_path, monkeypatch):
    first, *others = discs.domains
    monkeypatch.setattr(discs, "sources", (first,))
    assert {r.source for r in planned(discs, tmp_path)} == set(others)
    assert {r.source for r in planned(discs, tmp_path, protocol=DEFAULT)} == {first}
    with pytest.raises(UsageError, match=f"unknown source of task discs '{first}'"):
        planned(discs, tmp_path, sources=[first])


def test_the_tested_fold_is_closed_to_the_method_on_disk_and_where_it_lies_prepared(discs, tmp_path):
    run = planned(discs, tmp_path / "results")[0]
    prepared = tmp_path / "cache" / "prepared" / "here"
    prepared.mkdir(parents=True)
    (prepared / "images.npy").touch()
    order = worker.Order(run, {run.source: prepared}, False, "cpu", 1, 60.0)
    hidden = worker._hidden(order, discs)
    trained, tested = (
        {f for case in of for f in discs.files(run.source, case)}
        for of in (run.split(discs)[0], run.tested(discs, run.source))
    )
    assert tested - trained and all(map(hidden.holds, tested - trained)) and not any(map(hidden.holds, trained))
    assert hidden.holds(prepared / "images.npy")
    plain = dataclasses.replace(run, held_out=0)
    assert not worker._hidden(dataclasses.replace(order, run=plain), discs).holds(prepared / "images.npy")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Results of both protocols on three domains of two cases each: two folds inside each."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(folder / "cache"))
        discs = FolderTask(write_discs(folder / "discs", cases=2))
        for protocol in (DEFAULT, IN_DOMAIN):
            runs = planned(discs, folder / "results", protocol=protocol)
            outcomes = launchers.launch(discs, runs, options=launchers.Options(device="cpu", jobs=1))
            assert {o.status for o in outcomes} == {"done"}
    return folder / "results"


def test_the_board_of_sdg_shows_what_was_reached_inside_the_targets_and_does_not_rank_it(made):
    of_folds = [read_run(folder) for folder in sorted(made.glob("discs/in_domain/*/*-fold*"))]
    for run in of_folds:
        assert not set(run.cases["case"]) & set(run.record["trained_on"]) and set(run.cases["role"]) == {"target"}
    study = Study.load(made, "discs", DEFAULT)
    plain, inside = sorted(study.runs)
    assert inside == f"{plain} (in_domain)" and study.variants == (plain, inside)
    assert len(of_folds) == 6
    for domain in study.domains:
        dice = [float(d) for r in of_folds if r.source == domain for d in r.cases["dice"]]
        assert len(dice) == 2
        assert study.row(inside).targets[domain] == pytest.approx(sum(dice) / len(dice))
    ranking = rank(study)
    (row,) = [of for of in ranking.apart if of.variant == inside]
    assert (
        row.why.startswith(TRAINED_INSIDE) and row.rank is None and inside not in {of.variant for of in ranking.ranked}
    )
    assert "(in_domain)" in leaderboard.render(ranking, "md")


def test_a_fold_that_is_missing_leaves_its_domain_blank_and_is_told(made):
    runs = [read_run(folder) for folder in sorted(made.glob("discs/in_domain/*/*-fold*"))]
    (gone, *rest) = runs
    rows, told = joined(rest, get_protocol(DEFAULT))
    assert gone.source in told[0] and "blank" in told[0]
    assert all(gone.source not in set(r.cases["domain"]) for r in rows)
    assert joined(rows, get_protocol(DEFAULT)) == (rows, [])


def test_its_own_table_has_a_row_for_each_source_whose_targets_are_all_inside(made):
    study = Study.load(made, "discs", IN_DOMAIN)
    matrix = study.matrix(study.variants[0])
    for domain in study.domains:
        values = matrix.values[domain].drop("mean").dropna()
        assert len(values) == len(study.sources) - 1 and values.nunique() == 1
    assert not rank(study).ranked


def test_given_weights_are_not_tested_inside_the_domain_that_they_were_trained_on(discs, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="given weights have seen them all"):
        planned(discs, tmp_path, sources=["dim"], checkpoint=tmp_path / "w.safetensors")


def test_while_folds_are_missing_nothing_is_shown_and_nothing_is_lost(discs, tmp_path):
    runs = [r for r in planned(discs, tmp_path / "results") if r.source == "dim"]
    last = runs[-1:]  # as where another host makes the others
    assert [o.status for o in launchers.launch(discs, last, options=launchers.Options("cpu"))] == ["done"]
    assert show(discs, runs, tmp_path / "results", Console(quiet=True)) == []
    assert "Runs that are not done" in Ran(tuple(runs))._repr_html_()


def test_a_node_of_a_cluster_finds_the_fold_and_its_own_gpu(discs, tmp_path, monkeypatch):
    run = planned(discs, tmp_path / "results")[1]
    prepared = {run.source: prepare(discs, run.source, 32).folder}
    order = worker.Order(run, prepared, False, "auto", 1, 60.0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert slurm._at_home(order) == dataclasses.replace(order, device="cuda:0"), "a device that torch can be set to"
    changed = dataclasses.replace(run, fingerprint="of other images")
    with pytest.raises(UsageError, match="code or images changed"):
        slurm._at_home(dataclasses.replace(order, run=changed))


# Rules


def test_it_bounds_the_protocol_that_holds_all_else_fixed_alike():
    bounded = {n: [p.name for p in PROTOCOLS.values() if p.bounds(get_protocol(n))] for n in PROTOCOLS}
    assert {n: of for n, of in bounded.items() if of} == {
        "sdg": ["in_domain"],
        "sdg-compute": ["in_domain-compute"],
    }
