"""The README tells the truth: its method in 20 lines is one, and the commands it names exist."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from dgbench import registry
from dgbench.cli import app
from dgbench.running.conformance import check_method

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_method_in_20_lines_passes_every_check(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.startswith('"""Solarize')
    body = [line for line in code.splitlines() if line.strip()]
    assert len(body) <= 20
    (tmp_path / "solarize.py").write_text(code)
    registry.add_plugin(tmp_path / "solarize.py")
    assert check_method(registry.get_method("solarize")) == []


def test_every_command_in_it_has_the_options_it_shows():
    shown = [
        line.split("#")[0] for block in re.findall(r"```\n(.*?)```", README, re.DOTALL) for line in block.splitlines()
    ]
    commands = [c for line in shown for c in re.split(r"\s{4,}(?=dgbench)", line) if c.startswith("dgbench ")]
    assert len(commands) >= 8
    for command in commands:
        verb, *rest = shlex.split(command)[1:]
        words = [verb, rest[0]] if verb in ("data", "weights") else [verb]
        help_text = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[a-z-]+", command):
            assert option in help_text, command
