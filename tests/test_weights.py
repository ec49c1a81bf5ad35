"""Weights are found by name and checksum, read without trust, and fit or are refused."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dgbench import weights
from dgbench.errors import DataError, UsageError
from dgbench.files import sha256
from dgbench.weights import find, load_into, load_state

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


def test_a_file_that_was_changed_after_it_was_found_is_refused(known, tmp_path):
    path = find("small")
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(DataError, match=r"is not the published file: its sha256 is(?s:.*)delete it, then download"):
        find("small")


def test_an_unknown_name_is_an_error_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'sam_vit_b'"):
        find("sam_vitb")


def test_every_release_has_an_address_that_ends_in_its_file_and_a_whole_checksum():
    for entry in weights.WEIGHTS.values():
        assert entry.url.startswith("https://") and entry.url.endswith("/" + entry.file)
        assert len(bytes.fromhex(entry.sha256)) == 32 and entry.size > 0 and entry.licence


def test_weights_lie_in_the_folder_the_user_chose_or_in_the_cache(monkeypatch):
    monkeypatch.setenv("DGBENCH_WEIGHTS", "~/mine")
    assert weights.folder() == Path.home() / "mine"
    monkeypatch.delenv("DGBENCH_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert weights.folder() == Path("/cache/dgbench/weights")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights.folder() == Path.home() / ".cache/dgbench/weights"


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path, wrapper):
    assert same(load_state(saved(tmp_path, {wrapper: STATE, "epoch": 3})))


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
