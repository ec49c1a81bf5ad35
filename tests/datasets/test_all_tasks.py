"""Every task on its own drawn files: a new file in datasets/ is tested without a line here."""

import contextlib

import numpy as np
import pytest

from dgbench.errors import DataError
from dgbench.images.file_task import FileTask
from dgbench.images.mock import MARK, Sketch
from dgbench.registry import TASKS
from dgbench.task import Task

NAMES = [name for name in TASKS.names() if issubclass(TASKS.get(name), FileTask)]  # the others compute their cases


@pytest.fixture(scope="module", params=NAMES)
def task(request, tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp(request.param)
    TASKS.get(request.param)().mock(folder, Sketch())
    (folder / MARK).touch()
    return TASKS.get(request.param)(folder)


def test_drawn_files_are_as_the_task_wants_them(task):
    assert task.verify() == []
    assert task.doubts == []


def test_every_case_has_an_image_in_0_1_and_a_plane_for_each_structure(task):
    for domain in task.domains:
        ids = task.case_ids(domain)
        assert ids == sorted(set(ids)) and ids
        for case_id in ids:
            case = task.load(domain, case_id)
            assert case.id == case_id and case.image.dtype == np.float32
            assert case.image.min() >= 0 and case.image.max() <= 1 < case.image.max() + 0.9, "something is to be seen"
            assert case.mask.shape[1] == len(task.structures)
            assert all(path.is_file() for path in task.files(domain, case_id))


def test_a_patient_is_on_one_side_of_a_sources_split(task):
    for source in task.source_domains:
        train, validation = task.split(source)
        assert train and validation
        assert not {task.group(source, i) for i in train} & {task.group(source, i) for i in validation}
        assert sorted(train + validation) == task.case_ids(source)


def test_a_task_says_whose_images_these_are_and_how_to_get_them(task):
    assert task.citation and task.licence and task.intensity and task.collections
    assert "://" in task.download
    assert set(task.cases_expected) <= set(task.domains)
    assert task.access in ("open", "account", "form")
    assert task.sources_of_data or task.steps_to_get, "somebody must be able to get them"


def test_a_copy_that_is_no_mock_must_have_all_cases(task):
    (task.folder / MARK).unlink()
    copy, counts = TASKS.get(task.name)(task.data), {}
    for domain in task.domains:
        with contextlib.suppress(DataError):  # some are refused before they are read
            counts[domain] = len(copy.case_ids(domain))
    problems = copy.verify() if counts != dict(task.cases_expected) else ["its list is part of dgbench"]
    (task.folder / MARK).touch()
    assert problems
