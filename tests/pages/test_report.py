"""The page: what it says of runs whose numbers are known, that it stands alone, and that it can be used by all."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dgbench import cli
from dgbench.pages import report
from dgbench.plausibility import SWAPPED
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores import domain_shift
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from dgbench.task import Case, Task
from tests.toy_runs import COSTS, run

SDG = PROTOCOLS["sdg"]
HOSTILE = '"><script>alert(1)<b onmouseover=alert(2)>'
CASES = 6
SEEN = {"image_size": 32, "hparams": {"image_size": None, "batch_size": 8}, "fingerprint": "f", "settings": {}}
MACHINE = {"environment": {"device": "cpu", "python": "3.11.7", "packages": {"torch": "2.13.0"}}}


class Squares(Task):
    """Squares on a gray ground; every domain has another one."""

    name = "squares"
    structures = ("square",)
    image_size = 32
    unit = "px"
    intensity = "drawn in [0, 1]"

    def __init__(self, domains: tuple[str, ...] = ("A", "B", "C")):
        super().__init__(None)
        self.domains = domains

    def case_ids(self, domain: str) -> list[str]:
        return [f"{domain}-{i}" for i in range(CASES)]

    def load(self, domain: str, case_id: str) -> Case:
        number, i = self.domains.index(domain), int(case_id.rpartition("-")[2])
        mask = np.zeros((1, 1, 32, 40), bool)
        mask[0, 0, 8 + i : 20 + i, 10:22] = True
        image = np.where(mask, 0.8 - 0.1 * number, 0.2 + 0.05 * number).astype(np.float32)
        return Case(case_id, image, mask, (1.0, 1.0, 1.0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))


def runs(task: Task, skills: dict[str, float], seeds=(0, 1, 2), **record) -> list[RunRecord]:
    """Variants that score `skill` on every target case, give or take, whatever they predict in their pictures."""
    found = []
    data = {d: domain_shift.intensities(task, d).fingerprint[:16] for d in task.domains}
    for v, (variant, skill) in enumerate(skills.items()):
        for source in task.domains:
            for seed in seeds:
                rng = np.random.default_rng([v, seed, task.domains.index(source)])
                scores = {
                    d: {s: rng.uniform(skill - 0.05, skill + 0.05, CASES).tolist() for s in task.structures}
                    for d in task.domains
                }
                told = {"task": task.name, "domains": list(task.domains), "sources": list(task.domains), "data": data}
                told |= {"structures": list(task.structures), "unit": task.unit} | SEEN | MACHINE | record
                r = run(variant, source, scores, seed, **told)
                masks = {
                    (d, c): np.roll(task.load(d, c).mask, 3 + v, axis=-1)
                    for d in task.domains
                    for c in task.case_ids(d)
                }
                vars(r)["_predictions"] = masks
                found.append(r)
    return found


def page_of(task: Task | None, records: list[RunRecord], protocol=SDG) -> str:
    return report.build(task, rank(Study(records, protocol), draws=200))


class Page(HTMLParser):
    """A page as a browser's parser sees it: elements with attributes, their order, and all text."""

    VOID = ("meta", "img", "input", "br", "link", "wbr", "use", "path")

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.within: list[tuple[str, str]] = []  # (the innermost element, text)
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {k: v or "" for k, v in attributes}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, {k: v or "" for k, v in attributes}))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open:
            self.within.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def __contains__(self, words: str) -> bool:
        return words in " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three variants, three seeds, all pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        task = Squares()
        return page_of(task, runs(task, {"good[steps=500]": 0.9, "fair": 0.6, "poor": 0.3}))


BARE = {"good": 0.9, "poor": 0.3}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two variants with two seeds, no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return page_of(None, runs(Squares(), BARE, seeds=(0, 1)))


# --- what it says ----------------------------------------------------------------------------------------------------


def test_scores_stand_against_the_flops_of_training_where_these_were_counted(bare: str):
    costs = dict.fromkeys(COSTS, 1) | {"train_flops": 2e12, "train_step_flops": 1e9, "predict_image_flops": 1e6}
    page = page_of(None, runs(Squares(), {"good": 0.9}, seeds=(0,), costs=costs))
    words = "against the FLOPs of training"
    assert words in page and "train TFLOP" in page
    assert words not in bare and "train TFLOP" not in bare


def test_the_page_leads_with_what_the_statistics_conclude(usual: str):
    page = Page(usual)
    assert "good[steps=500] has the best mean" in page
    assert "worse: fair, poor" in page


def test_worst_cases_come_worst_first_and_each_once(usual: str):
    scores = [float(s) for s in re.findall(r"<strong>Dice ([\d.]+)", usual)]
    assert len(scores) == 3 * report.OF_VARIANT
    for variant in range(3):
        of_variant = scores[variant * report.OF_VARIANT : (variant + 1) * report.OF_VARIANT]
        assert of_variant == sorted(of_variant)
    shown = re.findall(r"</strong><br>(\w) → (\w), (\w-\d), seed", usual)
    assert max(Counter(case for *_, case in shown[: report.OF_VARIANT]).values()) == 1
    assert all(source != target for source, target, _ in shown)


def test_a_missed_structure_is_told_at_its_picture():
    task = Squares()
    records = runs(task, {"erm": 0.8}, seeds=(0, 1))
    rows = records[0].cases
    at = (rows["domain"] == "B") & (rows["case"] == "B-3")
    rows.loc[at, ["dice", "asd", "assd", "hd95", "flag"]] = [0.0, np.inf, np.inf, np.inf, "missed"]
    vars(records[0])["_predictions"]["B", "B-3"] = np.zeros((1, 1, 32, 40), bool)
    page = page_of(task, records)
    assert page.index("Dice 0.00, square missed") < page.index("</figcaption>", page.index('id="worst"'))
    assert "Case B-3 of B: the reference covers 11.2%, the prediction 0.0% of it" in page  # 144 of 1280 pixels


def test_an_odd_mask_is_shown_beside_its_image_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "_draw", lambda figure, alt: report.Drawing(alt, 1, "<svg></svg>", ""))

    class Exchanged(Squares):
        def load(self, domain: str, case_id: str) -> Case:
            case = super().load(domain, case_id)
            return replace(case, mask=~case.mask) if case_id in ("B-0", "B-1") else case

    task = Exchanged()
    page = page_of(task, runs(task, {"erm": 0.8}, seeds=(0,)))
    shown = page[page.index("Masks to look at") : page.index('id="protocol"')]
    assert shown.count('<img src="data:image/jpeg;base64,') == 2
    assert shown.count('alt="Image and mask of case B-0 of B"') == 1
    assert "B/B-1: &#39;square&#39; covers 1136 of 1280 pixels (89%) and 100%" in shown
    assert f"To do: {SWAPPED}" in shown and "lists all" not in shown


def test_pictures_are_capped_however_many_variants_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "PICTURES", 7)
    monkeypatch.setattr(report, "LARGEST_SVG", 10_000)  # and then figures are images too
    task = Squares()
    page = page_of(task, runs(task, {f"v{i}": 0.5 + 0.1 * i for i in range(3)}, seeds=(0,)))
    assert page.count('<div class="overlay">') == 6  # two of each
    assert page.count('<img class="paper" src="data:image/png;base64,') >= 3


def test_without_the_images_the_page_is_made_and_says_so(bare: str):
    page = Page(bare)
    assert "The task's images are not at hand." in page
    assert not page.all("img")
    assert "good has the best mean" in page


def test_runs_of_which_only_the_scores_were_passed_on_stand_in_its_tables_without_pictures():
    task = Squares()
    records = runs(task, {"mine": 0.8, "theirs": 0.6}, seeds=(0, 1))
    for r in records:
        if r.variant == "theirs":
            del vars(r)["_predictions"]
            vars(r)["history"] = pd.DataFrame()
    html = page_of(task, records)
    assert "No pictures of theirs: of these runs only the scores are at hand." in Page(html)
    assert "mine has the best mean" in Page(html)


def test_images_that_changed_since_the_runs_are_not_shown_beside_their_predictions():
    task = Squares()
    records = runs(task, {"erm": 0.8}, seeds=(0,))
    for r in records:
        r.record["data"] = {**r.record["data"], "B": "another"}
    html = page_of(task, records)
    assert "B: its images, or the task's code, changed since these runs." in Page(html)
    assert "→ C," in html and "→ B," not in html[html.index('id="worst"') :]


def test_a_seed_without_all_of_its_sources_is_in_no_number_of_the_page_and_told(bare: str):
    records = runs(Squares(), BARE, seeds=(0, 1, 2))
    extra = next(r for r in records if r.seed == 2)
    page, told = (
        page_of(None, [*(r for r in records if r.seed != 2), extra]),
        f"<li>Seed 2 of {extra.variant} is left out",
    )
    (line,) = [line for line in page.splitlines(keepends=True) if told in line]
    assert page.replace(line, "") == bare


def test_numbers_of_papers_stand_beside_ours_with_a_link():
    names = ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")
    scores = {d: [0.5, 0.6, 0.7] for d in names}
    told = {"task": "prostate", "domains": list(names), "data": dict.fromkeys(names, "x"), **SEEN, **MACHINE}
    records = [run("dapsam", d, scores, **told) for d in names]
    page = Page(page_of(None, records))
    assert "81.31" in page and "https://arxiv.org/abs/2409.12522" in [a.get("href") for a in page.all("a")]
    assert "-21.31" in page  # 60 measured here


def test_the_page_is_a_function_of_the_runs_whatever_their_order(bare: str):
    assert page_of(None, runs(Squares(), BARE, seeds=(0, 1))[::-1]) == bare


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_and_a_method_that_finds_nothing_have_a_page(protocol):
    records = runs(Squares(), {"erm": 0.8, "nothing": 0.2}, seeds=(0,), protocol=protocol.name)
    for r in records:
        if r.variant == "nothing":
            r.cases[["dice", "asd", "assd", "hd95", "flag"]] = [0.0, np.inf, np.inf, np.inf, "missed"]
    assert "nothing" in Page(page_of(None, records, protocol))


def test_the_page_is_written_whole(tmp_path: Path):
    records = runs(Squares(), {"erm": 0.8}, seeds=(0,))
    path = report.write(None, rank(Study(records, SDG), draws=100), tmp_path / "deep" / "sdg")
    assert path == tmp_path / "deep" / "sdg" / "report.html"
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


# --- commands --------------------------------------------------------------------------------------------------------


def commands(html: str) -> list[list[str]]:
    blocks = [text for tag, text in Page(html).within if tag == "pre"]
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_a_row_can_be_made_again_by_the_command_beside_it():
    told = {"method": "erm", "settings": {"steps": "40"}}
    records = runs(Squares(), {"erm[steps=40]": 0.8}, **told)
    for r in records:
        r.record["task"] = "phantom"
        object.__setattr__(r, "task", "phantom")
    (words,) = commands(page_of(None, records))
    assert words == shlex.split("dgbench run --method erm --task phantom --protocol sdg --seed 0,1,2 --set steps=40")
    done = CliRunner().invoke(cli.app, [*words[1:], "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "phantom/sdg/erm[steps=40]/A-seed2" in done.output


def test_a_command_names_sources_checkpoints_and_plugins_and_quotes_them():
    task = Squares(("A;rm -rf x", "B", "C"))
    told = {"method": "mine", "settings": {"note": "a b"}, "checkpoint": "my weights.pth"}
    records = [r for r in runs(task, {"mine": 0.8}, seeds=(3,), **told) if r.source != "B"]
    html = page_of(None, records)
    expected = (
        "dgbench run --method mine --task PATH/TO/squares --protocol sdg --seed 3 --source 'A;rm -rf x' --source C "
    )
    expected += "--set 'note=a b' --checkpoint 'my weights.pth' --plugin mine.py"
    assert commands(html) == [shlex.split(expected)]


def test_a_command_names_the_plugins_of_a_combination_one_by_one():
    """Of erm+mine only `mine` lies in a file of the user's."""
    told = {"method": "erm+mine", "settings": {}}
    (words,) = commands(page_of(None, runs(Squares(), {"erm+mine": 0.8}, **told)))
    assert words[words.index("--method") + 1] == "erm+mine" and words[-2:] == ["--plugin", "mine.py"]
    assert words.count("--plugin") == 1


# --- a page that stands alone and is safe ----------------------------------------------------------------------------


def test_the_page_loads_nothing(usual: str):
    page = Page(usual)
    assert not page.all("link") and not page.all("iframe")
    assert all(a["src"].startswith("data:image/") for _, a in page.elements if "src" in a)
    links = [a["href"] for _, a in page.elements if "href" in a]
    assert links and all(h.startswith(("#", "https://")) for h in links)
    assert "@import" not in usual and not re.findall(r"url\((?!#)", usual)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy


def test_names_that_look_like_markup_are_only_names():
    class Marked(Squares):
        structures = (HOSTILE,)

    task = Marked((HOSTILE, "B", "C"))
    html = page_of(task, runs(task, {HOSTILE: 0.9, "b": 0.5, "c": 0.4}, (0, 1), paper="javascript:alert(3)"))
    page = Page(html)
    assert len(page.all("script")) == 1
    handlers = [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not handlers
    assert not page.all("b")
    assert HOSTILE in page
    assert "javascript:" not in html


# --- for readers with a keyboard, a screen reader, a phone, in the dark ----------------------------------------------


def test_every_picture_and_figure_is_described(usual: str):
    page = Page(usual)
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("img")) == 3 * report.OF_VARIANT
    drawings = [a for _, a in page.elements if a.get("role") == "img"]
    assert len(drawings) == 6 and all(a["aria-label"] for a in drawings)


def test_every_table_has_a_caption_and_its_headers_say_what_they_head(usual: str):
    page = Page(usual)
    assert len(page.all("caption")) == len(page.all("table")) > 10
    assert all(th.get("scope") in ("col", "row", "rowgroup") for th in page.all("th"))


def test_what_scrolls_can_be_reached_by_the_keyboard_and_has_a_name(usual: str):
    page = Page(usual)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    regions = [a for _, a in page.elements if a.get("class") == "scroll"]
    assert len(regions) == len(page.all("table")) + 6
    for region in regions:
        assert region["tabindex"] == "0" and region["role"] == "region"
        assert region.get("aria-label") or region["aria-labelledby"] in ids


def test_headings_are_in_order_ids_are_unique_and_links_arrive(usual: str):
    page = Page(usual)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert max(ids.values()) == 1
    named = [a[key] for _, a in page.elements for key in ("aria-labelledby",) if key in a]
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    assert set(links) | set(named) <= set(ids)
    assert page.elements[[t for t, _ in page.elements].index("body") + 1][1]["href"] == "#main"  # to skip


def test_the_page_says_its_language_and_follows_light_and_dark(usual: str):
    page = Page(usual)
    assert page.all("html") == [{"lang": "en"}]
    assert "squares, protocol sdg" in usual[usual.index("<title>") : usual.index("</title>")]
    assert "prefers-color-scheme: dark" in usual
    assert "width=device-width" in usual


def chromium(page: Path, *options: str) -> tuple[str, str]:
    """(the page's elements after its script ran, what the browser complained about)"""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom", *options]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run([*words, profile, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_a_browser_runs_the_page_without_complaint(usual: str, tmp_path: Path):
    path = tmp_path / "report.html"
    path.write_text(usual, encoding="utf-8")
    elements, complaints = chromium(path)
    assert complaints == ""
    assert '<button type="button">mean</button>' in elements  # the policy let our script run


PROBE = """
document.querySelectorAll("details").forEach(d => d.open = true);
const root = document.documentElement, heads = [...document.querySelectorAll("#leaderboard thead button")];
const names = () => [...document.querySelectorAll("#leaderboard tbody th a")].map(a => a.textContent);
const before = names();
heads.find(b => b.textContent === "mean").click();
const wide = [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll"))
  .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
const sorted = document.querySelector("[aria-sort]").textContent;
parent.postMessage({width: innerWidth, content: root.scrollWidth, wide, before, after: names(), sorted}, "*");
"""


def test_the_page_never_scrolls_sideways_and_its_table_can_be_sorted(usual: str, tmp_path: Path):
    """In frames as wide as a desktop and as a phone: a window has a least width."""
    path, frames = tmp_path / "probe.html", tmp_path / "frames.html"
    unlocked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", usual)
    path.write_text(unlocked.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    listen = "addEventListener('message', e => document.body.append(JSON.stringify(e.data) + '\\n'))"
    frame = '<iframe src="probe.html" style="border:0;width:{}px;height:900px"></iframe>'
    frames.write_text(f"<script>{listen}</script><body>{frame.format(390)}{frame.format(1280)}</body>")
    elements, complaints = chromium(frames, "--virtual-time-budget=8000")
    assert complaints == ""
    found = {f["width"]: f for f in map(json.loads, re.findall(r"\{.*\}", elements[elements.index("<body") :]))}
    assert set(found) == {390, 1280}
    for width, of_width in found.items():
        assert of_width["content"] <= width, of_width["wide"]
        assert of_width["before"] == ["good[steps=500]", "fair", "poor"]
        assert of_width["after"] == ["poor", "fair", "good[steps=500]"]
        assert of_width["sorted"] == "mean"
