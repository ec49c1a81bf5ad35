"""The leaderboard as it is written, and what it says in words."""


import csv
import io
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from dgbench.protocol import PROTOCOLS
from dgbench.scores import ranking

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
GOLDEN = Path(__file__).parent / "golden_leaderboard"
DOMAINS = ("A", "B", "C")


# --- formats ---------------------------------------------------------------------------------------------------------


def everything():
    return board(
        GOOD, BAD, study("method[steps=5;width=8]", 0.5, seeds=(0,)), study("partial", 0.9, sources=("A", "B"))
    )


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_the_board_is_written_as_it_was_looked_at(kind: str):
    assert ranking.render(everything(), kind) == (GOLDEN / f"leaderboard.{kind}").read_text(encoding="utf-8")


def test_the_csv_is_the_one_that_was_looked_at():
    """To nine digits: the last ones depend on how a processor adds."""
    new, old = (
        pd.read_csv(f) for f in (io.StringIO(ranking.render(everything(), "csv")), GOLDEN / "leaderboard.csv")
    )
    pd.testing.assert_frame_equal(new, old, rtol=1e-9)


def test_the_csv_holds_full_precision_and_blanks():
    rows = list(csv.DictReader(io.StringIO(ranking.render(everything(), "csv"))))
    assert float(rows[0]["mean"]) == everything().rows[0].mean
    assert rows[-1]["mean"] == "" and rows[-1]["not_ranked"] == "no run of source C"


def test_a_page_escapes_the_names_of_variants():
    page = ranking.render(board(study("<script>alert(1)</script>", 0.8), BAD), "html")
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_the_tex_compiles(tmp_path: Path):
    text = ranking.render(everything(), "tex")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "board.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "board.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


