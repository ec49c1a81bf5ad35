"""On a GPU what torch cannot make deterministic is named in the run's record, not shown as a warning."""

import os
import warnings

import pytest
import torch

from dgbench.running.device import make_deterministic


@pytest.fixture
def torch_as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        yield shown
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_an_operator_without_a_deterministic_algorithm_is_noted_and_other_warnings_are_shown(torch_as_before):
    noted = make_deterministic("cuda")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert noted == set()
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # on a CPU, too, the last or the first may win
    warnings.warn("something else", stacklevel=1)
    assert noted == {"put_"}
    assert [str(warning.message) for warning in torch_as_before] == ["something else"]


def test_on_a_cpu_it_is_an_error(torch_as_before):
    make_deterministic("cpu")
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
