"""`--set` for every setting of every method: the value that was written, or what may be written; and names of runs."""

import dataclasses
import math
import re
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dgbench import face
from dgbench.method import changed_hparams, hparams_class, resolve_hparams
from dgbench.registry import METHODS, get_method
from dgbench.running.plan import read_variant, safe, variant_name
from dgbench.settings import spelled
from tests.fuzz.right_or_refused import Refusal, answer, inputs

NAMES = METHODS.names()
TEXTS = st.one_of(
    st.sampled_from([
        "0", "1", "2", "8", "-1", "0.5", "1e-3", "1e400", "-inf", "nan", "none", "None", "true", "False", "yes", "no",
        "1_000", "٣", "0x10", "1,3,5", "1,", ",,", "float32", "bfloat16", "scratch", "imagenet", "resnet34", "tiny_vit",
        "999999999999999999999999", "1e1000000", "+3",
    ]),
    st.just(""), st.just(" 3 "), st.integers().map(str), st.floats().map(repr),
    st.lists(st.integers(-3, 300), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.text(max_size=6),
)  # fmt: skip
FEW = st.text(max_size=3)


def meant(text: str, value: object) -> bool:
    """Is this what the text says, read in Python's plainest way?"""
    if value is None:
        return text.lower() == "none"
    if isinstance(value, bool):
        return text.lower() in (("true", "1", "yes") if value else ("false", "0", "no"))
    if isinstance(value, tuple):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return len(parts) == len(value) and all(map(meant, parts, value))
    if isinstance(value, int) and not re.fullmatch(r"[-+]?\d+", text.strip()):
        return float(text) == value  # 1.0 and 1e3 are whole numbers
    return type(value)(text.strip()) == value


@inputs(35)
@given(st.sampled_from(NAMES), st.integers(0, 99), TEXTS, st.sampled_from(["phantom", "prostate", "check"]))
@example("erm", 3, "9" * 5000, "phantom")
@example("advbias", 2, "1.0", "phantom")
def test_a_setting_is_what_was_written_or_is_refused_by_its_name(name: str, number: int, text: str, task: str):
    cls = get_method(name)
    fields = [field.name for field in dataclasses.fields(hparams_class(cls))]
    key = fields[number % len(fields)]
    found = answer(lambda: resolve_hparams(cls, task, {key: text}))
    if isinstance(found, Refusal):
        assert key in found.cause + found.remedy and found.code == 2
        return
    value = getattr(found, key)
    assert meant(text, value) and not (isinstance(value, float) and math.isnan(value))
    changed = changed_hparams(cls, task, found)
    assert set(changed) <= {key}
    again = resolve_hparams(cls, task, {k: spelled(v) for k, v in changed.items()})
    assert again == found, "what a record says of a run makes another one"
    variant = variant_name(name, changed)
    assert re.fullmatch(r"[^/\\\0\n]+", variant) and len(variant.encode()) <= 255
    assert (variant == name) == (not changed)
    if "~" not in variant:  # no value had to be shortened
        method, own = read_variant(variant)
        assert method == name and resolve_hparams(cls, task, own) == found, "a row's name makes another run"


@inputs(10)
@given(st.sampled_from(NAMES), st.sampled_from(["phantom", "prostate", "fundus"]))
def test_every_default_written_out_is_that_default(name: str, task: str):
    cls = get_method(name)
    default = resolve_hparams(cls, task)
    told = {f.name: spelled(getattr(default, f.name)) for f in dataclasses.fields(default)}
    assert answer(lambda: resolve_hparams(cls, task, told)) == default


@inputs(10)
@given(st.sampled_from(NAMES), st.text(max_size=8), TEXTS)
def test_a_setting_that_a_method_does_not_have_is_refused(name: str, key: str, text: str):
    cls = get_method(name)
    if key not in typing.get_type_hints(hparams_class(cls)):
        found = answer(lambda: resolve_hparams(cls, "phantom", {key: text}))
        assert isinstance(found, Refusal) and "learning_rate" in found.remedy


@inputs(10)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))
def test_methods_put_over_each_other_have_the_settings_of_all_or_are_refused(names: list[str]):
    found = answer(lambda: get_method("+".join(names)))
    if not isinstance(found, Refusal):
        assert found.name == "+".join(names) and isinstance(found.pretrained, str)
        own = {f.name for f in dataclasses.fields(hparams_class(get_method(names[0])))}
        assert own <= {f.name for f in dataclasses.fields(answer(lambda: resolve_hparams(found, "phantom")))}


@inputs(10)
@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
@example("a/b", "a_b")
@example(".", "..")
@example("A", "a")
def test_two_names_never_share_a_folder_and_leave_none(one: str, other: str):
    for text in (one, other):
        assert safe(text) not in ("", ".", "..") and not re.search(r"[/\\\0]", safe(text))
    assert (safe(one) == safe(other)) == (one == other)


PLANS = st.fixed_dictionaries(
    {
        "method": st.one_of(st.sampled_from(["erm", "constant", "erm,mixup", "erm+cutout", "emr", ",", "a+b"]), FEW),
        "seed": st.one_of(st.sampled_from([0, "0,1", "x", "", "-1", "1.5"]), FEW),
        "source": st.one_of(st.sampled_from([(), "A", "A,B", "a", "E"]), FEW),
        "protocol": st.one_of(st.sampled_from(["sdg", "dapsam", "audit", "sdgg", ""]), FEW),
        "settings": st.dictionaries(st.sampled_from(["steps", "batch_size", "learning_rate"]), TEXTS, max_size=2),
    }
)


@inputs(20)
@given(options=PLANS)
def test_a_plan_of_any_words_names_runs_or_is_refused(options: dict, tmp_path_factory: pytest.TempPathFactory):
    results = tmp_path_factory.getbasetemp() / "nothing is written"
    found = answer(lambda: face.run(task="phantom", results=results, dry_run=True, **options))
    assert not results.exists()
    if not isinstance(found, Refusal):
        assert found.runs and len({r.folder for r in found.runs}) == len(found.runs)
        for run in found.runs:
            assert run.source in "ABCD" and run.folder.startswith(str(results))
