"""The README tells the truth: its method in 20 lines is one, its commands exist, its lists are what there is.

`python tests/test_readme.py --write` writes the lists anew.
"""

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import dgbench
from dgbench import face, registry
from dgbench.cli import app
from dgbench.images.find_task import get_task

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


def commands(text: str) -> list[str]:
    """What a page shows of our commands, in its blocks and between its words."""
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    shown = [line.split("#")[0] for block in blocks("", text) for line in block.splitlines()]
    shown += [line for line in text.splitlines() if line.startswith("    ")]
    shown += [" ".join(code.split()) for code in inline]
    found = (re.search(r"(?:^|[\s/])dgbench ((?:[a-z]|--help).*)", line) for line in shown)
    return [match[1].strip() for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_it_shows_has_the_options_it_shows(page: Path):
    found = commands(page.read_text(encoding="utf-8"))
    assert found
    for command in found:
        words = shlex.split(re.split(r" [>|] ", command)[0])
        verb = words[: 2 if words[0] in ("data", "weights") else 1]
        if words == ["--help"]:
            continue
        answer = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200"})
        assert answer.exit_code == 0, f"dgbench {command}"
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", command):
            assert re.search(rf"{option}\b", answer.output), f"dgbench {command}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_it_links_to_is_there(page: Path):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link


if __name__ == "__main__" and "--write" in sys.argv:
    PAGES[0].write_text(with_lists(README), encoding="utf-8")
