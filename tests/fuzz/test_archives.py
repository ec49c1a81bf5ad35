"""Archives that anybody may have made, of scores and of images: all that is in them, where it belongs, or nothing."""

import io
import json
import lzma
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dgbench.images.fetch import unpack
from dgbench.pages.submission import markdown
from dgbench.scores import archives, submission
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs
from tests.fuzz.test_results import JSON, RUNS, Mishap, sealed, whole

SCORES = ("run.json", "cases.csv", "RESULT.json")
TOLD = {"name": "doe", "pretraining": "none", "trials": "one", "targets": "no"}


def submitted() -> dict[str, bytes]:
    """The scores of six runs, as they are passed on."""
    files, members = whole()[0], dict[str, bytes]()
    for run in RUNS:
        record = json.loads(files[f"{run}/run.json"]) | {"submission": TOLD}
        contents = {"run.json": json.dumps(record).encode(), "cases.csv": files[f"{run}/cases.csv"]}
        members |= {f"{run}/{n}": c for n, c in (contents | {"RESULT.json": sealed(contents)}).items()}
    return members


class Member(NamedTuple):
    """Of an archive. kind: as tar calls it."""

    name: str
    content: bytes
    kind: bytes = tarfile.REGTYPE

    def tar(self) -> tarfile.TarInfo:
        """Its header."""
        info = tarfile.TarInfo(self.name)
        info.type, info.size = self.kind, len(self.content) if self.kind == tarfile.REGTYPE else 0
        info.linkname = "/etc/hostname" if self.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        return info


def tarred(members: list[Member], how: str = "w:xz") -> bytes:
    content = io.BytesIO()
    options = {"preset": 0} if how == "w:xz" else {}
    with tarfile.open(fileobj=content, mode=how, format=tarfile.PAX_FORMAT, **options) as archive:  # type: ignore[call-overload]
        for member in members:
            archive.addfile(member.tar(), io.BytesIO(member.content))
    return content.getvalue()


def zipped(members: list[Member]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in (m for m in members if encodable(m.name, "strict")):
            info = zipfile.ZipInfo(member.name)
            info.external_attr = (stat.S_IFLNK if member.kind == tarfile.SYMTYPE else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, member.content)
    return content.getvalue()


PARTS = st.one_of(
    st.sampled_from([
        "a", "b", "x.png", "..", ".", "", "~", "C:", "c:\\x", "\\", "a\\b", "-rf", ".hidden", "nul", "é", "\u202e",
        "\x1b[2J", "\n", "\0", "\udcff", "a" * 300, "run.json", "A-seed0", "__MACOSX", ".DS_Store",
    ]),
    st.text(max_size=4),
)  # fmt: skip
PATHS = st.one_of(
    st.lists(PARTS, min_size=1, max_size=5).map("/".join),
    st.tuples(PARTS, PARTS, PARTS, PARTS, st.sampled_from(SCORES)).map(
        lambda p: f"{p[0]}/{p[1]}/{p[2]}/{p[3]}-seed0/{p[4]}"
    ),
)
TYPES = st.sampled_from([
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE, b"9",
])  # fmt: skip


def encodable(name: str, errors: str = "surrogateescape") -> bool:
    """Can an archive hold it?"""
    try:
        name.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


ABSURD = st.builds(Member, PATHS.filter(encodable), st.sampled_from([b"", b"{}", b"\xff"]), TYPES)
# What a run says of itself, with the right checksums: by key of run.json or RESULT.json.
LIES = st.tuples(
    st.sampled_from(["run.json", "RESULT.json"]),
    st.sampled_from([
        "submission", "files", "fingerprint", "schema", "cases", "task", "protocol", "variant", "source", "seed",
        "data", "structures", "domains", "targets", "hparams", "costs", "needs", "initialisation", "stated", "origin",
        "fold", "paired", "excluded", "further_metrics", "scored_in", "trained_on", "checkpoint", "collections",
        "environment",
    ]),
    st.one_of(JSON, st.dictionaries(st.sampled_from([*TOLD, *SCORES[:2], "../../x", "/etc/hostname", "x"]), JSON)),
)  # fmt: skip


def told_otherwise(members: dict[str, bytes], run: str, lie: tuple[str, str, Any]) -> None:
    file, key, value = lie
    told = json.loads(members[f"{run}/{file}"])
    told[key] = value
    members[f"{run}/{file}"] = json.dumps(told).encode()
    if file == "run.json":
        contents = {name: members[f"{run}/{name}"] for name in SCORES[:2]}
        members[f"{run}/RESULT.json"] = sealed(contents)


HURT = st.builds(
    Mishap, st.sampled_from([f"{run}/{name}" for run in RUNS for name in SCORES]),
    st.one_of(DAMAGE, st.sampled_from(["gone", "json"])), JSON,
)  # fmt: skip


@inputs(20)
@given(
    st.lists(HURT, max_size=1),
    st.lists(st.tuples(st.sampled_from(RUNS), LIES), max_size=2),
    st.lists(ABSURD, max_size=1),
)
@example([], [(RUNS[0], ("RESULT.json", "files", {"/etc/hostname": ""}))], [])
@example([], [(RUNS[0], ("RESULT.json", "files", [1]))], [])
@example([], [(RUNS[0], ("RESULT.json", "fingerprint", [1]))], [])
@example([], [], [Member("a/a/a/\udcff-seed0/run.json", b"")])
@example([], [], [Member("a/a/a/\0-seed0/run.json", b"")])
def test_a_submission_is_taken_as_it_is_or_what_is_wrong_is_told(hurt: list, lies: list, absurd: list):
    """Reviewed and joined: no file but those of its runs, nothing from outside of it."""
    members = submitted()
    for run, lie in lies:
        told_otherwise(members, run, lie)
    for mishap in hurt:
        mishap.happen(members)
    with folder() as box:
        path = box.path / "scores-toy-doe.tar.xz"
        path.write_bytes(tarred([*(Member(name, content) for name, content in members.items()), *absurd]))
        review = answer(lambda: submission.review([path]), box)
        if isinstance(review, submission.Review):
            assert isinstance(answer(lambda: markdown(review).encode()), bytes)
            assert review.problems or not hurt or members == submitted()
            if members == submitted() and not review.problems:
                assert [len(effect.after.every) for effect in review.effects] == [2]
        results = box.path / box.written
        merged = answer(lambda: submission.merge([path], results), box)
        written = {str(p.relative_to(results)): p.read_bytes() for p in results.rglob("*") if p.is_file()}
        assert (
            not written
            if isinstance(merged, Refusal)
            else {p.parent for p in map(Path, written)} == {p.relative_to(results) for p in merged}
        )
        held = members | {member.name: member.content for member in absurd}
        assert all(held.get(name) == content for name, content in written.items())


@inputs(10)
@given(DAMAGE, st.booleans())
@example(Damage("cut", 0.7109375), False)
def test_a_damaged_submission_holds_what_it_held_or_is_refused(damage: Damage, inside: bool):
    """xz has a checksum; what is damaged before it is packed has none."""
    plain = tarred([Member(name, content) for name, content in submitted().items()], "w")
    content = lzma.compress(damage.of(plain), preset=0) if inside else damage.of(lzma.compress(plain, preset=0))
    with folder() as box:
        path = box.path / "scores-toy-doe.tar.xz"
        path.write_bytes(content)
        found = answer(lambda: archives.members_of(path), box)
        assert isinstance(found, Refusal) or inside or found == submitted()
        assert isinstance(answer(lambda: submission.review([path]), box), Refusal | submission.Review)


def held(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@inputs(25)
@given(
    st.lists(ABSURD, max_size=4),
    st.sampled_from(["zip", "w", "w:gz", "w:xz"]),
    st.sampled_from(["", "*", "a"]),
    DAMAGE,
    st.booleans(),
)
@example([Member("a", b""), Member("a/a", b"")], "zip", "", Damage("cut"), False)
@example([Member("\0", b"")], "zip", "", Damage("cut"), False)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile, as it writes them
def test_an_archive_of_images_is_unpacked_whole_and_inside_or_not_at_all(members, how, inside, damage, hurt):
    content = zipped(members) if how == "zip" else tarred(members, how)
    with folder() as box:
        archive, to = box.path / "images.zip", box.path / box.written / "images"
        archive.write_bytes(damage.of(content) if hurt else content)
        (box.path / "beside").write_bytes(b"mine")
        names = answer(lambda: unpack(archive, to, inside), box)
        assert {p.name for p in (box.path / box.written).iterdir()} <= {"images"}
        written = [p for p in to.rglob("*") if not p.is_dir()]
        assert not any(p.is_symlink() for p in written)
        if isinstance(names, Refusal):
            assert not written
        elif hurt and how in ("w:gz", "w:xz"):  # which have a checksum
            archive.write_bytes(content)
            whole = box.path / box.written / "whole"
            assert not isinstance(answer(lambda: unpack(archive, whole, inside)), Refusal)
            assert held(whole) == held(to)
        elif not hurt:
            assert sorted(p.name for p in to.iterdir()) == names
            assert {p.read_bytes() for p in written} <= {m.content for m in members}
