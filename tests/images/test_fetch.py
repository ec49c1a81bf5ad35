"""A task's data are fetched whole, the published ones, into their layout, or it is said why not and nothing is left."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dgbench import cli
from dgbench.datasets.nuclei import Nuclei
from dgbench.errors import DataError
from dgbench.files import lock, make_folder, sha256
from dgbench.images import fetch as fetching
from dgbench.images.fetch import NOTED, Download, fetch, unpack
from dgbench.images.find_task import get_task
from dgbench.images.mock import Sketch
from tests.failures.child import in_a_child, small_disk

NOISE = np.random.default_rng(0).bytes(3 << 19)  # 1.5 MiB, which no compression makes smaller


def zipped(**files: bytes) -> bytes:
    """`a__b` is a/b in the archive."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(re.sub("(?<=[a-z0-9])__", "/", name), content)
    return held.getvalue()


class Server(BaseHTTPRequestHandler):
    """Serves `files`, whole or from where the client asks; after `limit` bytes it hangs up, once."""

    files: dict[str, bytes]
    asked: list[tuple[str, str | None]]
    limit: int | None = None
    kind = "application/zip"
    version = '"1"'

    def do_GET(self) -> None:
        wanted, content = self.headers["Range"], self.files.get(self.path)
        self.asked.append((self.path, wanted))
        if content is None:
            return self.send_error(404)
        same = self.headers["If-Range"] in (None, self.version)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and same else 0
        self.send_response(206 if start else 200)
        for name, value in (
            ("Content-Length", len(content) - start),
            ("Content-Type", self.kind),
            ("ETag", self.version),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        limit, type(self).limit = self.limit, None
        self.wfile.write(content[start:][:limit])

    def log_message(self, *arguments: object) -> None:
        """Nothing: the test's output is no place for a log."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {"asked": [], "files": {}})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        handler.url = f"http://127.0.0.1:{running.server_port}/"
        yield handler
        running.shutdown()


@pytest.fixture
def release(server: type[Server]) -> Download:
    """An archive whose files lie in a folder of its own, as those of a commit do."""
    server.files["/set.zip"] = zipped(set_1__images__a=b"A", set_1__images__b=NOISE, set_1__readme=b"R", other=b"O")
    return Download(f"{server.url}set.zip", "set.zip", unpack_to="images", inside="set_1/images")


def lying(folder: Path) -> dict[str, int]:
    """The files, hidden ones but the lock too, with their sizes."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in found if p.name != NOTED}


LAID_OUT = {"images/a": 1, "images/b": len(NOISE)}


def test_what_is_asked_for_comes_into_its_layout_and_not_a_second_time(server, release, tmp_path):
    told: list[tuple[str, int, int | None]] = []
    assert fetch([release], tmp_path, lambda *news: told.append(news)) == ["set.zip"]
    assert lying(tmp_path) == LAID_OUT, "the archive is gone, and so is the rest of it"
    assert [what for what, *_ in told if what.startswith("fetching")] and told[-1][0] == "unpacking set.zip"
    assert fetch([release], tmp_path) == [] and len(server.asked) == 1
    (tmp_path / "images" / "a").unlink()
    assert fetch([release], tmp_path) == ["set.zip"], "what was deleted is fetched again"


def test_a_file_that_is_no_archive_is_kept_under_its_name(server, tmp_path):
    server.files["/list.csv"] = b"case\n"
    fetch([Download(f"{server.url}list.csv", "cases.csv", hashlib.sha256(b"case\n").hexdigest())], tmp_path)
    assert lying(tmp_path) == {"cases.csv": 5}


def test_what_was_cut_continues_and_what_was_replaced_meanwhile_begins_anew(server, release, tmp_path):
    server.limit = 400_000
    with pytest.raises(DataError, match=r"ended after 400,000 of 1,5\d\d,\d\d\d bytes\nrun this again"):
        fetch([release], tmp_path)
    assert lying(tmp_path)["set.zip.part"] == 400_000
    fetch([release], tmp_path)
    assert server.asked[-1] == ("/set.zip", "bytes=400000-") and lying(tmp_path) == LAID_OUT
    (tmp_path / NOTED).unlink()
    server.limit = 400_000
    with pytest.raises(DataError):
        fetch([release], tmp_path)
    server.version, server.files["/set.zip"] = '"2"', zipped(set_1__images__c=b"C")
    fetch([release], tmp_path)
    assert lying(tmp_path) == {**LAID_OUT, "images/c": 1}


def test_another_file_than_the_published_one_takes_no_place(server, release, tmp_path):
    stated = Download(release.url, release.file, "0" * 64, unpack_to="")
    with pytest.raises(DataError, match=r"is not the published set\.zip: its sha256 is [0-9a-f]{64}, not 0000"):
        fetch([stated], tmp_path)
    assert lying(tmp_path) == {}


def test_a_checksum_that_nobody_states_is_that_of_the_first_time(server, release, tmp_path):
    fetch([release], tmp_path)
    assert sha256(tmp_path / "images" / "b") == hashlib.sha256(NOISE).hexdigest()
    (tmp_path / "images" / "a").unlink()
    server.files["/set.zip"] = zipped(set_1__images__a=b"another")
    with pytest.raises(DataError, match="is another file than when it was fetched first") as error:
        fetch([release], tmp_path)
    assert str(tmp_path / NOTED) in error.value.remedy and lying(tmp_path) == {"images/b": len(NOISE)}


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_taken_for_the_file_whatever_it_calls_itself(server, release, tmp_path, kind):
    server.kind, server.files["/set.zip"] = kind, b"\n<!DOCTYPE html><html>Please log in"
    with pytest.raises(DataError, match="a web page") as error:
        fetch([release], tmp_path)
    assert f"download {release.url} by hand as {tmp_path / 'set.zip'}" in error.value.remedy
    assert lying(tmp_path) == {}


def test_a_file_that_was_downloaded_by_hand_is_used(server, release, tmp_path):
    (tmp_path / "set.zip").write_bytes(server.files["/set.zip"])
    fetch([release], tmp_path)
    assert lying(tmp_path) == LAID_OUT and server.asked == []


def test_a_file_of_somebody_s_own_that_is_another_is_refused_and_not_deleted(server, release, tmp_path):
    mine = tmp_path / "set.zip"
    mine.write_bytes(b"hours of downloading, of another version")
    with pytest.raises(DataError, match=r"cannot be unpacked: file could not be opened successfully\n[^\n]*$"):
        fetch([release], tmp_path)
    with pytest.raises(DataError, match=r"is not the published set\.zip") as error:
        fetch([Download(release.url, release.file, "0" * 64, unpack_to="")], tmp_path)
    assert error.value.remedy.startswith(f"move {mine} away") and mine.read_bytes().endswith(b"version")


@pytest.mark.parametrize("cause", ["404: Not Found", "Connection refused"])
def test_what_cannot_be_had_is_told_with_how_to_get_it_by_hand(server, tmp_path, cause):
    url = f"{server.url}no.zip" if "404" in cause else "http://127.0.0.1:9/no.zip"
    with pytest.raises(DataError, match=cause) as error:
        fetch([Download(url, "no.zip", unpack_to="")], tmp_path)
    assert error.value.remedy == f"download {url} by hand as {tmp_path / 'no.zip'} and unpack it into {tmp_path}"


def test_two_processes_do_not_fetch_into_one_folder(server, release, tmp_path):
    with lock(make_folder(tmp_path)), pytest.raises(DataError, match="another process"):
        fetch([release], tmp_path)
    assert server.asked == []


def on_a_small_disk(folder: Path, url: str) -> tuple[str, int, dict[str, int]] | None:
    try:
        small_disk(folder, "1m")
    except OSError:
        return None
    try:
        fetch([Download(url, "set.zip", unpack_to="")], folder)
    except DataError as error:
        return error.cause, error.exit_code, lying(folder)
    raise AssertionError


def test_a_disk_without_room_is_told_before_it_is_filled(server, release, tmp_path):
    told, _ = in_a_child(on_a_small_disk, tmp_path / "disk", release.url)
    if told is None:
        pytest.skip("no process may mount a small disk here")
    cause, code, held = told
    assert code == 3 and re.search(r"disk has [\d,]+ bytes free, and set\.zip\.part needs 1,5", cause), cause
    assert held == {}


def test_the_command_shows_the_licence_asks_and_lays_the_files_as_the_task_reads_them(server, tmp_path, monkeypatch):
    """The release of nuclei, drawn, as GitHub packs a commit."""
    monkeypatch.chdir(tmp_path)
    (one,) = Nuclei.sources_of_data
    Nuclei().mock(tmp_path / "drawn", Sketch())
    names = {p.relative_to(tmp_path / "drawn").as_posix(): p.read_bytes() for p in (tmp_path / "drawn").rglob("*.png")}
    top = one.inside.partition("/")[0]
    server.files["/release.zip"] = zipped(**{f"{top}/{name}": content for name, content in names.items()})
    monkeypatch.setattr(Nuclei, "sources_of_data", (replace(one, url=f"{server.url}release.zip"),))
    run = CliRunner().invoke
    refused = run(cli.app, ["data", "fetch", "nuclei"])
    assert "licence: CC0" in refused.output and "--accept-licence" in refused.exception.remedy and not server.asked
    done = run(cli.app, ["data", "fetch", "nuclei", "--accept-licence"])
    assert done.exit_code == 0 and "here nuclei: data/nuclei" in done.output, done.output
    assert lying(tmp_path / "data" / "nuclei") == {name: len(content) for name, content in names.items()}
    assert get_task("nuclei").load("fluo_256", get_task("nuclei").case_ids("fluo_256")[0]).mask.any()
    again = run(cli.app, ["data", "fetch", "nuclei"])
    assert again.exit_code == 0 and len(server.asked) == 1, "what is here needs no licence to be agreed to"


def test_where_it_cannot_be_fetched_the_steps_are_told_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli.app, ["data", "fetch", "prostate"])
    assert told.exit_code == 3 and "1. " in told.output and "https://liuquande.github.io/SAML" in told.output
    assert "task 'prostate' has no data" in told.output


# --- archives --------------------------------------------------------------------------------------------------------


def tarred(folder: Path, name: str, **members: tarfile.TarInfo | bytes) -> Path:
    with tarfile.open(folder / name, "w:gz") as archive:
        for member, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(member.replace("__", "/"))
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / name


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "..\\out", "C:\\out"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_leads_out_of_the_folder_is_refused_and_nothing_is_unpacked(tmp_path, name, kind):
    archive, into = tmp_path / "x", tmp_path / "deep" / "data"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("good", b"1")
            written.writestr(name, b"2")
    else:
        tarred(tmp_path, "x", good=b"1", bad=tarfile.TarInfo(name))
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack(archive, into)
    assert lying(tmp_path) == {"x": archive.stat().st_size} and not Path("/tmp/out").exists()


def test_links_and_devices_are_left_out(tmp_path):
    link, pipe = tarfile.TarInfo("link"), tarfile.TarInfo("pipe")
    link.type, link.linkname, pipe.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.FIFOTYPE
    assert unpack(tarred(tmp_path, "x.tgz", link=link, pipe=pipe, file=b"1"), tmp_path / "tar") == ["file"]
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
        archive.writestr("file", b"1")
    assert unpack(tmp_path / "x.zip", tmp_path / "zip") == ["file"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_is_refused_by_what_it_says_and_by_what_comes_out(tmp_path, monkeypatch, declared):
    monkeypatch.setattr(fetching, "ALLOWANCE", 1000)
    (tmp_path / "x.zip").write_bytes(zipped(bomb=bytes(4 << 20)))
    if not declared:  # it says that it holds a byte
        members = fetching._members
        monkeypatch.setattr(fetching, "_members", lambda a: (fetching._Member(m.name, 1, m.open) for m in members(a)))
    with pytest.raises(DataError, match="made to fill the disk"):
        unpack(tmp_path / "x.zip", tmp_path / "into")
    assert lying(tmp_path / "into") == {}


def test_what_is_no_archive_or_a_damaged_one_changes_nothing(tmp_path):
    whole = zipped(a=NOISE)
    for content in (b"no archive", whole[: len(whole) // 2], whole[:5000] + b"!" + whole[5001:]):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match=r"x cannot be unpacked(?s:.*)fetch it again"):
            unpack(tmp_path / "x", tmp_path / "into")
        assert lying(tmp_path / "into") == {}


def test_one_folder_around_all_is_left_out_and_litter_too(tmp_path):
    litter = {"__MACOSX/top": b"3", "top/.DS_Store": b"4"}
    (tmp_path / "one.zip").write_bytes(zipped(top__a=b"1", top__b__c=b"2", **litter))
    (tmp_path / "two.zip").write_bytes(zipped(a__x=b"1", b__y=b"2"))
    assert unpack(tmp_path / "one.zip", tmp_path / "one", "*") == ["a", "b"]
    assert unpack(tmp_path / "two.zip", tmp_path / "two", "*") == ["a", "b"]
    with pytest.raises(DataError, match=r"one\.zip has no folder elsewhere: it holds top"):
        unpack(tmp_path / "one.zip", tmp_path / "three", "elsewhere")
