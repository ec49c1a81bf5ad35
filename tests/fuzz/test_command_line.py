"""Commands of any words: they end in exit code 0, or in 2 or 3 with cause and remedy, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from dgbench import cli
from tests.fuzz.right_or_refused import Folder, answer, folder, inputs

WORDS = st.one_of(
    st.sampled_from([
        "erm", "emr", "phantom", "phantm", "there", "there/task.toml", "nowhere", ".", "..", "/", "", " ", "-", "--",
        "0", "-1", "A", "a,b", "dice", "asd", "sdg", "dapsam", "steps=3", "steps", "=", "x.csv", "x.png", "x.pdf",
        "there/x.png", "é", "[bold]", "[/]", "\x1b[2J", "a" * 300, "{}", "%s", "~", "*", "--help", "--task", "cpu",
    ]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
)  # fmt: skip
VERBS = {
    "status": ["--task", "--results"], "list": ["--results", "--plugin"],
    "leaderboard": ["--task", "--metric", "--against", "--protocol", "--results", "--beside", "--picture", "--format"],
    "compare": ["--task", "--metric", "--margin", "--results"],
    "multiverse": ["--task", "--metric", "--results"], "report": ["--task", "--data", "--results"],
    "import": ["--task", "--citation", "--protocol", "--stated", "--name", "--results"], "verify": [], "explain": [],
    "data verify": ["--data"], "data describe": ["--data"], "new": ["--folder"], "cancel": ["--task", "--results"],
    "run --dry-run": ["--method", "--task", "--source", "--seed", "--protocol", "--set", "--data", "--results",
    "--checkpoint", "--jobs", "--plugin"], "weights verify": [], "predict": ["--out"], "reproduce": ["--task", "--out"],
}  # fmt: skip


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    verb = draw(st.sampled_from(sorted(VERBS)))
    words = [*verb.split(), *draw(st.lists(WORDS, max_size=2))]
    for option in draw(st.lists(st.sampled_from(VERBS[verb]), unique=True, max_size=4)) if VERBS[verb] else ():
        words += [option, draw(WORDS)]
    if len(words) < {"explain": 2, "weights verify": 3}.get(verb, 0):
        words.append("asd")  # all weights take long to read
    return words


def a_folder(box: Folder) -> None:
    (box.path / "there" / "A" / "images").mkdir(parents=True)
    (box.path / "there" / "A" / "images" / "x.png").write_bytes(b"")
    (box.path / "there" / "task.toml").write_text("steps = 3\n")
    (box.path / "x.csv").write_text("method,source\n")
    (box.path / "x.png").write_bytes(b"\x89PNG")


@inputs(45)
@given(commands())
@example(["report", "--task", ""])
def test_a_command_of_any_words_ends_well_or_says_why_not(words: list[str]):
    with folder() as box, pytest.MonkeyPatch.context() as patch:
        a_folder(box)
        before = box.held()
        patch.chdir(box.path)
        patch.setenv("DGBENCH_CACHE", str(box.path / box.written))

        def ended() -> tuple[int, str]:
            done = CliRunner().invoke(cli.app, words)
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            return done.exit_code, done.output

        found = answer(ended)
        if isinstance(found[0], int):
            code, text = found
            assert code in (0, 2, 3) and "Traceback" not in text, text
            assert code in (0, 3) or "Usage" in text or "Error" in text or not words, text
        after = box.held()
        assert {n: after.get(n) for n in before} == before, "inputs were changed"
        if not (isinstance(found[0], int) and found[0] == 0):
            assert not [n for n in after if n not in before and after[n] is not None], "a file of a command that failed"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "--method", "emr", "--task", "phantom"], 2, "did you mean 'erm'?"),
        (["data", "verify", "there"], 3, "domain 'A' has no folder there/A/masks"),
    ],
)
def test_a_process_ends_in_the_exit_code_with_cause_and_remedy(words: list[str], code: int, said: str, root: Path):
    with folder() as box:
        a_folder(box)
        done = subprocess.run(
            [sys.executable, "-m", "dgbench", *words], cwd=box.path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(root), "DGBENCH_CACHE": str(box.path / box.written)},
        )  # fmt: skip
        assert done.returncode == code and said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
