"""Plug-in files of any content and name: a method or task, or a refusal; what fails inside is shown as its own."""

import traceback
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from dgbench import face
from dgbench.method import Method
from dgbench.registry import METHODS, NO_PYTHON, TASKS, add_plugin, get_method
from dgbench.task import Task
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs

LINES = st.sampled_from([
    "from dgbench.method import Method", "from dgbench.methods.erm import ERM", "from dgbench.task import Task",
    "from dgbench import method, task", "import dgbench", "import no_such_package", "from . import x",
    "import torch.nope",
    "class One(Method): pass", "class Two(Method):\n    paper = 'x'", "class _Half(Method): pass", "class Other: pass",
    "class Third(ERM):\n    def loss(self): return 0", "class Third(ERM):\n    hparams: 'Nowhere'", "One = 3",
    "class Ward(Task):\n    domains = ('a',)", "class Loop(Loop): pass", "X = Method", "class Meta(type(Method)): pass",
    "from dataclasses import dataclass", "@dataclass\nclass H(Method): x: int", "raise ValueError('mine')", "1 / 0",
    "raise SystemExit(3)", "raise KeyboardInterrupt", "class (:", "def f(", "'''", "    x = 1", "\ufeff", "\0",
    "\ud800",
    "# -*- coding: latin-1 -*-", "é = 'ü'", "__all__ = 3", "del Method", "Method = None", "class Method: pass",
    "uses_target_masks = True", "class Needs(ERM):\n    uses_target_masks = True\n    paper: str = 5",
    "class A(B): pass", "class B(A): pass", "import sys; sys.modules[__name__] = None", "__name__ = 'other'",
    "(" * 300 + ")" * 300, "-" * 6000 + "1", "1" * 5000, "x = " + "[" * 90 + "]" * 90,
])  # fmt: skip
TEXTS = st.one_of(
    st.lists(LINES, max_size=5).map(lambda lines: "\n".join(lines).encode(errors="surrogatepass")),
    st.lists(LINES, max_size=3).map(lambda lines: "\r\n".join(lines).encode("utf-16", errors="surrogatepass")),
    st.binary(max_size=40),
)
FILES = st.sampled_from(
    ["mine.py", "Mine-2.py", "a.b.py", "2d.py", "mine.txt", "my method.py", "é.py", "erm.py", "torch.py"]
)


def its_own(error: BaseException, path: Path) -> bool:
    """Did it happen inside the file? Then its author sees it as Python tells it."""
    inside = any(Path(frame.filename) == path for frame in traceback.extract_tb(error.__traceback__))
    return inside or (isinstance(error, NO_PYTHON) and _does_not_compile(path))


def _does_not_compile(path: Path) -> bool:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except NO_PYTHON:
        return True
    return False


@inputs(40)
@given(TEXTS, FILES)
@example(b"from dgbench.method import Method\nclass A(B): pass\nclass B(A): pass\n", "mine.py")
@example(b"-" * 6000 + b"1", "mine.py")
def test_a_plugin_is_a_method_or_is_told_and_hides_no_other(text: bytes, name: str):
    with folder() as box:
        path = box.path / name
        path.write_bytes(text)
        METHODS.extra.clear()
        TASKS.extra.clear()
        if isinstance(answer(lambda: add_plugin(path), box), Refusal):
            return
        methods, tasks = (answer(lambda k=kind: face.listing(k), box) for kind in ("methods", "datasets"))
        if isinstance(methods, Refusal):
            assert path.stem in METHODS.folder().joinpath(path.name).stem and str(path) in methods.cause
            return
        listed = {row["method"]: row for row in methods} | {row["task"]: row for row in tasks}
        assert {"erm", "phantom", path.stem} <= set(listed)
        registry, base = (TASKS, Task) if path.stem in TASKS.names() else (METHODS, Method)
        try:
            found = answer(lambda: registry.get(path.stem), box)
        except BaseException as error:
            assert its_own(error, path), error
        else:
            if isinstance(found, Refusal):
                assert str(path) in found.cause
            else:
                assert issubclass(found, base) and found.name == path.stem
        assert get_method("erm").name == "erm"


@inputs(10)
@given(st.one_of(FILES, st.text(max_size=5).filter(lambda n: "\0" not in n and "/" not in n)))
def test_a_plugin_that_is_not_there_is_refused(name: str):
    with folder() as box:
        assert isinstance(answer(lambda: add_plugin(box.path / name), box), Refusal)
        if name not in ("", ".", ".."):
            (box.path / name).mkdir()
            assert isinstance(answer(lambda: add_plugin(box.path / name), box), Refusal)
