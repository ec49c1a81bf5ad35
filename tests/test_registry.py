"""A file is a plug-in, its stem is its name; what is wrong with one of them stops none of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dgbench.errors import UsageError
from dgbench.fingerprint import of_code
from dgbench.images.find_task import get_task
from dgbench.method import Method
from dgbench.registry import FAMILIES, METHODS, TASKS, Registry, add_plugin, defines, get_method, said
from dgbench.task import Task

METHOD = '''"""A method of my own."""
from dgbench.method import Method

class Own(Method):
    pass
'''
TASK = '''"""A task of my own."""
from dgbench.task import Task

class Own(Task):
    domains = ("a", "b")
    structures = ("disc",)
    image_size = 32

    def case_ids(self, domain):
        return ["1", "2"]

    def load(self, domain, case_id):
        raise NotImplementedError
'''


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_file_in_the_folder_is_listed_and_shared_files_are_not(root: Path):
    files = {p.stem for p in (root / "methods").glob("*.py") if not p.stem.startswith("_")}
    assert files == {n for n, p in METHODS.plugins().items() if p.origin == "dgbench"}
    assert "erm" in files and "_template" not in METHODS.names()
    assert METHODS.names() == sorted(METHODS.names())


def test_a_name_leads_to_the_one_class_of_its_file():
    erm = get_method("erm")
    assert issubclass(erm, Method) and erm.__module__ == "dgbench.methods.erm" and erm.name == "erm"


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(UsageError) as caught:
        get_method("emr")
    assert caught.value.cause == "unknown method 'emr'"
    assert "did you mean 'erm'?" in caught.value.remedy and all(n in caught.value.remedy for n in METHODS.names())


def test_an_unknown_task_is_called_a_task():
    with pytest.raises(UsageError, match="unknown task 'phantm'") as caught:
        get_task("phantm")
    assert "did you mean 'phantom'?" in caught.value.remedy


def test_a_file_given_by_its_path_is_a_method_or_a_task_by_what_it_imports(tmp_path: Path):
    add_plugin(written(tmp_path, "mine.py", METHOD))
    add_plugin(written(tmp_path, "ward.py", TASK))
    assert issubclass(get_method("mine"), Method) and isinstance(get_task("ward"), Task)
    assert "ward" not in METHODS.names() and "mine" not in TASKS.names()
    assert METHODS.plugins()["mine"].summary() == "A method of my own."


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("from dgbench.methods.erm import ERM\nfrom dgbench.task import TaskInfo", "methods"),
        ("from dgbench import method, task", "methods"),
        ("import dgbench.task", "datasets"),
        ("from dgbench.datasets.prostate import Prostate", "datasets"),
        ("from dgbench.methods.erm import ERM\nthis is no Python", "methods"),
        ("from dgbench.task import Task\nthis is no Python", "datasets"),
    ],
)
def test_what_a_file_is_can_be_told_without_running_it(line: str, kind: str, tmp_path: Path):
    assert defines(written(tmp_path, "mine.py", line)) == kind


def test_a_plugin_is_read_but_not_run_until_it_is_asked_for(tmp_path: Path):
    marker = tmp_path / "ran"
    add_plugin(written(tmp_path, "mine.py", METHOD + f"open({str(marker)!r}, 'w')\n"))
    assert METHODS.plugins()["mine"].summary() and not marker.exists()
    get_method("mine")
    assert marker.exists()


def test_two_of_one_name_are_an_error_that_names_both_files(tmp_path: Path):
    path = written(tmp_path, "erm.py", METHOD)
    add_plugin(path)
    with pytest.raises(UsageError) as caught:
        METHODS.names()
    assert str(path) in caught.value.cause and "methods/erm.py" in caught.value.cause


def test_one_of_ours_may_be_given_by_its_path_too(root: Path):
    before = METHODS.names()
    add_plugin(root / "methods" / "erm.py")
    assert METHODS.names() == before


@pytest.mark.parametrize("classes", ["", "class A(Method): pass\nclass B(Method): pass\n"])
def test_a_file_without_one_concrete_class_is_an_error_with_its_path(classes: str, tmp_path: Path):
    path = written(tmp_path, "mine.py", "from dgbench.method import Method\n" + classes)
    add_plugin(path)
    with pytest.raises(UsageError, match=f"defines {classes.count('class')} concrete method classes") as caught:
        get_method("mine")
    assert str(path) in caught.value.cause


def test_imported_abstract_and_private_classes_do_not_count(tmp_path: Path):
    text = TASK.replace("class Own(Task)", "class Base(Task): pass\nclass _Half(Task): pass\nclass Own(Task)")
    add_plugin(written(tmp_path, "ward.py", "from dgbench.datasets.phantom import *\n" + text))
    assert TASKS.get("ward").__name__ == "Own"


def test_a_file_that_is_no_python_is_listed_as_broken_and_stops_nothing(tmp_path: Path):
    add_plugin(written(tmp_path, "broken.py", "from dgbench.method import Method\nclass (:\n"))
    assert METHODS.plugins()["broken"].summary().startswith("broken: SyntaxError")
    assert issubclass(get_method("erm"), Method)
    with pytest.raises(SyntaxError):  # asked for by name, it shows its own error
        get_method("broken")


def test_a_file_saved_with_a_byte_order_mark_is_read_as_any_other(tmp_path: Path):
    add_plugin(written(tmp_path, "marked.py", "\ufeff" + METHOD))
    assert METHODS.plugins()["marked"].summary() == "A method of my own."
    assert of_code(get_method("marked")) == of_code(get_method("marked"))


def test_a_file_that_needs_what_is_not_installed_is_listed_as_broken(tmp_path: Path):
    add_plugin(written(tmp_path, "needy.py", "import no_such_package.sub\n" + METHOD))
    summary = METHODS.plugins()["needy"].summary()
    assert summary == "broken: it imports no_such_package.sub, which is not installed"
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        get_method("needy")
    with pytest.raises(ModuleNotFoundError):  # and again: no half-imported module is left behind
        get_method("needy")


def test_two_files_of_one_stem_are_not_taken_for_each_other(tmp_path: Path):
    for folder, name in (("a", "First"), ("b", "Second")):
        path = written(tmp_path / folder, "mine.py", METHOD.replace("Own", name))
        METHODS.extra[:] = [path]
        assert get_method("mine").__name__ == name


@pytest.mark.parametrize("name", ["mine.txt", "my method.py", "a,b.py", "2d.py", "x[y].py"])
def test_a_file_name_that_could_not_stand_in_a_table_is_refused(name: str, tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be a plug-in"):
        add_plugin(written(tmp_path, name, METHOD))


def test_a_missing_plugin_file_is_a_clear_error(tmp_path: Path):
    with pytest.raises(UsageError, match="no such plug-in file"):
        add_plugin(tmp_path / "nowhere.py")


def test_a_plugin_named_as_an_engine_file_is_part_of_its_own_fingerprint(tmp_path: Path):
    add_plugin(written(tmp_path, "task.py", METHOD))
    add_plugin(written(tmp_path, "method.py", METHOD + "CHANGED = 1\n"))
    assert of_code(get_method("task")) != of_code(get_method("method"))


def test_the_fingerprint_of_the_code_follows_the_file_and_not_its_comments(tmp_path: Path):
    hashes = []
    for i, text in enumerate((METHOD, METHOD, METHOD + "# explained\n", METHOD + "CHANGED = 1\n")):
        METHODS.extra[:] = [written(tmp_path / str(i), "mine.py", text)]
        hashes.append(of_code(get_method("mine")))
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as pip would fill it with a distribution that brings a method and a task."""
    package = tmp_path / "site" / "ward_methods"
    written(package, "__init__.py", "raise ImportError('listing must not import me')\n")
    package = tmp_path / "site" / "their_dgbench"
    written(package, "__init__.py", "")
    written(package, "impl.py", METHOD)
    written(package, "tasks.py", TASK)
    info = tmp_path / "site" / "their_dgbench-1.0.dist-info"
    written(info, "METADATA", "Metadata-Version: 2.1\nName: their-dgbench\nVersion: 1.0\n")
    written(
        info,
        "entry_points.txt",
        "[dgbench.methods]\ntheirs = their_dgbench.impl:Own\nbroken = ward_methods\n"
        "[dgbench.datasets]\ntheir_ward = their_dgbench.tasks\n",
    )
    return tmp_path / "site"


def test_an_installed_package_brings_methods_and_tasks_by_entry_points(installed: Path, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))
    theirs = METHODS.plugins()["theirs"]
    assert (theirs.origin, theirs.module, theirs.attribute) == ("their-dgbench", "their_dgbench.impl", "Own")
    assert "their_dgbench" not in sys.modules
    assert get_method("theirs").__name__ == "Own" and isinstance(get_task("their_ward"), Task)
    assert of_code(get_method("theirs")) != of_code(Method)
    assert "broken" in METHODS.names()
    with pytest.raises(ImportError, match="listing must not import me"):
        get_method("broken")


def test_the_command_line_lists_entry_points_and_plugins(installed: Path, tmp_path: Path, root: Path):
    broken = written(tmp_path, "unreadable.py", "def (:\n")
    done = subprocess.run(
        [sys.executable, "-m", "dgbench", "list", "methods", "--plugin", str(broken)],
        env=os.environ | {"PYTHONPATH": f"{root}:{installed}", "COLUMNS": "200"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "their-dgbench" in lines["theirs"] and "broken: SyntaxError" in lines["unreadable"] and "erm" in lines


def test_a_registry_without_plugins_of_the_user_knows_ours_only():
    assert set(Registry("methods").names()) == {n for n, p in METHODS.plugins().items() if p.origin == "dgbench"}


def test_what_a_method_needs_is_listed_though_the_method_that_it_derives_from_says_it(tmp_path):
    """Told from the files alone: of one of ours, of one beside it, and of the class that is derived from only."""
    child = "from dgbench.methods.sam_box import SAMBox\n\nclass Mine(SAMBox):\n    pretrained = ''\n"
    add_plugin(written(tmp_path, "mine.py", '"""Mine."""\nfrom dgbench.method import Method\n' + child))
    add_plugin(
        written(
            tmp_path,
            "grandchild.py",
            "from dgbench.method import Method\nfrom mine import Mine as M\n\nclass G(M):\n    paper = 'p'\n",
        )
    )
    plugins = METHODS.plugins()
    assert plugins["mine"].facts()["uses_target_masks"] == "True"
    assert plugins["grandchild"].facts() == {**plugins["mine"].facts(), "paper": "p"}
    assert "uses_target_masks" not in plugins["erm"].facts()


HEADER = """Idea: one sentence.

Doe, Roe. Shapes of 1999 in scanners. ICLR 2019; code of 2020: https://example.org/2018/code. https://arxiv.org/abs/1
Family: augmentation.

    x' = x

As the paper's, but for one thing. Differs from its code of 2021:
there is no x.

More words.
"""


def test_family_year_and_differences_are_what_the_header_says_of_them():
    """The year is the one before the link of the paper; a year in another link is none."""
    told = {"family": "augmentation", "year": "2020", "differs": "there is no x."}
    assert said(HEADER, "https://arxiv.org/abs/1") == told
    assert said(HEADER.replace("; code of 2020", "")) == told | {"year": ""}, "no paper is linked"
    assert said(HEADER.replace("; code of 2020", ""), "https://arxiv.org/abs/1")["year"] == "2019"
    assert said("Idea: one sentence.", "https://arxiv.org/abs/1") == dict.fromkeys(told, "")


def test_every_method_of_ours_states_one_of_the_known_families():
    found = {n: said(p.header())["family"] for n, p in METHODS.plugins().items() if p.origin == "dgbench"}
    wrong = [n for n, family in found.items() if family not in FAMILIES]
    assert not wrong, f"write 'Family: NAME.' under the citation, NAME one of {', '.join(FAMILIES)}: {wrong}"


def test_what_a_method_derives_from_is_told_by_its_files(tmp_path: Path):
    plugins = METHODS.plugins()
    assert plugins["randconv"].derives() == ["erm"] and plugins["erm"].derives() == []
    assert plugins["medsam"].derives() == ["_prompts", "_sam", "sam_box"]
    one = "from dgbench.method import Method\nfrom second import Two\n\nclass One(Two):\n    pass\n"
    add_plugin(written(tmp_path, "first.py", one))
    written(tmp_path, "second.py", "from first import One\n\nclass Two(One):\n    pass\n")
    assert METHODS.plugins()["first"].derives() == ["second"], "files that name each other end"
