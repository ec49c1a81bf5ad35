"""Weights and checkpoints, whole, cut off, flipped or foreign: the tensors that were written, or a refusal."""

import functools
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgbench.networks.checkpoints import load_into, load_state
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs
from tests.pixels import Pixels, PixelsHparams

ARRAYS = st.sampled_from(["f4", "f8", "f2", "i8", "u1", "?"]).flatmap(
    lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
STATES = st.dictionaries(st.text("abc.0é", min_size=1, max_size=4), ARRAYS, min_size=1, max_size=3)
KINDS = st.sampled_from(["a.safetensors", "a.safetensors", "a.pth", "a.pt", "old.pth"])


def written(state: dict[str, np.ndarray], name: str) -> bytes:
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    if name.endswith(".safetensors"):
        return safetensors.torch.save(tensors)
    stream = io.BytesIO()
    torch.save(tensors, stream, _use_new_zipfile_serialization=name != "old.pth")
    return stream.getvalue()


def by_hand(content: bytes) -> dict[str, tuple[Any, bytes]]:
    """A .safetensors file: the length of its header, the header, then {name: (shape, bytes)}."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    return {k: (v["shape"], data[slice(*v["data_offsets"])]) for k, v in header.items() if k != "__metadata__"}


def same(found: dict[str, torch.Tensor], state: dict[str, np.ndarray]) -> bool:
    return found.keys() == state.keys() and all(
        tuple(found[k].shape) == v.shape and found[k].numpy().tobytes() == v.tobytes() for k, v in state.items()
    )


@inputs(20)
@given(STATES, KINDS)
def test_weights_come_back_bit_by_bit(state: dict[str, np.ndarray], name: str):
    with folder() as box:
        (path := box.path / name).write_bytes(written(state, name))
        assert same(answer(lambda: load_state(path), box), state)


@inputs(25)
@given(STATES, KINDS, DAMAGE)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch, of an old file
def test_broken_weights_are_refused_or_are_what_the_file_says(state: dict[str, np.ndarray], name: str, damage: Damage):
    """Neither .safetensors nor torch's old format has a checksum; a .pth file of today has one."""
    with folder() as box:
        content = damage.of(written(state, name))
        (path := box.path / name).write_bytes(content)
        found = answer(lambda: load_state(path), box)
        if isinstance(found, Refusal):
            assert str(path) in found.cause and found.code == 3
        elif name.endswith(".safetensors"):
            told = by_hand(content)
            assert found.keys() == told.keys()
            for key, (shape, data) in told.items():
                assert list(found[key].shape) == shape and found[key].numpy().tobytes() == data
        elif name != "old.pth":
            assert same(found, state) or (damage.kind == "flipped" and not zipfile.is_zipfile(io.BytesIO(content)))


class Trap:
    """What a pickle may run when it is read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("trap"),))


FOREIGN = {
    "code": pickle.dumps(Trap()), "a list": pickle.dumps([1]), "numpy": pickle.dumps({"a": np.ones(2)}),
    "text": b"weights",
    "a large header": struct.pack("<Q", 2**62) + b"{}", "a header that is too large": struct.pack("<Q", 90) + b"{}",
    "lies": struct.pack("<Q", 64) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}' + bytes(4),
}  # fmt: skip


@inputs(10)
@given(st.sampled_from(sorted(FOREIGN)), KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_is_no_weights_is_refused_and_runs_nothing(what: str, name: str):
    with folder() as box:
        (path := box.path / name).write_bytes(FOREIGN[what])
        found = answer(lambda: load_state(path), box)
        assert isinstance(found, Refusal) and str(path) in found.cause
        assert not Path("trap").exists()


@inputs(10)
@given(st.dictionaries(st.sampled_from(["weight", "bias", "other"]), ARRAYS, min_size=1))
@example({"weight": np.ones((2, 3), np.float32), "bias": np.ones(2, np.float32)})
def test_weights_go_into_a_network_whole_or_not_at_all(state: dict[str, np.ndarray]):
    layer = torch.nn.Linear(3, 2)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    found = answer(lambda: load_into(layer, tensors, "a.pth"))
    fits = {k: v.shape for k, v in state.items()} == {"weight": (2, 3), "bias": (2,)}
    assert isinstance(found, Refusal) != fits
    for key, value in layer.state_dict().items():
        expected = torch.from_numpy(np.array(state[key])).to(torch.float32) if fits else before[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


# A run that is to be continued


@functools.cache
def interrupted() -> dict[str, bytes]:
    """The checkpoints of steps 1 and 2 of a training."""
    method = fresh()
    with folder() as box:
        for step in (1, 2):
            with torch.no_grad():
                for parameter in method.parameters():
                    parameter.fill_(step)
            train.save_checkpoint(method, train.Progress(step=step), box.path)
        return {p.name: p.read_bytes() for p in box.path.iterdir()}


def fresh() -> Pixels:
    method = Pixels(TaskInfo("t", ("disc",), 8, 5), PixelsHparams())
    train.configure(method)
    return method


@inputs(15)
@given(st.lists(st.tuples(st.sampled_from(sorted(interrupted())), st.one_of(DAMAGE, st.just("gone"))), max_size=3))
@example([("checkpoint-00000002.sha256", Damage("zeroed", 0.0)), ("checkpoint-00000001.sha256", "gone")])
@example([("checkpoint-00000002.sha256", Damage("flipped", 0.0, 7))])
def test_a_run_continues_from_its_newest_whole_checkpoint(damages: list[tuple[str, Damage | str]]):
    files: dict[str, bytes] = dict(interrupted())
    for name, damage in damages:
        if name in files:
            files.pop(name) if damage == "gone" else files.update({name: damage.of(files[name])})
    whole = [
        step for step in (1, 2)
        if all(files.get(n) == c for n, c in interrupted().items() if n.startswith(f"checkpoint-{step:08d}."))
    ]  # fmt: skip
    with folder() as box:
        for name, content in files.items():
            (box.path / name).write_bytes(content)
        method = fresh()
        progress = answer(lambda: train.load_checkpoint(method, box.path), box)
        assert progress.step == max(whole, default=0)
        if whole:
            assert all((p == max(whole)).all() for p in method.parameters())
