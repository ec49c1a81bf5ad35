"""The pages tell the truth: a method in 20 lines is one, commands exist, lists are what there is.

`python tests/test_readme.py --write` writes the README's lists, docs/methods.md and docs/glossary.md anew, and counts
the FLOPs of methods whose code changed.
"""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import dgbench
from dgbench import face, registry
from dgbench.cli import app
from dgbench.errors import UsageError
from dgbench.images.find_task import get_task
from dgbench.pages import cards, glossary

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md", *sorted(
    str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")
))]  # fmt: skip
README = PAGES[0].read_text(encoding="utf-8")


# --- lists that are written by themselves ----------------------------------------------------------------------------


def methods() -> list[str]:
    lines = ["| name | what it is | needs | pretrained |", "|---|---|---|---|"]
    for row in face.listing("methods"):
        name, what = row["method"], row["what"].rstrip(".")
        lines.append(f"| [`{name}`](methods/{name}.py) | {what} | {row['needs']} | {row['pretrained']} |")
    return lines


def tasks() -> list[str]:
    lines = ["| name | domains | structures | the data are from |", "|---|---|---|---|"]
    for name in registry.TASKS.names():
        task = get_task(name)
        tested = [d for d in task.domains if d not in task.source_domains]
        domains = ", ".join(task.source_domains) + (f"; only as targets: {', '.join(tested)}" if tested else "")
        link = re.search(r"https://[^\s()]+(?<![.,:;])", task.download)
        where = f"<{link[0]}>" if link else task.download.partition(":")[0]
        lines.append(f"| [`{name}`](datasets/{name}.py) | {domains} | {', '.join(task.structures)} | {where} |")
    return [*lines, "| a folder of images, or a table | its folders, a column | yours | yours |"]


def options() -> list[str]:
    lines = ["| option | what it is | default |", "|---|---|---|"]
    for option in typer.main.get_command(app).commands["run"].params:
        shown = option.show_default if isinstance(option.show_default, str) else option.default
        default = "" if option.required or shown in (None, False) else f"`{shown}`"
        lines.append(f"| {', '.join(f'`{o}`' for o in option.opts)} | {option.help} | {default} |")
    return lines


WRITE = "python tests/test_readme.py --write"
MADE = {"docs/methods.md": cards.gallery, "docs/glossary.md": glossary.pages}  # pages that are made as a whole
LISTS = {"methods": methods, "tasks": tasks, "options": options}


def with_lists(text: str) -> str:
    """The page with each list between its two markers written anew."""
    for name, lines in LISTS.items():
        new = "\n".join((f"<!-- {name} -->", "", *lines(), "", f"<!-- /{name} -->"))
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _, new=new: new, text, flags=re.DOTALL)
        assert count == 1, name
    return text


def test_its_lists_of_methods_tasks_and_options_are_what_there_is():
    assert with_lists(README) == README, "write them anew: python tests/test_readme.py --write"


@pytest.mark.parametrize("page", MADE)
def test_a_page_that_is_made_is_up_to_date(page: str):
    assert MADE[page]() == (ROOT / page).read_text(encoding="utf-8"), f"make it anew: {WRITE}"


def ours() -> list[str]:
    return [name for name, plugin in registry.METHODS.plugins().items() if plugin.origin == "dgbench"]


def test_every_method_of_ours_has_its_cost_counted():
    """Else lists would count it whenever they are made, and fetch its weights for it."""
    lacking = [n for n in ours() if n not in cards.counts()]
    assert not lacking, f"count {', '.join(lacking)}: {WRITE}"


OTHERS = sorted(n for n, flops in cards.counts().items() if flops is not None and n not in ("erm", "dual_norm"))


@pytest.mark.parametrize("name", ["erm", "dual_norm", *(pytest.param(n, marks=pytest.mark.thorough) for n in OTHERS)])
def test_a_cost_is_what_is_counted_today(name: str):
    assert cards.count(name) == cards.counts()[name], f"count it anew: {WRITE}"


def test_what_could_not_be_counted_is_said_and_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cards, "counts", lambda: {"erm": 4, "dsu": None, "csdg": 10})
    assert cards.method_card("dsu")["cost"] == "not counted: it needs its weights"
    assert cards.method_card("csdg")["cost"] == "2.5 x erm"


def test_a_card_says_what_is_known_of_a_method():
    """Plain training is the unit of cost; what two sets of norms cost is two passes."""
    two = {"cost": "2 x erm", "family": "normalization", "year": "2022", "derives from": "erm"}
    assert two.items() <= cards.method_card("dual_norm").items()
    assert cards.method_card("erm")["cost"] == "1 x erm" and cards.method_card("constant")["cost"] == "0 x erm"
    derived = "erm; is put over any method that is trained: other+randconv"
    assert cards.method_card("randconv")["derives from"] == derived
    dapsam = cards.method_card("dapsam")
    assert dapsam["published"].startswith("81.31 on prostate, prostate (the authors: mean over each of the six domains")
    assert "dapsam_2024, its own paper" in dapsam["published"]
    assert dapsam["differs"].startswith("the default backbone is a small ViT trained whole from scratch")
    of_audit = cards.method_card("bigaug")["published"]
    assert "mean of 6 sources (U-Net from scratch), sdg_audit_2026" in of_audit and "its own" not in of_audit
    assert "sam_box 52.21 on phantom, an oracle" in cards.method_card("sam_box")["measured"]
    refused = CliRunner().invoke(app, ["list", "tasks", "--long"]).exception
    assert isinstance(refused, UsageError) and refused.remedy == "leave it out: dgbench list tasks"


# --- what it shows ---------------------------------------------------------------------------------------------------


def blocks(language: str, text: str) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for of, block in fences if of == language]


def test_the_method_in_20_lines_passes_every_check(tmp_path: Path):
    from dgbench.running.conformance import check_method

    (code,) = [block for block in blocks("python", README) if "class Solarize" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "solarize.py").write_text(code)
    registry.add_plugin(tmp_path / "solarize.py")
    assert check_method(registry.get_method("solarize")) == []


def test_its_lines_of_python_call_what_there_is():
    (code,) = [block for block in blocks("python", README) if "import dgbench\n" in block]
    calls = re.findall(r"dgbench\.(\w+)\((.*)\)", code)
    assert len(calls) == 3
    for name, arguments in calls:
        names = inspect.signature(getattr(dgbench, name)).parameters
        assert names.keys() >= set(re.findall(r"(\w+)=", arguments)), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_it_links_to_is_there(page: Path):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def counted() -> dict[str, int | None]:
    """FLOPs of a step of each of our methods; what cannot be counted here, as its weights are not, stays as it was."""
    found = {}
    for name in ours():
        try:
            found[name] = cards.count(name)
        except Exception as error:
            found[name] = cards.counts().get(name)
            print(f"{name} is not counted: {error}", file=sys.stderr)
    return found


if __name__ == "__main__" and "--write" in sys.argv:
    cards.COUNTS.write_text(json.dumps(counted(), indent=1) + "\n", encoding="utf-8")
    cards.counts.cache_clear()
    PAGES[0].write_text(with_lists(README), encoding="utf-8")
    for name, made in MADE.items():
        (ROOT / name).write_text(made(), encoding="utf-8")
