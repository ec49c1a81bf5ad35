"""Scores on their way from one collection to another: what is packed, what is refused, what is found in them."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from dgbench import cli
from dgbench.errors import DataError, UsageError
from dgbench.files import read_json, sha256, write_json
from dgbench.pages.submission import markdown
from dgbench.running.records import find_runs, read_run
from dgbench.scores import archives, submission, suspicion
from tests.toy_runs import changed, run

TOLD = {"pretraining": "none", "trials": "one, on the source's validation cases", "targets": "no"}
ERM, MAXSTYLE = "phantom/sdg/erm", "phantom/sdg/maxstyle"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Real runs: those of `erm` and `maxstyle` that come with dgbench, three seeds of every source."""
    folder = tmp_path_factory.mktemp("results")
    with tarfile.open(root / "results/scores-phantom.tar.xz") as archive:
        chosen = [m for m in archive if m.name.startswith((f"{ERM}/", f"{MAXSTYLE}/"))]
        archive.extractall(folder, chosen, filter="data")
    return folder


@pytest.fixture
def results(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / ERM, tmp_path / "results" / ERM)
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def anna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "private_words", lambda: ["anna-laptop", "anna"])
    monkeypatch.setattr(submission, "brought_of", lambda task: [])  # her runs are those that come with dgbench


def alter(folder: Path, cases: pd.DataFrame | None = None, **record: object) -> None:
    """Change a run and give it the checksums of what lies there then, as a forger would."""
    told, result = read_json(folder / "run.json"), read_json(folder / "RESULT.json")
    assert told and result
    write_json(folder / "run.json", told | record)
    if cases is not None:
        cases.to_csv(folder / "cases.csv", index=False)
    result["files"] |= {name: sha256(folder / name) for name in ("run.json", "cases.csv")}
    write_json(folder / "RESULT.json", result)


def pack(results: Path, to: Path, **told: str) -> submission.Packed:
    return submission.pack(results, "phantom", "doe", TOLD | told, to)


# --- packing ---------------------------------------------------------------------------------------------------------


def test_a_submission_holds_records_scores_and_checksums_and_is_the_same_bytes_again(results, tmp_path):
    packed = pack(results, tmp_path)
    path = packed.write()
    assert path.name == "scores-phantom-doe.tar.xz" and packed.verdicts == (("sdg", "erm", ""),)
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert {Path(m.name).name for m in members} == {"run.json", "cases.csv", "RESULT.json"}
        assert len(members) == 3 * 12
        assert {(m.uname, m.uid, m.mtime) for m in members} == {("", 0, 0)}
        told = json.load(archive.extractfile(f"{ERM}/A-seed0/run.json"))  # type: ignore[arg-type]
    assert told["submission"] == {"name": "doe", **TOLD}
    assert packed.write().read_bytes() == archives.archive(pack(results, tmp_path).members)
    with pytest.raises(UsageError, match="another submission is there"):
        pack(results, tmp_path, trials="three").write()


def test_paths_and_names_of_the_machine_and_its_user_are_taken_out(results, tmp_path):
    first = results / ERM / "A-seed0"
    told = read_json(first / "run.json") or {}
    settings = {"initialisation": "/home/anna/weights/best.pth", "note": r"C:\Users\anna\x.pth", "rate": 1e-3}
    environment = told["environment"] | {"hardware": "Anna-Laptop with 4 cores, see https://example.org/a/b"}
    alter(first, settings=settings, environment=environment)
    packed = pack(results, tmp_path)
    text = packed.members[f"{ERM}/A-seed0/run.json"].decode()
    assert "anna" not in text.casefold() and "/home" not in text and "Users" not in text
    cleaned = json.loads(text)
    assert cleaned["settings"] == {"initialisation": "best.pth", "note": "x.pth", "rate": 1e-3}
    assert cleaned["environment"]["hardware"] == "... with 4 cores, see https://example.org/a/b"
    assert "/home/anna/weights/best.pth -> best.pth (settings)" in packed.removed and len(packed.removed) == 3
    packed.write()
    assert submission.review([packed.path]).problems == [], "its checksums are those of what was cleaned"


def test_what_is_named_after_its_user_is_not_packed(results, tmp_path):
    (results / ERM).rename(results / "phantom/sdg/erm[initialisation=_home_anna_w.pth]")
    for folder in find_runs(results):
        alter(folder, variant="erm[initialisation=_home_anna_w.pth]")
    with pytest.raises(UsageError, match="is named after this machine or its user: 'anna'"):
        pack(results, tmp_path)


@pytest.mark.parametrize(
    ("told", "missing"),
    [({"trials": " "}, "trials"), ({"targets": "perhaps"}, "targets"), ({"targets": ""}, "targets")],
)
def test_every_question_has_an_answer(results, tmp_path, told, missing):
    with pytest.raises(UsageError, match=f"not disclosed: {missing}"):
        pack(results, tmp_path, **told)
    (tmp_path / "answers.toml").write_text('trails = "one"')
    with pytest.raises(UsageError, match="unknown key"):
        submission.disclosure(tmp_path / "answers.toml")


def test_who_looked_at_the_targets_is_shown_and_not_ranked(results, tmp_path):
    packed = pack(results, tmp_path, targets="yes: the best of 20 settings on them")
    assert packed.verdicts == (("sdg", "erm", "its makers looked at the targets"),)


def test_runs_that_come_with_dgbench_are_not_ranked_again(results, tmp_path, monkeypatch):
    """Who unpacks them beside runs of their own, as results/README.md says, passes on their own."""
    monkeypatch.setattr(submission, "brought_of", archives.brought_of)
    assert pack(results, tmp_path).verdicts == (("sdg", "erm", "its runs come with dgbench"),)
    told = read_json(results / ERM / "A-seed0" / "RESULT.json") or {}
    write_json(results / ERM / "A-seed0" / "RESULT.json", told | {"fingerprint": "of a run made anew"})
    assert pack(results, tmp_path).verdicts == (("sdg", "erm", ""),)


def test_scores_on_drawn_images_are_refused_as_they_are_packed_and_as_they_are_reviewed(results, tmp_path):
    (results / "phantom").rename(results / "mock-prostate")
    for folder in find_runs(results):
        alter(folder, task="mock-prostate")
    with pytest.raises(UsageError, match="task mock-prostate is of drawn images") as told:
        submission.pack(results, "mock-prostate", "doe", TOLD, tmp_path)
    assert told.value.remedy == "run prostate on its real images, without --mock"
    problems = submission.review([pack_without_reading(results, tmp_path)]).problems
    assert len([p for p in problems if "task mock-prostate is of drawn images" in p]) == 1


# --- looking at it ---------------------------------------------------------------------------------------------------


def test_what_the_board_has_already_is_pointed_out(results, tmp_path):
    found = submission.review([pack(results, tmp_path).write()], [results])
    assert not found.problems and found.doubts == ["erm: the board has its runs already"]


def test_what_a_submission_changes_on_the_board_is_shown_as_markdown(whole, results, tmp_path):
    shutil.copytree(whole / MAXSTYLE, tmp_path / "mine" / MAXSTYLE)
    path = pack(tmp_path / "mine", tmp_path).write()
    found = submission.review([path], [results])
    text = markdown(found)
    assert text.startswith("## scores-phantom-doe.tar.xz\n\n**No problem was found.**")
    assert "| how many settings were tried" in text and "| one, on the source's validation cases |" in text
    (maxstyle,) = (line for line in text.splitlines() if line.startswith("| maxstyle"))
    assert [c.strip() for c in maxstyle.split("|")[2:]][::2] == ["", "", "new"] and "42.4" in maxstyle
    assert any(line.startswith("| erm | 1 |") for line in text.splitlines())


def test_a_forger_is_found(results, tmp_path):
    """Each of these has the right checksums, and contradicts itself or another run."""
    runs = {(s, n): results / ERM / f"{s}-seed{n}" for s in "ABCD" for n in range(3)}
    cases = {key: pd.read_csv(folder / "cases.csv", keep_default_na=False) for key, folder in runs.items()}
    better = cases["A", 0].copy()
    found = better["flag"] == ""
    better.loc[found, "dice"] = (better.loc[found, "dice"] * 1.01).clip(upper=0.999)
    alter(runs["A", 0], better)
    alter(runs["B", 1], cases["B", 0])
    alter(runs["C", 2], cases["C", 2].assign(n_reference=cases["C", 2]["n_reference"] + 1))
    (runs["D", 0] / "cases.csv").write_text("role\n")
    problems = "\n".join(submission.review([pack_without_reading(results, tmp_path)]).problems)
    for words in (
        "erm/A-seed0: Dice is of no whole number of shared voxels",
        "the same scores to the last digit for several seeds: erm/B-seed0, erm/B-seed1",
        "erm/C-seed2: another reference mask than other runs of",
        "D-seed0: cases.csv missing or changed since the run ended",
        "not disclosed: pretraining",
    ):
        assert words in problems, problems


def pack_without_reading(results: Path, to: Path) -> Path:
    members = {p.relative_to(results).as_posix(): p.read_bytes() for p in results.rglob("*") if p.is_file()}
    path = to / "scores.tar.xz"
    path.write_bytes(archives.archive(members))
    return path


def toy(dice: float, **columns: float):
    made = run("mine", "A", {"A": [0.9], "B": [0.8, dice]})
    return changed(made, cases=made.cases.assign(**{k: [1.0, 1.0, v] for k, v in columns.items()}))


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (toy(0.8, asd=1.0), ""),
        (toy(0.777), "no whole number of shared voxels"),
        (toy(0.8, hd95=101.0), "longer than the image's diagonal"),
        (toy(1.0, asd=0.1, assd=0.1, hd95=0.1), "Dice is 1, and yet the surfaces lie apart"),
        (toy(0.0, asd=0.0), "Dice is 0, and yet the surfaces meet"),
        (toy(0.8, assd=20.0, hd95=2.0), "ASSD is longer than its HD95 allows"),
    ],
)
def test_scores_that_no_measurement_gives(made, why):
    told = list(suspicion.impossible(made))
    assert (len(told) == 1 and why in told[0] and "B/B-1 prostate" in told[0]) if why else not told


def test_what_was_measured_raises_no_suspicion_and_what_trains_nothing_may_be_the_same_for_every_seed(whole):
    runs = [read_run(folder) for folder in find_runs(whole)]
    assert [said for r in runs for said in (*suspicion.impossible(r), *suspicion.unlikely(r))] == []
    assert suspicion.repeated(runs) == ([], []) and suspicion.references(runs) == []
    twins = [run("mine", "A", {"B": [0.8]}, seed=s) for s in (0, 1)]
    assert len(suspicion.repeated(twins)[0]) == 1
    untrained = twins[0].record["costs"] | {"trained": 0}
    assert suspicion.repeated([run("mine", "A", {"B": [0.8]}, s, costs=untrained) for s in (0, 1)]) == ([], [])
    other = run("yours", "A", {"B": [0.8]})
    problems, (doubt,) = suspicion.repeated([twins[0], other])
    assert not problems and "under several names: mine/A-seed0, yours/A-seed0" in doubt
    assert list(suspicion.unlikely(toy(0.96, asd=11.0, assd=11.0, hd95=12.0)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../run.json", tarfile.REGTYPE),
        ("a/b/c/d-seed0/weights.pth", tarfile.REGTYPE),
        ("/a/b/c/d-seed0/run.json", tarfile.REGTYPE),
        ("a/../c/d-seed0/run.json", tarfile.REGTYPE),
        ("a/b/c/d-seed0/run.json", tarfile.SYMTYPE),
    ],
)
def test_an_archive_with_anything_else_is_no_submission(name, kind, tmp_path):
    with tarfile.open(tmp_path / "x.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, 2 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
        archive.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(DataError, match="is no submission"):
        submission.review([tmp_path / "x.tar.xz"])


def test_a_small_archive_that_becomes_large_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST", 1 << 20)
    (tmp_path / "x.tar.xz").write_bytes(archives.archive({"a/b/c/d-seed0/cases.csv": b"0" * (2 << 20)}))
    with pytest.raises(DataError, match="more than 1 MiB"):
        archives.members_of(tmp_path / "x.tar.xz")
    (tmp_path / "y.tar.xz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="is no submission"):
        archives.members_of(tmp_path / "y.tar.xz")


# --- joining ---------------------------------------------------------------------------------------------------------


def test_collections_are_joined_and_a_run_that_both_have_is_taken_once(whole, results, tmp_path):
    """The packed copy of a run is the same run; the one with more files is kept."""
    path = pack(results, tmp_path).write()
    (results / ERM / "A-seed0" / "history.jsonl").touch()
    result = read_json(results / ERM / "A-seed0" / "RESULT.json") or {}
    write_json(results / ERM / "A-seed0" / "RESULT.json", result)
    new = submission.merge([path, results, whole], tmp_path / "all")
    assert len(new) == 24 == len(find_runs(tmp_path / "all"))
    assert (tmp_path / "all" / ERM / "A-seed0" / "history.jsonl").exists()
    assert not (tmp_path / "all" / ERM / "B-seed0" / "history.jsonl").exists()
    assert submission.merge([results, whole], tmp_path / "all") == [] and not list(tmp_path.glob("all/**/.merging*"))


def test_runs_of_one_name_with_other_scores_are_named_and_nothing_is_written(whole, results, tmp_path):
    cases = pd.read_csv(results / ERM / "B-seed1" / "cases.csv", keep_default_na=False)
    alter(results / ERM / "B-seed1", cases.assign(dice=0.5))
    with pytest.raises(DataError, match=f"1 runs are in conflict(.|\n)*{ERM}/B-seed1: other scores in") as told:
        submission.merge([whole, results], tmp_path / "all")
    assert str(whole) in told.value.cause and str(results) in told.value.cause and not (tmp_path / "all").exists()
    submission.merge([results], tmp_path / "all")
    before = {p: p.read_bytes() for p in (tmp_path / "all").rglob("*") if p.is_file()}
    with pytest.raises(DataError, match="in conflict"):
        submission.merge([whole], tmp_path / "all")
    assert before == {p: p.read_bytes() for p in (tmp_path / "all").rglob("*") if p.is_file()}


# --- the commands ----------------------------------------------------------------------------------------------------


def dgbench(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["dgbench", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_commands_show_before_they_write_and_end_in_an_exit_code(results, tmp_path, monkeypatch, capsys):
    submit = ["submit", results, "--task", "phantom", "--to", tmp_path, "--name", "doe"]
    (tmp_path / "answers.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in TOLD.items()))
    assert dgbench(monkeypatch, *submit, "--disclose", "targets=no") == 2
    assert "not disclosed: pretraining" in capsys.readouterr().err
    submit += ["--disclosure", tmp_path / "answers.toml"]
    assert dgbench(monkeypatch, *submit) == 2 and not list(tmp_path.glob("*.xz"))
    shown = capsys.readouterr().out
    assert f"{ERM}/A-seed0/cases.csv" in shown and "sdg: erm will be ranked" in shown
    assert dgbench(monkeypatch, *submit, "--yes") == 0
    path = tmp_path / "scores-phantom-doe.tar.xz"
    assert dgbench(monkeypatch, "merge", path, results, "--to", tmp_path / "all") == 0
    assert "wrote 12 runs" in capsys.readouterr().out
    (tmp_path / "bad.tar.xz").write_bytes(archives.archive({"a/b/c/d-seed0/run.json": b"{"}))
    assert dgbench(monkeypatch, "review", tmp_path / "bad.tar.xz") == 3
    assert "cannot be taken so" in capsys.readouterr().out
