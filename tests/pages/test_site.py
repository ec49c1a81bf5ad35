"""The site: its links arrive wherever it lies, its copies stay, hostile names are names, and everybody can use it."""

import base64
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgbench import cli
from dgbench.errors import DataError, UsageError
from dgbench.names import WINDOWS
from dgbench.pages import site, site_tables
from dgbench.pages.table import fill
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores import reproduce
from dgbench.scores.collection import Collected, Collection
from dgbench.scores.ranking import rank
from dgbench.scores.reproduce import Reproduction
from dgbench.scores.study import Study
from tests.pages.test_report import HOSTILE, Page, chromium
from tests.toy_runs import COSTS, changed, run

DOMAINS, DAY = ("A", "B", "C"), "2030-12-31"
SAM = {"hparams": {"backbone": "vit_b", "steps": 9, "batch_size": 2}, "initialisation": "sam_vit_b.pth"}
SEEN = {"fingerprint": "f", "settings": {}, "data": dict.fromkeys(DOMAINS, "x"), "sources": list(DOMAINS)}


def made(variant: str, dice: float, seeds=(0, 1), sources=DOMAINS, flops: float = 1e12, **told: Any) -> list[RunRecord]:
    """The runs of a row that scores `dice` on every case, give or take a hundredth."""
    costs = dict.fromkeys(COSTS, 1) | dict.fromkeys(("train_flops", "train_step_flops", "predict_image_flops"), flops)
    told = SEEN | {"costs": costs, "sources": list(sources)} | told
    cases = {seed: {d: [dice + 0.001 * seed + n / 100 for n in (-1, 0, 1)] for d in DOMAINS} for seed in seeds}
    return [run(variant, source, cases[seed], seed, **told) for source in sources for seed in seeds]


def told_otherwise(r: RunRecord, cases: pd.DataFrame | None = None, **told: Any) -> RunRecord:
    """The same run with another record."""
    other = RunRecord(r.path, {**r.record, **told})
    vars(other)["cases"] = r.cases if cases is None else cases
    return other


def board(name: str, *rows: list[RunRecord], again: dict | None = None, archive: str = "") -> Collected:
    records = [r for row in rows for r in row]
    keys = [(r.variant, r.source, r.seed) for r in records]
    ranking = rank(Study(records, PROTOCOLS["sdg"]), draws=200)
    return Collected(name, ranking, dict.fromkeys(keys, archive) if archive else {}, again or {})


def collection(*boards: Collected) -> Collection:
    return Collection({b.name: b for b in boards}, ())


@pytest.fixture(scope="module")
def usual() -> Collection:
    """Two boards: one with a SAM, an oracle and a run that was made again; one with the same two rows."""
    oracle = {"needs": {"uses_target_masks": True}}
    rows = (made("erm", 0.6), made("dapsam[steps=9]", 0.8, **SAM, flops=5e13), made("sam_box", 0.95, **SAM | oracle))
    then = rows[0][0]
    again = Reproduction(then, then, "identical", 0.0, 0.0, 0.0, 6, [("package torch", "2.12.0", "2.13.0")])
    other = [told_otherwise(r, task="other") for r in (*rows[0], *rows[1])]
    first = board("toy-sdg", *rows, again={(then.variant, then.source, then.seed): again}, archive="scores-toy.tar.xz")
    return collection(first, board("other-sdg", other))


@pytest.fixture(scope="module")
def written(usual: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    site.write(usual, out, DAY)
    return out


def pages(folder: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(folder.rglob("*.html")):
        yield path, Page(path.read_text(encoding="utf-8"))


def content(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def page_of(written: Path, address: str) -> Page:
    return Page((written / address).read_text(encoding="utf-8"))


# --- addresses -------------------------------------------------------------------------------------------------------


def test_every_link_arrives_wherever_the_site_lies(written: Path):
    """A relative address to a file that is there, with the fragment in it; from a copy no other link leads out of it
    than the one to what is known now."""
    ids = {path: {a["id"] for _, a in page.elements if "id" in a} for path, page in pages(written)}
    copies = written / "frozen" / DAY
    assert len(ids) > 2 * (2 + 24 + 30)
    for path, page in pages(written):
        links = [a["href"] for _, a in page.elements if "href" in a]
        assert links
        for link in links:
            if link.startswith("https://"):
                continue
            address, _, fragment = link.partition("#")
            there = (path.parent / address).resolve() if address else path
            assert there.is_file() and there.is_relative_to(written), f"{path}: {link}"
            assert not fragment or fragment in ids[there], f"{path}: {link}"
            if path.is_relative_to(copies):
                assert there.is_relative_to(copies) or there == written / "index.html", f"{path}: {link}"


@given(st.lists(st.text(max_size=120), min_size=2, max_size=8, unique=True))
def test_every_name_has_an_address_of_its_own_that_every_system_can_store(names: list[str]):
    parts = [site_tables.part(name) for name in names]
    assert len({p.casefold() for p in parts}) == len(names)
    for p in parts:
        assert re.fullmatch(r"[a-z0-9_-]+", p) and len(p) <= 100 and not WINDOWS.fullmatch(p) and p != "index"


def test_addresses_of_today_are_those_of_tomorrow():
    """They are cited: whoever changes how they are made breaks links."""
    assert site_tables.part("phantom-sdg") == "phantom-sdg"
    assert site_tables.part("erm[width=8]") == "erm-width-8-1dd8b938"
    assert site_tables.part("A") == "a-559aead0"


# --- copies ----------------------------------------------------------------------------------------------------------


def test_a_copy_stays_as_it_is_when_the_site_is_made_again_and_pages_that_are_gone_are_taken_away(tmp_path: Path):
    both = collection(board("toy-sdg", made("erm", 0.6)), board("gone-sdg", made("erm", 0.7)))
    left = collection(board("toy-sdg", made("erm", 0.9)))
    first = site.write(both, tmp_path / "out", "2030-01-01")
    assert not first.kept and first.start == tmp_path / "out/index.html"
    copy = content(first.frozen)
    (tmp_path / "out/notes.txt").write_text("mine")
    second = site.write(left, tmp_path / "out", "2030-01-02")
    again = site.write(left, tmp_path / "out", "2030-01-01")
    assert again.kept and not second.kept
    assert content(first.frozen) == copy
    assert (first.frozen / "boards/gone-sdg.html").is_file()
    assert not (tmp_path / "out/boards/gone-sdg.html").exists() and (tmp_path / "out/notes.txt").read_text() == "mine"
    start = page_of(tmp_path / "out", "index.html")
    assert [a["href"] for a in start.all("a") if "frozen" in a["href"]] == [
        f"frozen/2030-01-0{n}/index.html" for n in (2, 1)
    ]
    assert "60.0" in (first.frozen / "boards/toy-sdg.html").read_text()
    assert "90.0" in (second.frozen / "boards/toy-sdg.html").read_text()
    assert "Copies to cite" in start and "Copies to cite" not in page_of(first.frozen, "index.html")
    assert "A copy of 2030-01-01 that does not change." in page_of(first.frozen, "boards/toy-sdg.html")
    assert "does not change" not in page_of(tmp_path / "out", "boards/toy-sdg.html")


def test_the_same_scores_and_day_give_the_same_bytes(usual: Collection, written: Path, tmp_path: Path):
    site.write(usual, tmp_path / "out", DAY)
    assert content(written) == content(tmp_path / "out")


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UsageError, match="holds something else than a site"):
        site.write(collection(board("toy-sdg", made("erm", 0.6))), tmp_path, DAY)
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize("day", ["31.12.2030", "2030-13-01", "../../x", ""])
def test_a_day_that_is_none_is_refused_before_anything_is_written(tmp_path: Path, day: str):
    with pytest.raises(UsageError, match="is no date"):
        site.write(collection(board("toy-sdg", made("erm", 0.6))), tmp_path / "out", day)
    assert not (tmp_path / "out").exists()


def test_a_list_of_what_was_made_that_leads_elsewhere_takes_nothing_away(tmp_path: Path):
    found = collection(board("toy-sdg", made("erm", 0.6)))
    kept = site.write(found, tmp_path / "out", DAY).frozen / "index.html"
    (tmp_path / "mine.txt").write_text("mine")
    listed = ["../mine.txt", str(tmp_path / "mine.txt"), f"frozen/{DAY}/index.html", ".", 7]
    (tmp_path / "out/site.json").write_text(json.dumps({"files": listed}))
    site.write(found, tmp_path / "out", DAY)
    assert (tmp_path / "mine.txt").read_text() == "mine" and kept.is_file()


# --- what it says ----------------------------------------------------------------------------------------------------


def row_of(html: str, name: str) -> str:
    rows = (row.replace("<wbr>", "") for row in html.split("<tr") if '<th scope="row"' in row)
    return next(row for row in rows if f">{name}<" in row)


def test_an_interval_is_drawn_where_its_numbers_are():
    """From 136 pixels between 4 and 140: here 0, a half, and all of them."""
    table = site_tables.replace(
        site_tables.method_table([]), header=("row", "interval"), axis={"interval": ("10", "30")},
        groups=[("", [[site_tables.Cell("a"), site_tables.Cell("10 to 30", span=(0.0, 0.5, 1.0))]])],
    )  # fmt: skip
    html = fill("tables.html.jinja", tables=[table], title="t")
    assert '<path d="M4.0 6H140.0"/><circle cx="72.0" cy="6" r="3"/>' in html
    assert "<span>10</span><span>30</span>" in html


def test_a_board_has_its_rows_with_intervals_and_what_they_can_be_chosen_by(written: Path):
    html = (written / "boards/toy-sdg.html").read_text(encoding="utf-8")
    best, plain, oracle = (row_of(html, name) for name in ("dapsam[steps=9]", "erm", "sam_box"))
    assert ">80.05<" in best and ">foundation model<" in best and ">sam_vit_b.pth<" in best and ">50.0<" in best
    assert ">60.05<" in plain and ">baseline<" in plain and ">1.00<" in plain
    assert 'class="hollow"' in oracle and 'class="hollow"' not in best + plain
    assert "an oracle: prompted from the targets" in oracle
    assert html.index("not ranked</span>") < html.index(">sam_<wbr>box<")
    assert re.findall(r'data-filter="(\w+)">([\w ]+)', html) == [
        ("choice", "family"), ("choice", "pretraining"), ("choice", "weights saw"), ("most", "train TFLOP"),
    ]  # fmt: skip


def test_a_run_has_its_scores_record_commands_and_what_came_of_making_it_again(written: Path):
    page = page_of(written, f"runs/toy-sdg/erm/{site_tables.part('A')}-seed0.html")
    assert "reproduced: identical" in page and "2.12.0 → 2.13.0" in page
    commands = next(text for tag, text in page.within if tag == "pre")
    assert "tar -xJf results/scores-toy.tar.xz -C scores-toy" in commands
    assert "dgbench reproduce scores-toy/toy/sdg/erm/A-seed0 --task PATH/TO/toy" in commands
    assert "dgbench run --method erm --task PATH/TO/toy --protocol sdg --seed 0 --source A" in commands
    record = json.loads([text for tag, text in page.within if tag == "pre"][1])
    assert record["source"] == "A" and record["fingerprint"] == "f"
    other = page_of(written, f"runs/toy-sdg/erm/{site_tables.part('B')}-seed0.html")
    assert "reproduced:" not in other and "was not tried where this page was made" in other


def test_what_was_made_again_beside_a_run_is_found_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    then, now = made("erm", 0.6)[:2]
    then = changed(then, path=tmp_path / "toy/sdg/erm/A-seed0")
    assert reproduce.repetition(then) is None
    place = tmp_path / "toy/sdg/erm/.A-seed0.again/toy/sdg/erm/A-seed0"
    place.mkdir(parents=True)
    (place / "RESULT.json").write_text("{}")
    monkeypatch.setattr(reproduce, "read_run", {place: now}.__getitem__)
    monkeypatch.setattr(reproduce, "compare", lambda one, other: (one.seed, other.seed))
    assert reproduce.repetition(then) == (0, 1)


def test_a_method_has_its_idea_its_file_its_rows_and_how_to_run_it(written: Path, root: Path):
    html = (written / "methods/dapsam.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "a frozen SAM is adapted by low-level features" in page
    assert "dgbench run --method dapsam --task" in page and "https://arxiv.org/abs/2409.12522" in page
    source = [text for tag, text in page.within if tag == "pre"]
    assert (root / "methods/dapsam.py").read_text() in "".join(source)
    assert html.count("dapsam[<wbr>steps=9] on ") == 2
    assert "No board has a row of it yet." in page_of(written, "methods/rsc.html")


def test_methods_over_tasks_say_how_sure_they_are_and_of_how_many_tasks(written: Path):
    page = page_of(written, "overview.html")
    assert "1.00 [1.00 to 1.00]" in page and "2.00 [2.00 to 2.00]" in page
    assert "Too few tasks (2 tasks, fewer than 5) to say anything of others" in page


def test_files_to_take_away_hold_what_the_tables_are_made_of(usual: Collection, written: Path):
    ranking = usual.boards["toy-sdg"].ranking
    told = json.loads((written / "data/toy-sdg/leaderboard.json").read_text())
    assert (told["board"], told["metric"], told["unit"]) == ("toy-sdg", "dice", "fraction")
    assert [row["variant"] for row in told["rows"]] == ["dapsam[steps=9]", "erm", "sam_box"]
    assert [row["mean"] for row in told["rows"]] == pytest.approx(ranking.frame()["mean"], abs=1e-15)
    assert told["rows"][2]["rank_low"] is None
    rows = list(csv.DictReader(io.StringIO((written / "data/toy-sdg/leaderboard.csv").read_text())))
    assert [row["mean"] for row in rows] == [repr(row["mean"]) for row in told["rows"]]
    records = json.loads((written / "data/toy-sdg/runs.json").read_text())["runs"]
    assert len(records) == len(ranking.study.records)
    listed = {a["href"] for a in page_of(written, "data/index.html").all("a") if a["href"].startswith("../data/")}
    files = {f"../{p.relative_to(written)}" for p in (written / "data").rglob("*.*") if p.suffix != ".html"}
    assert listed - {"../data/index.html"} == files


def test_a_record_tells_nothing_of_the_machine_it_was_made_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site, "private_words", lambda: ["anna"])
    runs = made("erm", 0.6, settings={"init": "/home/anna/secret/lite.pth"}, environment={"host": "anna laptop"})
    text = "".join(map(str, site.Site(collection(board("toy-sdg", runs)), DAY).data["data/toy-sdg/runs.json"]))
    assert "lite.pth" in text and "anna" not in text and "secret" not in text


# --- safe, small -----------------------------------------------------------------------------------------------------


def test_names_that_look_like_markup_or_paths_are_only_names(tmp_path: Path):
    names = {"A": "../../" + HOSTILE, "B": "B", "C": "C"}
    told = {"domains": [*names.values()], "sources": [*names.values()], "data": {}, "unit": "\ud800" + HOSTILE}
    rows = []
    for variant, dice in ((HOSTILE, 0.6), ("../../up", 0.7), ("CON", 0.5)):
        for r in made(variant, dice):
            cases = r.cases.assign(domain=r.cases["domain"].map(names))
            of = [names[d] for d in r.record["targets"]]
            rows.append(told_otherwise(r, cases, **told, source=names[r.source], targets=of, method=variant))
    out = tmp_path / "deep/er/out"
    site.write(collection(board("<b>" + HOSTILE, rows)), out, DAY)
    assert {p.name for p in tmp_path.rglob("*")} >= {"er"} and len(list(tmp_path.iterdir())) == 1
    for path, page in pages(out):
        assert re.fullmatch(r"[a-z0-9_./-]+", str(path.relative_to(out)))
        assert len(page.all("script")) == (0 if "runs" in path.parts else 1) and not page.all("b")
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        links = [a["href"] for a in page.all("a")]
        assert all(re.fullmatch(r"[#a-z0-9_./-]+|https://[^\s\"<>]+", link) for link in links)
    assert HOSTILE in page_of(out, f"boards/{site_tables.part('<b>' + HOSTILE)}.html")


def test_a_page_loads_nothing_and_its_policy_allows_nothing_but_its_own_script(written: Path):
    for path, page in pages(written):
        html = path.read_text(encoding="utf-8")
        assert not page.all("link") and not page.all("img") and not page.all("iframe")
        assert not any("src" in a for _, a in page.elements) and "@import" not in html and "url(" not in html
        policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
        assert policy.startswith("default-src 'none';"), path
        assert ("script-src 'sha256-" in policy) == bool(page.all("script")), path


def test_a_board_of_100_rows_takes_less_than_200_kilobytes():
    names = [f"method_{n:03}[backbone=lite_medsam;batch_size=2]" for n in range(100)]
    found = board("toy-sdg", *(made(name, 0.3 + n / 200, sources="A", **SAM) for n, name in enumerate(names)))
    files = site.Site(collection(found), DAY).files("", ())
    page = next(text for name, text in files if name == "boards/toy-sdg.html")
    assert page.count('<th scope="row">') >= 200
    assert 100_000 < len(page.encode()) < 200_000


# --- for everybody ---------------------------------------------------------------------------------------------------


def test_without_its_script_a_page_has_all_rows_and_no_dead_buttons(written: Path):
    for _, page in pages(written):
        assert not page.all("button") and not page.all("select") and not page.all("input")
        assert not any("hidden" in a for _, a in page.elements)


def test_headings_are_in_order_ids_are_unique_tables_are_named_and_what_scrolls_can_be_reached(written: Path):
    for path, page in pages(written):
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1, path
        ids = [a["id"] for _, a in page.elements if "id" in a]
        assert len(ids) == len(set(ids)), path
        named = [a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a]
        assert set(named) <= set(ids), path
        assert len(page.all("caption")) == len(page.all("table"))
        scrolled = [a for tag, a in page.elements if tag == "pre" or a.get("class") == "scroll"]
        assert all(a["tabindex"] == "0" and a["role"] == "region" for a in scrolled), path
        assert page.all("html") == [{"lang": "en"}] and "prefers-color-scheme: dark" in path.read_text()


PROBE = """
document.querySelectorAll("details").forEach(d => d.open = true);
const root = document.documentElement, said = {width: innerWidth, page: location.hash.slice(1)};
said.content = root.scrollWidth;
said.wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll") && !e.closest(".skip"))
  .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
said.unreachable = [...document.querySelectorAll("a[href], button, select, summary, .scroll")]
  .filter(e => e.tabIndex < 0).length;
said.ground = getComputedStyle(document.body).backgroundColor;
const table = document.querySelector("#main .scroll:has(#t-rows) table"), tools = document.querySelector(".tools");
if (table && tools) {
  const rows = () => [...table.querySelectorAll("tbody th[scope=row]")].filter(th => th.offsetParent);
  const names = () => rows().map(th => th.textContent);
  const choose = (label, value) => {
    const of = [...tools.querySelectorAll("label")].find(l => l.textContent.startsWith(label)).querySelector("select");
    of.value = [...of.options].find(o => o.textContent === value).value;
    of.onchange();
  };
  said.before = names();
  [...table.tHead.querySelectorAll("button")].find(b => b.textContent.startsWith("mean")).click();
  said.sorted = names();
  choose("family", "foundation model"); said.sam = names(); said.told = tools.querySelector("output").textContent;
  choose("family", "all"); choose("train TFLOP", "at most 1"); said.cheap = names();
  choose("train TFLOP", "all"); said.all = names();
}
const done = () => parent.postMessage(said, "*");
if (window.axe) axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const where = node => node.html.slice(0, 120) + node.failureSummary;
  said.violations = found.violations.map(v => v.id + ": " + v.nodes.slice(0, 3).map(where).join(" | "));
  done();
}); else done();
"""
LISTEN = "addEventListener('message', e => document.body.append('{' + btoa(JSON.stringify(e.data)) + '}'))"


def axe(root: Path) -> Path | None:
    """axe-core's file, where CI or a developer put it: npm install --no-save --prefix .cache axe-core."""
    path = Path(os.environ.get("DGBENCH_AXE", root / ".cache/node_modules/axe-core/axe.min.js"))
    return path if path.is_file() else None


@pytest.fixture(scope="module")
def kinds(written: Path) -> dict[str, Path]:
    run_page = f"runs/toy-sdg/erm/{site_tables.part('A')}-seed0.html"
    names = {"start": "index.html", "board": "boards/toy-sdg.html", "overview": "overview.html", "run": run_page}
    names |= {"method": "methods/dapsam.html", "methods": "methods/index.html", "data": "data/index.html"}
    return {kind: written / name for kind, name in names.items()} | {"copy": written / "frozen" / DAY / names["board"]}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser_pages_sort_filter_fit_and_axe_finds_nothing(kinds: dict, dark: bool, tmp_path: Path, root: Path):
    """Each kind of page in frames as wide as a desktop and as a phone."""
    judge, frames = axe(root), []
    if judge:
        shutil.copy(judge, tmp_path / "axe.js")
    for kind, path in kinds.items():
        html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
        scripts = ('<script src="axe.js"></script>' if judge else "") + f"<script>{PROBE}</script>"
        (tmp_path / f"{kind}.html").write_text(html.replace("</body>", f"{scripts}</body>"), encoding="utf-8")
        for width in (390, 1280):
            frames.append(f'<iframe src="{kind}.html#{kind}" style="border:0;width:{width}px;height:900px"></iframe>')
    (tmp_path / "frames.html").write_text(f"<script>{LISTEN}</script><body>{''.join(frames)}</body>")
    options = ["--virtual-time-budget=60000", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    elements, complaints = chromium(tmp_path / "frames.html", *options)
    assert complaints == ""
    found = [json.loads(base64.b64decode(said)) for said in re.findall(r"\{([\w+/=]{40,})\}", elements)]
    assert sorted((f["page"], f["width"]) for f in found) == sorted((k, w) for k in kinds for w in (390, 1280))
    for f in found:
        where = f"{f['page']} at {f['width']}"
        assert f["content"] <= f["width"] and not f["wide"], (where, f["wide"])
        assert f["unreachable"] == 0, where
        assert f["ground"] == ("rgb(18, 21, 25)" if dark else "rgb(246, 247, 248)"), where
        assert not f.get("violations"), (where, f["violations"])
        if f["page"] == "board":
            assert f["before"] == ["dapsam[steps=9]", "erm", "sam_box"]
            assert f["sorted"] == f["all"] == ["erm", "dapsam[steps=9]", "sam_box"]
            assert f["sam"] == ["dapsam[steps=9]", "sam_box"] and f["told"] == "2 of 3 rows"
            assert f["cheap"] == ["erm", "sam_box"]
    if judge is None:
        pytest.skip("all but axe: npm install --no-save --prefix .cache axe-core")


def test_a_browser_lets_the_script_of_a_page_run_and_has_nothing_to_complain_of(kinds: dict, tmp_path: Path):
    path = tmp_path / "board.html"
    path.write_bytes(kinds["board"].read_bytes())
    elements, complaints = chromium(path)
    assert complaints == "" and '<button type="button">mean</button>' in elements


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_board_that_cannot_be_made_is_told_and_stops_no_other(tmp_path, monkeypatch, capsys):
    found = Collection(collection(board("toy-sdg", made("erm", 0.6))).boards, (DataError("task x: broken", "mend it"),))
    monkeypatch.setattr("dgbench.scores.collection.collect", lambda places: found)
    monkeypatch.setattr("sys.argv", ["dgbench", "site", "--out", str(tmp_path / "out"), "--date", DAY])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 3
    said = capsys.readouterr()
    assert "task x: broken" in said.err and "mend it" in said.err
    assert (tmp_path / "out/boards/toy-sdg.html").is_file() and "wrote" in said.out
