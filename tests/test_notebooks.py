"""The notebooks run from top to bottom, on the task that needs no data."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_without_outputs(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


class Client(nbclient.NotebookClient):
    """Keeps what is shown and replaced while a cell runs."""

    replaced: list[str]

    def process_message(self, message, cell, index):
        if message["msg_type"] == "update_display_data":
            self.replaced.append(message["content"]["data"].get("text/html", ""))
        return super().process_message(message, cell, index)


def shown_as(notebook: nbformat.NotebookNode, cell: str, kind: str = "text/html") -> str:
    """What the result of the one cell that ends in a line looks like."""
    (found,) = [c for c in notebook.cells if c.cell_type == "code" and c.source.endswith(f"\n{cell}") or c.source == cell]
    return found.outputs[-1].data[kind]


@pytest.mark.timeout(900)  # 17 runs: a minute, several where other processes want the same cores
def test_every_notebook_runs_and_the_next_one_finds_what_it_left(tmp_path, monkeypatch):
    """One after the other in one folder, as a reader would: a run that is there is not made again."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("MPLBACKEND", "agg")
    assert NOTEBOOKS
    made = []
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        client = Client(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
        client.replaced = []
        client.execute()
        made.append((notebook, client.replaced))
        shown = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        assert not [o for o in shown if o.output_type == "error" or o.get("name") == "stderr"], path.name
    assert len(list((tmp_path / "results" / "phantom" / "sdg").glob("*/*/RESULT.json"))) == 2 * 4 * 2 + 1

    (quick, bars), _, (read, nothing) = made
    # Bars are drawn anew in one place while runs are made, and leave it empty; a quiet run draws none.
    assert any("<progress" in html and "erm[image_size=32" in html for html in bars) and bars[-1] == "" and not nothing
    table = shown_as(quick, "ran")
    assert "<caption" in table and "Dice (%) of prostate" in table and "all slices, masks compared at" in table
    assert table.count("<table") == 2 and "<script" not in table
    assert shown_as(quick, 'ran.figures["matrix-dice"]', "image/png").startswith("iVBOR")
    board = shown_as(read, "board")
    assert ">rank</th>" in board and "95 % interval" in board and "protocol sdg" in board and "rank 1" in board
    compared = shown_as(read, "compared")
    assert "all targets (40 cases)" in compared and "Wilcoxon p" in compared.partition('<p class="quiet">')[2]
    assert all("[image_size=32" in text for text in (shown_as(read, "board", "text/plain"),)), "a plain frame elsewhere"
