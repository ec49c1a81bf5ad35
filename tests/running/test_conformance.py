"""`dgbench check` must find what contributors get wrong, and say what to change."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.method import Batch, Hparams, Method
from dgbench.registry import add_plugin, get_method
from dgbench.running.conformance import CHECKS, check_method, run_checks
from dgbench.running.new_method import write_method


@dataclass(frozen=True)
class GoodHparams(Hparams):
    learning_rate: float = 0.05
    kernel_sizes: tuple[int, ...] = (3, 3)


class Good(Method):
    """Two convolutions: as little as a method can be. Each broken method below differs from it in one function."""

    hparams: GoodHparams

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        a, b = hparams.kernel_sizes
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, a, padding=a // 2), nn.ReLU(), nn.Conv2d(8, len(task.structures), b, padding=b // 2)
        )

    def loss(self, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.net(batch.image), batch.mask)

    def predict(self, image: Tensor) -> Tensor:
        return self.net(image).sigmoid()


def the_only_advice(cls: type[Method]) -> str:
    (sentence,) = check_method(cls)
    return sentence


def test_a_small_honest_method_passes_every_check():
    findings = list(run_checks(Good))
    assert [f.name for f in findings] == [c.__doc__ for c in CHECKS]
    assert all(f.ok and not f.advice for f in findings)


def test_logits_are_not_probabilities():
    class Logits(Good):
        def predict(self, image):
            return self.net(image)

    assert "did you forget a sigmoid?" in check_method(Logits)[0]


def test_one_plane_for_two_structures_is_refused():
    class OnePlane(Good):
        def predict(self, image):
            return super().predict(image)[:, :1]

    advice = the_only_advice(OnePlane)
    assert "must turn (2, 3, 64, 64) into (2, 2, 64, 64)" in advice and "it gives (2, 1, 64, 64)" in advice


def test_a_squeeze_that_drops_the_batch_axis_of_one_image_is_found():
    class Squeezes(Good):
        def predict(self, image):
            return super().predict(image).squeeze(0)

    assert "it gives (1, 64, 64)" in the_only_advice(Squeezes)


def test_normalizing_over_the_batch_makes_a_case_depend_on_its_neighbours():
    class OverTheBatch(Good):
        def predict(self, image):
            return super().predict(image - image.mean() + 0.5)

    assert "must not depend on the other images of its batch" in the_only_advice(OverTheBatch)


def test_a_method_that_says_that_it_needs_several_images_may_look_at_them():
    class Adapts(Good):
        adapts_in_testing = True

        def predict(self, image):
            return super().predict(image - image.mean() + 0.5)

    assert check_method(Adapts) == []


def test_what_test_images_teach_is_no_state_and_is_forgotten():
    class Counts(Good):
        adapts_in_testing = True
        seen = 0

        def predict(self, image):
            self.seen += 1
            return super().predict(image) / self.seen

    assert any("after forget()" in advice for advice in check_method(Counts))

    class Keeps(Good):
        adapts_in_testing = True

        def predict(self, image):
            p = super().predict(image)
            next(self.parameters()).data += 1
            return p

    assert any("outside of parameters and buffers" in advice for advice in check_method(Keeps))


def test_who_says_that_it_only_predicts_is_trained_as_the_method_below_it():
    class Idea(Good):
        only_predicts = True

        def predict(self, image):
            return super().predict(image).clamp(0.01, 0.99)

    assert check_method(Idea) == []

    class Trains(Good):
        only_predicts = True

        def loss(self, batch):
            return 2 * super().loss(batch)

    assert "its training differs from that of Good in net.0.bias" in the_only_advice(Trains)


def test_dropout_at_test_time_is_found():
    class Dropout(Good):
        def predict(self, image):
            return F.dropout(super().predict(image), 0.5).clamp(0, 1)

    assert any("the same answer twice" in a for a in check_method(Dropout))


def test_predict_must_not_learn():
    class Counts(Good):
        def __init__(self, task, hparams):
            super().__init__(task, hparams)
            self.register_buffer("seen", torch.zeros(()))

        def predict(self, image):
            self.seen += len(image)
            return super().predict(image)

    assert "must not change the method's state" in check_method(Counts)[0]


def test_climbing_the_loss_is_found():
    class Climbs(Good):
        def loss(self, batch):
            return -super().loss(batch)

    assert "must bring the prediction closer to the mask" in the_only_advice(Climbs)


def test_an_optimizer_that_never_steps_is_found():
    class Idle(Good):
        def update(self, batch):
            return {"loss": self.loss(batch).detach()}

    assert "update changed no parameter" in the_only_advice(Idle)


def test_a_frozen_parameter_that_moves_is_found():
    class Thaws(Good):
        def __init__(self, task, hparams):
            super().__init__(task, hparams)
            self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

        def update(self, batch):
            self.frozen += 1
            return super().update(batch)

    assert any("changed frozen, which is frozen" in a for a in check_method(Thaws))


def test_a_loss_that_is_not_a_number_is_found():
    class Logarithm(Good):
        def loss(self, batch):
            return super().loss(batch) + self.net(batch.image).relu().mul(0).log().mean()

    assert any("NaN or infinite within" in a for a in check_method(Logarithm))


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), random.random])
def test_drawing_from_a_generator_that_nobody_keys_is_found(draw):
    class Draws(Good):
        def loss(self, batch):
            return super().loss(batch) * (0.5 + draw())

    advice = " ".join(check_method(Draws))
    assert "(draw from torch)" in advice and "two runs with one seed differ" in advice


def test_what_changes_from_step_to_step_must_be_in_a_buffer():
    class Forgets(Good):
        step = 0

        def loss(self, batch):
            self.step += 1
            return super().loss(batch) * self.step**-0.5 + 1e-3 * self.step * self.net[0].weight.sum()

    assert any("stopped and resumed it differs in net." in a for a in check_method(Forgets))


def test_what_prediction_needs_must_be_in_a_buffer():
    class Remembers(Good):
        offset = 0.0

        def loss(self, batch):
            self.offset = float(batch.mask.mean())
            return super().loss(batch)

        def predict(self, image):
            return (super().predict(image) + self.offset).clamp(0, 1)

    assert "saved and loaded it predicts otherwise" in the_only_advice(Remembers)


def test_what_bfloat16_cannot_do_is_found_with_its_line():
    class Fills(Good):
        def predict(self, image):
            probability = torch.zeros(len(image), len(self.task.structures), *image.shape[2:])
            everywhere = torch.ones_like(probability, dtype=torch.bool)
            probability[everywhere] = self.net(image).sigmoid().flatten()
            return probability

    advice = the_only_advice(Fills)
    assert "with precision=bfloat16" in advice and "probability[everywhere]" in advice and "in_float32" in advice


def test_a_loss_that_rounding_changes_is_found_and_float32_is_the_remedy():
    def far(x: Tensor) -> Tensor:
        """Cancellation: 1024 + x has no digit left for x in bfloat16."""
        return ((x + 1024) - 1024).square().mean()

    class Cancels(Good):
        @staticmethod
        def distance(x: Tensor) -> Tensor:
            return far(x)

        def loss(self, batch):
            return super().loss(batch) + self.distance(self.net(batch.image).sigmoid()).detach()

    class Careful(Cancels):
        distance = staticmethod(in_float32(far))

    assert "instead of" in the_only_advice(Cancels)
    assert check_method(Careful) == []


def test_augment_must_use_the_generator_it_is_given():
    class Global(Good):
        def augment(self, batch, rng):
            return Batch((batch.image * torch.rand(())).clamp(0, 1), batch.mask)

    assert "generator=rng" in the_only_advice(Global)


def test_a_white_image_that_augment_makes_whiter_is_found():
    """Nothing of the other images is white; a method is wrong first on CT, whose bone lies beyond the window."""

    class Sharpens(Good):
        def augment(self, batch, rng):
            if torch.rand((), generator=rng) < 0.5:
                return batch
            return Batch(1 - (1 - batch.image * 1.0000002).sqrt(), batch.mask)

    assert "a white image" in the_only_advice(Sharpens)


def test_a_mask_that_augment_blurred_is_found():
    class Blurs(Good):
        def augment(self, batch, rng):
            return Batch(batch.image, F.avg_pool2d(batch.mask, 3, 1, 1))

    assert "resample it to the nearest neighbour" in the_only_advice(Blurs)


def test_writing_into_the_batch_is_found():
    class Overwrites(Good):
        def loss(self, batch):
            batch.mask.mul_(0.5)
            return super().loss(batch)

    assert any("must not write into the batch" in a for a in check_method(Overwrites))


def test_writing_into_a_gray_image_whose_channels_are_one_view_is_found():
    class Overwrites(Good):
        def loss(self, batch):
            batch.image.mul_(0.5)
            return super().loss(batch)

    assert "`batch.image.mul_(0.5)`" in the_only_advice(Overwrites)


def test_a_process_wide_setting_is_found(monkeypatch):
    monkeypatch.setenv("DGBENCH_TEST", "1")  # so that what the method does is undone

    class Sets(Good):
        def __init__(self, task, hparams):
            super().__init__(task, hparams)
            import os

            os.environ["DGBENCH_TEST"] = "2"

    assert the_only_advice(Sets).startswith("building the method changes the environment variables")


def test_an_error_of_the_method_is_shown_with_its_line():
    class Broken(Good):
        def predict(self, image):
            return image[:, 7]

    advice = the_only_advice(Broken)
    assert advice.startswith("IndexError: ") and "`return image[:, 7]`" in advice
    assert "test_conformance.py, line" in advice


def test_a_method_that_says_that_it_needs_a_batch_is_not_tried_with_one_slice():
    class Contrast(Good):
        def loss(self, batch):
            if len(batch.image) < 2:
                raise ValueError("nothing to compare with")
            return super().loss(batch)

    assert "nothing to compare with" in the_only_advice(Contrast)
    Contrast.needs_batch = True
    assert check_method(Contrast) == []


FILE = '''"""An idea."""
from dataclasses import dataclass
from dgbench.method import Hparams, Method
{decorator}
class OwnHparams(Hparams):
    {field}

class Own(Method):
    {body}
    def __init__(self, task, hparams):
        raise ValueError("built")
'''


@pytest.mark.parametrize(
    ("decorator", "field", "body", "advice"),
    [
        ("@dataclass(frozen=True)", "gamma: float = 1.0", "paper = ''", "annotate the class with its settings"),
        ("", "gamma: float = 1.0", "hparams: OwnHparams", "OwnHparams must be decorated with @dataclass(frozen=True)"),
        ("@dataclass(frozen=True, kw_only=True)", "gamma: float", "hparams: OwnHparams", "needs a default: gamma"),
        ("@dataclass(frozen=True)", "gamma: int = 1", "hparams: OwnHparams; per_task = {'x': {'a': 1}}", "not have: a"),
        ("@dataclass(frozen=True)", "gamma: list = ()", "hparams: OwnHparams", "make it an int, float"),
        ("@dataclass(frozen=True)", "gamma: float = 1e999", "hparams: OwnHparams", "gamma cannot be 'inf'"),
        ("@dataclass(frozen=True)", "batch_size: int = 0", "hparams: OwnHparams", "batch_size cannot be '0'"),
        ("@dataclass(frozen=True)", "a: int = 1", "hparams: OwnHparams; per_task = {'x': {'steps': 0}}",
         "per_task['x']: steps cannot be '0': it must be a whole number of at least 1 or none"),
        ("@dataclass(frozen=True)", "gamma: object = dataclass", "hparams: OwnHparams", "a function cannot be written"),
    ],
)  # fmt: skip
def test_settings_that_the_engine_cannot_read_are_found(tmp_path: Path, decorator, field, body, advice):
    path = tmp_path / "own.py"
    path.write_text(FILE.format(decorator=decorator, field=field, body=body))
    add_plugin(path)
    found = check_method(get_method("own"))
    assert any(advice in sentence for sentence in found)
    assert not any("built" in sentence for sentence in found)  # it is not even built


@pytest.mark.parametrize(
    ("family", "paper", "advice"),
    [
        ("", "", "write 'Family: NAME.' under the citation in the file's header, NAME one of baseline, augmentation,"),
        ("Family: magic.", "", "test time, not 'magic'"),
        ("Family: augmentation.", "https://example.org", "with its year before the link https://example.org"),
    ],
)
def test_a_header_without_family_or_year_is_found(monkeypatch, family: str, paper: str, advice: str):
    """Of a method of ours; a user's own file may leave them out, but not name a family that there is not."""
    name = "dgbench.methods.drawn"
    monkeypatch.setitem(sys.modules, name, ModuleType(name, f"Drawn.\n\n{family} {paper}"))
    of = type("Drawn", (Good,), {"__module__": name, "paper": paper})
    *_, found = islice(run_checks(of), 2)
    assert advice in found.advice
    theirs = type("Drawn", (Good,), {"__module__": "drawn"})
    monkeypatch.setitem(sys.modules, "drawn", ModuleType("drawn", f"Drawn.\n\n{family}"))
    *_, found = islice(run_checks(theirs), 2)
    assert found.ok == ("magic" not in family)


@pytest.fixture(autouse=True)
def torch_draws_on_as_if_nothing_was_checked() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_the_file_that_new_writes_is_a_method_as_it_stands(tmp_path: Path):
    path = write_method("my_method", tmp_path)
    add_plugin(path)
    cls = get_method("my_method")
    assert cls.__name__ == "MyMethod"
    assert check_method(cls) == []
    assert 20 <= len(path.read_text().splitlines()) <= 40


def test_new_never_overwrites(tmp_path: Path):
    path = write_method("my_method", tmp_path)
    path.write_text("my work")
    with pytest.raises(UsageError, match=r"my_method\.py exists"):
        write_method("my_method", tmp_path)
    assert path.read_text() == "my work"


@pytest.mark.parametrize("name", ["my-method", "MyMethod", "class", "2d", "_hidden", "../x", "", "erm"])
def test_new_refuses_a_name_that_could_not_be_used(name: str, tmp_path: Path):
    with pytest.raises(UsageError):
        write_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_new_does_not_hide_what_the_file_imports(tmp_path: Path):
    assert "class BatchMethod(ERM)" in write_method("batch", tmp_path).read_text()
