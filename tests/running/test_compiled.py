"""`--compile` changes the rounding and nothing else, and says in a line what it lacks where torch cannot compile."""

import shutil

import pytest
import torch

from dgbench.errors import UsageError
from dgbench.method import Hparams, Method, resolve_hparams
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


class Small(Method):
    """One convolution, as a compiler takes seconds for each."""

    hparams: Hparams

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.net = torch.nn.Conv2d(3, 1, 3, padding=1)

    def logits(self, image):
        return self.net(image).tanh() + 1


TASK = TaskInfo("check", ("disc",), 16, 4)


def test_without_a_compiler_there_is_a_line_with_the_remedy():
    config = pytest.importorskip("torch._inductor.config")
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UsageError) as caught:
        check_compiler("cpu")
    assert "\n" not in caught.value.cause and "--compile" in caught.value.remedy and "g++" in caught.value.remedy


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_network_gives_the_same_logits_and_keeps_the_names_of_its_weights():
    method, _ = train.build(Small, TASK, Hparams(), 0)
    image, names = torch.rand(2, 3, 16, 16), list(method.state_dict())
    with torch.no_grad():
        expected = method.eval().predict(image)
        assert compile_network(method)
        torch.testing.assert_close(method.predict(image), expected, rtol=1e-4, atol=1e-5)
    assert list(method.state_dict()) == names


def test_a_method_without_logits_stays_as_it_is():
    constant = get_method("constant")
    method, _ = train.build(constant, TASK, resolve_hparams(constant, "check"), 0)
    assert not compile_network(method)
