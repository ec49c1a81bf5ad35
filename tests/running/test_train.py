"""Training continues bit-identically from any step, and says clearly why it cannot go on."""

import itertools
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgbench.errors import RunError
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.losses import dice_bce
from dgbench.method import Batch, resolve_hparams
from dgbench.running import train
from tests.discs import write_discs
from tests.pixels import Pixels

STEPS = 12


@pytest.fixture(scope="module")
def slices(tmp_path_factory):
    task = FolderTask(write_discs(tmp_path_factory.mktemp("discs"), steps=STEPS))
    domain = prepare(task, "bright", task.image_size, tmp_path_factory.mktemp("cache"))
    return task, train.TrainingSlices(domain, domain.slice_indices(task.split("bright")[0], foreground=False))


def build(task, **settings):
    hparams = resolve_hparams(Pixels, task.name, {k: str(v) for k, v in settings.items()})
    return train.build(Pixels, task.info, hparams, seed=0)[0]


def state(method):
    return {n: t.clone() for n, t in method.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def uninterrupted(slices, tmp_path_factory):
    task, data = slices
    method = build(task)
    train.fit(method, data, 0, tmp_path_factory.mktemp("whole"))
    return state(method)


@pytest.mark.parametrize("stop_at", [1, 5, STEPS - 1])
def test_a_training_stopped_anywhere_ends_with_the_same_weights(slices, uninterrupted, tmp_path, stop_at):
    task, data = slices
    steps = iter(range(1, STEPS + 1))
    with pytest.raises(train.Interrupted):
        train.fit(build(task), data, 0, tmp_path, train.Watch(should_stop=lambda: next(steps) == stop_at))
    torch.rand(5)  # another process has drawn other numbers before
    method = build(task)
    progress = train.fit(method, data, 0, tmp_path)
    assert same(state(method), uninterrupted)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) == [h["step"] for h in progress.history]


def test_in_bfloat16_too_a_stopped_training_ends_with_the_same_weights_which_are_not_those_of_float32(
    slices, uninterrupted, tmp_path
):
    task, data = slices
    whole, first, second = (build(task, precision="bfloat16") for _ in range(3))
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train.fit(whole, data, 0, tmp_path / "whole")
    steps = iter(range(1, STEPS + 1))
    with pytest.raises(train.Interrupted):
        train.fit(first, data, 0, tmp_path / "stopped", train.Watch(should_stop=lambda: next(steps) == 5))
    train.fit(second, data, 0, tmp_path / "stopped")
    assert same(state(second), state(whole)) and not same(state(whole), uninterrupted)
    assert torch.bfloat16 not in {t.dtype for t in state(whole).values()}


def test_float32_knows_no_autocast_and_bfloat16_sees_the_weights_of_the_optimizers_last_step(slices):
    """Autocast remembers a rounded weight as long as it lasts: an `update` of two steps would not see the first."""

    class Twice(Pixels):
        def update(self, batch):
            seen.append(torch.is_autocast_enabled("cpu"))
            first = super().update(batch)["loss"]
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.zero_()
            return {"loss": first, "zero": self.net(batch.image).abs().sum().detach()}

    task, data = slices
    seen: list[bool] = []
    for precision in ("float32", "bfloat16"):
        hparams = resolve_hparams(Twice, task.name, {"precision": precision})
        method, _ = train.build(Twice, task.info, hparams, seed=0)
        train.configure(method)
        shown = train.step(method, data.batch(0, 0, 4, torch.device("cpu")), 0, 0)
        assert float(shown["zero"]) == 0
    assert seen == [False, True]


def test_the_loop_is_the_bare_loop_and_nothing_else(slices, uninterrupted):
    """The same weights by hand: batch, augment, loss, backward, AdamW with polynomial decay."""
    task, data = slices
    method = build(task)
    train.configure(method)
    method.train()
    for t in range(STEPS):
        train.step(method, data.batch(0, t, 4, torch.device("cpu")), 0, t)
    assert same(state(method), uninterrupted)
    assert method.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * (1 / STEPS) ** 0.9)


def test_another_seed_gives_other_weights(slices, uninterrupted, tmp_path):
    task, data = slices
    method = build(task)
    train.fit(method, data, 1, tmp_path)
    assert not same(state(method), uninterrupted)


def corrupt(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "bit flip":
        content[len(content) // 2] ^= 4
    path.write_bytes({"bit flip": content, "truncated": content[: len(content) // 2], "empty": b""}[how])


@pytest.mark.parametrize("how", ["bit flip", "truncated", "empty"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(slices, uninterrupted, tmp_path, capsys, how):
    task, data = slices
    for _ in range(2):
        asked = itertools.count(1)
        with pytest.raises(train.Interrupted):
            train.fit(build(task), data, 0, tmp_path, train.Watch(should_stop=lambda n=asked: next(n) == 4))
    kept = sorted(tmp_path.glob("checkpoint-*.safetensors"))
    assert [p.stem for p in kept] == ["checkpoint-00000004", "checkpoint-00000008"]
    corrupt(kept[1], how)
    method = build(task)
    train.fit(method, data, 0, tmp_path)
    assert "checkpoint-00000008.safetensors is damaged" in capsys.readouterr().err
    assert same(state(method), uninterrupted)


def test_a_loss_that_is_nan_stops_with_the_step_and_the_cases(slices, tmp_path):
    task, data = slices
    with pytest.raises(RunError, match=r"the loss is nan at step 3 \(batch from cases case"):
        train.fit(build(task, fail_at=3), data, 0, tmp_path)


def test_running_out_of_memory_says_what_to_lower(slices, tmp_path, monkeypatch):
    task, data = slices
    method = build(task)

    def loss(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7.00 GiB")

    monkeypatch.setattr(method, "loss", loss)
    with pytest.raises(RunError, match="out of memory at batch_size 4, image_size 48"):
        train.fit(method, data, 0, tmp_path)


def test_weights_of_another_method_are_refused(slices):
    task, _ = slices
    with pytest.raises(RunError, match=r"missing \['net.0.bias'"):
        train.load_learned(build(task), {"other": torch.zeros(1)})


class Plain(Pixels):
    """Without dropout and an optimizer that reads numbers, so that every number read is the engine's."""

    def configure(self):
        return torch.optim.SGD(self.net.parameters(), lr=1e-2)

    def loss(self, batch):
        return dice_bce(self.net(batch.image), batch.mask)


class Reads(TorchDispatchMode):
    """At which forward pass a number is read from a tensor."""

    def __init__(self):
        super().__init__()
        self.passes, self.at = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.passes += function is torch.ops.aten.native_batch_norm.default
        if function is torch.ops.aten._local_scalar_dense.default:
            self.at.append(self.passes)
        return function(*args, **(kwargs or {}))


def test_losses_are_read_when_a_line_of_the_history_closes_and_the_lines_stay_the_same(slices, tmp_path, monkeypatch):
    task, data = slices
    hparams = resolve_hparams(Plain, task.name, {})
    every_step, _ = train.build(Plain, task.info, hparams, seed=0)
    (tmp_path / "each").mkdir()
    each = train.fit(every_step, data, 0, tmp_path / "each").history
    monkeypatch.setattr(train, "HISTORY_LINES", 3)
    method, _ = train.build(Plain, task.info, hparams, seed=0)
    with Reads() as reads:
        lines = train.fit(method, data, 0, tmp_path).history
    assert set(reads.at) == {4, 8, 12}
    assert same(state(method), state(every_step))
    means = [sum(line["loss"] for line in each[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert [line["loss"] for line in lines] == means


@pytest.mark.parametrize("consequence", ["goes on", "breaks"])
def test_a_loss_that_is_read_late_is_still_blamed_on_its_own_step_and_leaves_no_poisoned_checkpoint(
    slices, tmp_path, monkeypatch, consequence
):
    class Breaks(Pixels):
        def update(self, batch):
            if consequence == "breaks" and self.seen > 5:
                raise ValueError("no index for NaN")
            return super().update(batch)

    task, data = slices
    monkeypatch.setattr(train, "HISTORY_LINES", 1)
    method, _ = train.build(Breaks, task.info, resolve_hparams(Breaks, task.name, {"fail_at": "5"}), seed=0)
    watch = train.Watch(should_stop=lambda: int(method.seen) == 3)
    with pytest.raises(train.Interrupted):
        train.fit(method, data, 0, tmp_path, watch)
    again, _ = train.build(Breaks, task.info, method.hparams, seed=0)
    method = again
    with pytest.raises(RunError, match=r"the loss is nan at step 5 \(batch from cases case"):
        train.fit(again, data, 0, tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["checkpoint-00000003.safetensors"]


def test_weights_that_are_not_finite_are_never_saved(slices, tmp_path):
    class Explodes(Pixels):
        """Its loss at step 3 is finite and its gradient is not; only the loss of step 4 would tell."""

        def loss(self, batch):
            loss = super().loss(batch)
            return loss + (self.net[0].bias[0] * 0).sqrt() if self.seen == 4 else loss

    task, data = slices
    method, _ = train.build(Explodes, task.info, resolve_hparams(Explodes, task.name, {}), seed=0)
    with pytest.raises(RunError, match=r"a weight is not finite after step 3 \(batch from cases case"):
        train.fit(method, data, 0, tmp_path, train.Watch(save_every=0))
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    assert newest.name == "checkpoint-00000003.safetensors"
    assert all(t.isfinite().all() for t in safetensors.torch.load_file(newest).values())


def test_the_same_step_draws_the_same_augmentation(slices):
    task, data = slices
    method = build(task)
    train.configure(method)
    method.eval()
    seen: list[Batch] = []
    method.update = lambda batch: seen.append(batch) or {"loss": torch.zeros(())}  # type: ignore[method-assign]
    for t in (3, 4, 3):
        train.step(method, data.batch(0, t, 4, torch.device("cpu")), 0, t)
    assert torch.equal(seen[0].image, seen[2].image)
    assert not torch.equal(seen[0].image, seen[1].image)
