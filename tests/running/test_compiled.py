"""`--compile` changes the rounding and nothing else, and says in a line what it lacks where torch cannot compile."""

import shutil

import pytest
import torch

from dgbench.errors import UsageError
from dgbench.method import resolve_hparams
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.running.compiled import check_compiler, compile_network
from dgbench.task import TaskInfo


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own modules


@pytest.fixture(autouse=True)
def nothing_compiled_before(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_without_a_compiler_there_is_a_line_with_the_remedy(monkeypatch):
    inductor = pytest.importorskip("torch._inductor.config")
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UsageError) as caught:
        check_compiler("cpu")
    assert "\n" not in caught.value.cause and "--compile" in caught.value.remedy and "g++" in caught.value.remedy


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_network_gives_the_same_logits_and_keeps_the_names_of_its_weights():
    task = TaskInfo("check", ("disc",), 16, 4)
    method, _ = train.build(get_method("erm"), task, resolve_hparams(get_method("erm"), "check", {"width": "2"}), 0)
    image, names = torch.rand(2, 3, 16, 16), list(method.state_dict())
    with torch.no_grad():
        expected = method.eval().predict(image)
        assert compile_network(method)
        torch.testing.assert_close(method.predict(image), expected, rtol=1e-4, atol=1e-5)
    assert list(method.state_dict()) == names


def test_a_method_without_logits_stays_as_it_is():
    task = TaskInfo("check", ("disc",), 16, 4)
    method, _ = train.build(get_method("constant"), task, resolve_hparams(get_method("constant"), "check"), 0)
    assert not compile_network(method)
