"""`a+b` is method a with the idea of method b put over it: its network, its loss, and b's images."""

import math

import pytest
import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.fingerprint import of_code
from dgbench.images.folder_task import FolderTask
from dgbench.method import Batch, hparams_class, resolve_hparams
from dgbench.methods.dapsam import DAPSAM
from dgbench.methods.erm import ERM
from dgbench.methods.randconv import RandConvIdea
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.registry import get_method
from dgbench.running import plan, train
from dgbench.task import TaskInfo
from tests.discs import write_discs

IDEAS = ("cutout", "mixup", "bigaug", "fourier", "randconv", "csdg", "slaug", "advbias", "advnoise")
IDEAS += ("srcsm", "stacking", "adverin")
SIZE = 64


def batch() -> Batch:
    rows = torch.arange(SIZE) - SIZE / 2
    near = (rows[:, None].square() + rows.square()).sqrt()
    mask = torch.stack([(near < radius).float() for radius in (12, 18, 24)])[:, None]
    image = 0.2 + 0.5 * mask + 0.1 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    return Batch(image.expand(-1, 3, -1, -1), mask)


def weights(method: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in method.named_parameters()}


@pytest.mark.parametrize("idea", IDEAS)
def test_every_input_level_idea_goes_over_dapsam(idea):
    cls = get_method(f"dapsam+{idea}")
    assert issubclass(cls, DAPSAM) and not issubclass(cls, ERM)
    assert cls.name == f"dapsam+{idea}" and cls.paper == DAPSAM.paper
    info = TaskInfo("drawn", ("disc",), SIZE, steps=4)
    method, _ = train.build(cls, info, resolve_hparams(cls, "drawn"), seed=0)
    plain, _ = train.build(DAPSAM, info, resolve_hparams(DAPSAM, "drawn"), seed=0)
    assert {n: p.shape for n, p in method.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    before = weights(method)
    for each in (method, plain):
        train.configure(each)
        shown = train.step(each.train(), batch(), seed=0, t=0)
        assert all(map(math.isfinite, shown.values()))
    after, without = weights(method), weights(plain)
    assert any(not torch.equal(after[n], before[n]) for n in after), "it did not learn"
    assert any(not torch.equal(after[n], without[n]) for n in after), "the idea changed nothing"
    p = method.eval().predict(batch().image)
    assert p.shape == (3, 1, SIZE, SIZE) and p.min() >= 0 and p.max() <= 1


def test_the_methods_own_augmentation_and_loss_stay_below_the_idea():
    cls = get_method("dapsam+randconv")
    assert cls.__mro__[1:3] == (RandConvIdea, DAPSAM)
    for name in ("logits", "criterion", "augment", "schedule", "configure", "predict"):
        assert getattr(cls, name) is getattr(DAPSAM, name)
    assert cls.loss is RandConvIdea.loss


def test_the_settings_of_both_can_be_set_and_nothing_comes_in_by_the_ideas_own_baseline():
    cls = get_method("dapsam+randconv")
    own = set(hparams_class(cls).__dataclass_fields__) - set(hparams_class(DAPSAM).__dataclass_fields__)
    assert own == {"randconv", "kernel_sizes", "p_original", "consistency"}
    hparams = resolve_hparams(cls, "drawn", {"memory": "8", "kernel_sizes": "1,9"})
    assert (hparams.memory, hparams.kernel_sizes) == (8, (1, 9))
    assert hparams.learning_rate == resolve_hparams(DAPSAM, "drawn").learning_rate
    with pytest.raises(UsageError, match="initialisation"):
        resolve_hparams(cls, "drawn", {"initialisation": "imagenet"})


def test_dapsams_settings_for_a_task_hold_under_an_idea():
    cls = get_method("dapsam+csdg")
    assert resolve_hparams(cls, "prostate").backbone == "vit_b"


def test_over_erm_an_idea_is_the_method_of_its_name():
    info, loss = TaskInfo("drawn", ("disc",), SIZE, steps=4), []
    for name in ("erm+slaug", "slaug"):
        cls = get_method(name)
        method, _ = train.build(cls, info, resolve_hparams(cls, "drawn", {"width": "4"}), seed=0)
        train.configure(method)
        loss.append(train.step(method.train(), batch(), seed=0, t=0)["loss"])
    assert loss[0] == loss[1]


def test_two_ideas_can_lie_over_one_another():
    cls = get_method("dapsam+bigaug+randconv")
    assert cls.name == "dapsam+bigaug+randconv" and cls.loss is RandConvIdea.loss
    info = TaskInfo("drawn", ("disc",), SIZE, steps=4)
    method, _ = train.build(cls, info, resolve_hparams(cls, "drawn", {"p_bigaug": "1"}), seed=0)
    train.configure(method)
    assert math.isfinite(train.step(method.train(), batch(), seed=0, t=0)["loss"])


def test_what_an_idea_needs_is_needed_under_it_too():
    assert get_method("dapsam+mixup").needs_batch and not get_method("dapsam+randconv").needs_batch


@pytest.mark.parametrize("other", ["dapsam", "constant", "erm", "mixstyle", "dsu"])
def test_a_method_that_is_one_with_its_network_lies_over_nothing(other):
    with pytest.raises(UsageError, match=f"'{other}' cannot be put over another method"):
        get_method(f"erm+{other}")


@pytest.mark.parametrize("name", ["dapsam+randcnv", "dapsm+randconv", "dapsam+", "+randconv"])
def test_both_names_must_be_known(name):
    with pytest.raises(UsageError, match="unknown method") as caught:
        get_method(name)
    if "randcnv" in name:
        assert "randconv" in str(caught.value)


def test_two_settings_of_one_name_are_refused():
    """`--set alpha=` could mean either: mixstyle's or mixup's."""
    with pytest.raises(UsageError, match="'mixstyle' and 'mixup' both have a setting named alpha"):
        get_method("mixstyle+mixup")
    with pytest.raises(UsageError, match="both have a setting named cutout_side"):
        get_method("cutout+cutout")


@pytest.mark.parametrize("name", ["dual_norm+randconv", "dapsam+randconv+advbias", "ccsdg+slaug"])
def test_two_that_write_the_same_step_are_refused(name):
    """RandConv's loss would replace Dual-Norm's: the row would be RandConv with two sets of norms, one untrained."""
    with pytest.raises(UsageError, match=r"both write their own (loss|update)"):
        get_method(name)


@pytest.mark.parametrize("idea", ["randconv", "csdg", "advbias", "mixup"])
def test_a_method_whose_step_asks_for_no_loss_takes_no_idea_that_writes_one(idea):
    """MoreStyle's and the constant mask's steps would be taken as ever, under a name that promises more."""
    for base in ("morestyle", "constant"):
        with pytest.raises(UsageError, match=f"'{idea}' writes: it would be plain {base}"):
            get_method(f"{base}+{idea}")
    assert get_method(f"ccsdg+{idea}") and get_method(f"erm+slaug+{idea}" if idea != "mixup" else "erm+slaug")
    assert get_method("morestyle+cutout") and get_method("nnunet+bigaug"), "these change images alone"


@pytest.mark.parametrize("name", ["slaug+csdg", "csdg+slaug", "slaug+srcsm"])
def test_slaug_says_where_no_gradient_reaches_its_images(name):
    cls = get_method(name)
    method, _ = train.build(cls, TaskInfo("drawn", ("disc",), SIZE, steps=4), resolve_hparams(cls, "drawn"), seed=0)
    train.configure(method)
    with pytest.raises(UsageError, match="slaug needs the gradient of the image"):
        train.step(method.train(), batch(), seed=0, t=0)


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    """Builds a method whose encoder is frozen and keeps what it makes of images in a folder."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))

    def build(name: str, settings: dict[str, str]):
        cls = get_method(name)
        info = TaskInfo("drawn", ("disc",), SIZE, steps=4)
        method, _ = train.build(cls, info, resolve_hparams(cls, "drawn", settings), seed=0, pretrained=False)
        encoder = method.image_encoder if hasattr(method, "image_encoder") else method.encoder
        for parameter in encoder.parameters():
            parameter.requires_grad = False
        method.cache = EmbeddingCache("drawn")
        train.configure(method)
        return method

    return build


def kept() -> int:
    return len(list(EmbeddingCache("drawn").folder.glob("*.npz")))


@pytest.mark.parametrize(("idea", "entries"), [("", 3), ("+randconv", 0), ("+advnoise", 0), ("+slaug", 0)])
def test_a_frozen_encoder_keeps_the_images_that_come_again_and_no_others(frozen, idea, entries):
    """A view that an idea draws is seen once: kept, it would fill the disk, and have no gradient."""
    method = frozen(f"sam_decoder{idea}", {"augmentation": "none"}).train()
    for t in range(2):
        assert math.isfinite(train.step(method, batch(), seed=0, t=t)["loss"])
    assert kept() == entries
    method.eval().predict(batch().image)
    assert kept() == 3, "tested images come again"


@pytest.mark.parametrize("idea", ["adabn", "tent"])
@pytest.mark.parametrize("frozen_too", [False, True])
def test_an_idea_of_test_time_adapts_a_tiny_vit(frozen, idea, frozen_too):
    """Its convolutions take in their norms where nothing hooks into these; and nothing adapted is kept for others."""
    method, plain = (frozen(f"sam_full{i}", {"backbone": "mobile_sam"}).eval() for i in (f"+{idea}", ""))
    if not frozen_too:
        method.cache = plain.cache = None
    for one in (method, plain):
        torch.manual_seed(0)
        for norm in (m for m in one.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    difference = (method.predict(batch().image) - plain.predict(batch().image)).abs().max()
    assert difference > 1e-3
    assert kept() == (3 if frozen_too else 0), "by the plain one"


def test_a_runs_plan_and_its_other_process_know_the_combination_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = FolderTask(write_discs(tmp_path / "discs"))
    names, results = ["dapsam+randconv"], tmp_path / "results"
    (plain,) = plan.plan(task, names, sources=["dim"], results=results)
    (one_view,) = plan.plan(task, names, sources=["dim"], settings={"consistency": "0"}, results=results)
    assert (plain.variant, one_view.variant) == ("dapsam+randconv", "dapsam+randconv[consistency=0.0]")
    assert plain.folder == str(results / "discs" / "sdg" / "dapsam+randconv" / "dim-seed0")
    cls, hparams = one_view.load_method()
    assert cls.name == "dapsam+randconv" and hparams.consistency == 0


def test_a_combination_is_other_code_than_either_of_its_parts():
    hashes = {name: of_code(get_method(name)) for name in ("dapsam", "dapsam+randconv", "dapsam+csdg", "randconv")}
    assert len(set(hashes.values())) == 4
    assert hashes["dapsam+randconv"] == of_code(get_method("dapsam+randconv"))
