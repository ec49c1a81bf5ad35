"""Every command that a page shows is one: the command line reads it, and where a page says `<!-- run -->` it is run.

What needs a task's images, a cluster or hours is read only, by the parser that a terminal has, options and values. A
block after `<!-- run -->` is run from top to bottom, in a folder of its page's own that holds the archives of scores;
of a `text` block after it, every line must be among what was printed.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dgbench import cli, registry
from dgbench.cli import app
from dgbench.pages.screen import Screen

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("README.md", "CONTRIBUTING.md", "results/README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in sorted(NAMES)}
FENCE = re.compile(r"(<!-- run -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def lines(block: str) -> list[str]:
    """Without comments and prompts; one that ends in a backslash goes on."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def commands(text: str) -> tuple[list[str], list[str]]:
    """What a page shows of our commands: whole ones in its blocks; parts of one, maybe, between its words."""
    blocks = [line for _, language, block in FENCE.findall(text) if not language for line in lines(block)]
    prose = FENCE.sub("", text)
    blocks += [line for line in prose.splitlines() if line.startswith("    ")]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", re.sub(r"(?m)^    .*$", "", prose))]
    shown = re.compile(r"(?:^|[\s/'&])dgbench ((?:[a-z]|--help)[^']*(?:'[^']*'[^']*)*)")
    return tuple([m[1].strip() for line in found if (m := shown.search(line))] for found in (blocks, inline))  # type: ignore[return-value]


def refused(command: str, whole: bool) -> str:
    """What the command line has against a command, "" if nothing: it is read as on a terminal, and nothing is done.

    Of a part of a command, what is left out may be.
    """
    words = shlex.split(re.split(r" [>|] | && | 2>&1", command)[0], comments=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        READER.main(words, prog_name="dgbench")
    left_out = re.search(r"Missing (argument|option|command)|requires an argument", said.getvalue())
    return "" if ended.value.code == 0 or (left_out and not whole) else said.getvalue() or "nothing is given"


def reader() -> Any:
    """The command line with verbs that do nothing."""
    top = typer.main.get_command(app)
    for group in (top, *(c for c in top.commands.values() if hasattr(c, "commands"))):
        for command in group.commands.values():
            command.callback = None if hasattr(command, "commands") else lambda **given: None
    return top


READER = reader()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_a_page_shows_is_read_by_the_command_line(page: str):
    whole, parts = commands(PAGES[page])
    assert whole or parts
    for command in dict.fromkeys(whole):
        assert not (why := refused(command, whole=True)), f"dgbench {command}\n{why}"
    for command in dict.fromkeys(parts):
        assert not (why := refused(command, whole=False)), f"dgbench {command}\n{why}"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("leaderbord --task phantom", "No such command"),
        ("run --method erm --task phantom --seeds 0", "No such option"),
        ("data adapt x", "No such command"),
        ("run -m erm -t p --jobs x", "Invalid value"),
        ("run --task phantom", "Missing option"),
    ],
)
def test_a_wrong_command_is_found(wrong: str, why: str):
    assert why in refused(wrong, whole=True)
    assert bool(refused(wrong, whole=False)) == (why != "Missing option")


def stories() -> dict[str, list[tuple[list[str], list[str]]]]:
    """By page, its blocks that are run: their lines, and lines of what must be printed."""
    found: dict[str, list[tuple[list[str], list[str]]]] = {}
    for page, text in PAGES.items():
        for run, language, block in FENCE.findall(text):
            if run:
                found.setdefault(page, []).append((lines(block), []))
            elif language == "text" and page in found:
                found[page][-1][1].extend(lines(block))
    return found


@pytest.mark.parametrize("page", stories())
def test_what_a_page_shows_is_what_happens(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry.METHODS, "extra", [])
    monkeypatch.setattr(registry.TASKS, "extra", [])
    monkeypatch.setattr(cli, "console", Screen(width=160))  # whatever the width was when it was imported
    for archive in ROOT.glob("results/scores-*.tar.xz"):
        shutil.copy(archive, tmp_path)
    for block, expected in stories()[page]:
        printed = ""
        for line in block:
            if line.startswith("dgbench "):
                answer = CliRunner().invoke(app, shlex.split(line, comments=True)[1:], env={"COLUMNS": "160"})
                assert answer.exit_code == 0, f"{line}\n{answer.output}\n{answer.exception!r}"
                printed += answer.output
            else:
                subprocess.run(line, shell=True, check=True)
        said = " ".join(printed.split())
        for line in expected:
            assert " ".join(line.split()) in said, f"{block}: '{line}' is not in what it prints:\n{printed}"
