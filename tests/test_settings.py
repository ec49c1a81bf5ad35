"""What a setting may be: by its type and its range, in every spelling; two spellings are one variant."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import dgbench
from dgbench.errors import UsageError
from dgbench.fingerprint import of_code
from dgbench.method import Hparams, Method, changed_hparams, hparams_class, resolve_hparams
from dgbench.registry import METHODS, get_method
from dgbench.running.plan import variant_name
from dgbench.settings import Range, fields, plain, spelled
from tests.discs import write_discs


class Colour(enum.Enum):
    RED = (1, 0, 0)
    GREEN = (0, 1, 0)


@dataclass(frozen=True)
class ManyHparams(Hparams):
    learning_rate: float = 0.01  # states no range, and so has that of Hparams
    share: Annotated[float, Range(0, 1)] = 0.5
    rank: Annotated[int | None, Range(1)] = None
    kernels: Annotated[tuple[int, ...], Range(1, odd=True)] = (1, 3)
    free: float = 0.0
    whole: list[int] = dataclasses.field(default_factory=lambda: [1, 2])
    level: Literal[1, 2] = 1
    either: int | str = 3
    pair: tuple[int, int] = (4, 4)
    between: tuple[float, ...] = (0.5, 1.0)
    bent: bool = False
    colour: Colour = Colour.RED
    file: Path | None = None


class Many(Method):
    name = "many"
    hparams: ManyHparams


def given(**settings: str) -> Any:
    return resolve_hparams(Many, "drawn", settings)


def variant(**settings: str) -> str:
    return variant_name("many", changed_hparams(Many, "drawn", given(**settings)))


# --- ranges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("steps", "0", "a whole number of at least 1 or none"),
        ("steps", "-5", "a whole number of at least 1 or none"),
        ("image_size", "-32", "a whole number from 16 to 4096 or none"),
        ("batch_size", "0", "a whole number of at least 1"),
        ("learning_rate", "0", "a number above 0"),
        ("learning_rate", "nan", "a number above 0"),
        ("weight_decay", "inf", "a number of at least 0"),
        ("share", "1.01", "a number from 0 to 1"),
        ("rank", "0", "a whole number of at least 1 or none"),
        ("kernels", "3,4", "a whole number of at least 1, odd, or several with commas between"),
        ("kernels", "", "a whole number of at least 1, odd, or several with commas between"),
        ("free", "nan", "a number"),
        ("free", "-inf", "a number"),
        ("between", "1,nan", "a number, or several with commas between"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_field_value_and_range(setting, value, allowed):
    with pytest.raises(UsageError) as refused:
        given(**{setting: value})
    assert refused.value.cause == f"{setting} cannot be '{value}': it must be {allowed}"
    assert refused.value.remedy == "`dgbench explain many` shows every setting and what it may be"


def test_the_ends_of_a_range_belong_to_it_but_for_what_a_number_must_be_above():
    assert given(share="0").share == 0 and given(share="1").share == 1 and given(rank="1").rank == 1
    assert given(learning_rate="1e-300").learning_rate == 1e-300


@pytest.mark.parametrize("settings", [{"steps": 0}, {"batch_size": True}, {"steps": 1.5}, {"width": None}])
def test_what_a_notebook_gives_is_checked_alike_and_nothing_is_written(tmp_path, settings):
    task = write_discs(tmp_path / "discs", cases=2)
    with pytest.raises(UsageError, match=f"{next(iter(settings))} cannot be"):
        dgbench.run("erm", task, settings=settings, results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("seed", -1, "a whole number from 0 to 2147483647"),
        ("seed", [0, 0.5], "a whole number from 0 to 2147483647"),
        ("seed", True, "a whole number from 0 to 2147483647"),
        ("jobs", 0, "a whole number of at least 1"),
        ("per_device", -1, "a whole number of at least 1"),
        ("save_every", math.nan, "a number of at least 0"),
    ],
)
def test_the_numbers_of_a_call_have_ranges_too(argument, value, allowed):
    with pytest.raises(UsageError, match=f"{argument} cannot be .*: it must be {allowed}"):
        dgbench.run("constant", "phantom", **{argument: value}, dry_run=True)


def test_seeds_may_be_of_numpy_and_one_seed_is_one_run_however_it_is_written():
    for seeds, expected in ((np.int64(3), [3]), (np.arange(2), [0, 1]), ("0,00,1", [0, 1])):
        ran = dgbench.run("constant", "phantom", source="A", seed=seeds, dry_run=True)
        assert list(ran.frame["seed"]) == expected


def test_a_method_that_needs_a_batch_does_not_get_one_image():
    class Mixes(Many):
        needs_batch = True

    with pytest.raises(UsageError, match="batch_size cannot be 1"):
        resolve_hparams(Mixes, "drawn", {"batch_size": "1"})
    assert resolve_hparams(Mixes, "drawn", {"batch_size": "2"}).batch_size == 2


@pytest.mark.parametrize("name", [n for n, p in METHODS.plugins().items() if p.origin == "dgbench"])
def test_every_number_of_our_methods_states_its_range(name):
    """What a method leaves open, such as a step at which it would fail, would be a number that nobody looked at."""
    unbounded = {"least_iou", "predicted_iou"}  # what a network predicts of an IoU may be any number
    kind = hparams_class(get_method(name))
    for setting, field in fields(kind).items():
        is_number = any(word in field.allowed for word in ("number", "several"))
        assert not is_number or field.range != Range() or setting in unbounded, setting
    for task in ("", "phantom", "prostate", "fundus", "check"):
        resolve_hparams(get_method(name), task)


def test_ranges_of_an_idea_come_along_when_it_is_put_over_another_method():
    combined = get_method("erm+randconv")
    with pytest.raises(UsageError, match="p_original cannot be '2': it must be a number from 0 to 1"):
        resolve_hparams(combined, "drawn", {"p_original": "2"})


def test_a_range_makes_no_run_stale(tmp_path):
    """It refuses values and computes nothing: a method that states one later keeps the runs that it has."""
    text = "from typing import Annotated\nfrom dgbench.method import Hparams, Method\n"
    text += "from dgbench.settings import Range\n"
    text += "class Mine(Method):\n    pass\nclass Settings(Hparams):\n    share: {} = 0.5\n"
    found = set()
    for i, kind in enumerate(("float", "Annotated[float, Range(0, 1)]", "Annotated[float, Range(0)]")):
        path = tmp_path / str(i) / "mine.py"
        path.parent.mkdir()
        path.write_text(text.format(kind))
        METHODS.extra[:] = [path]
        found.add(of_code(get_method("mine")))
    assert len(found) == 1


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        ("steps", "1e3", 1000), ("steps", "None", None), ("steps", " 7 ", 7), ("rank", "none", None),
        ("whole", "3,4", [3, 4]), ("whole", "", []), ("level", "2", 2), ("either", "7", 7), ("either", "all", "all"),
        ("pair", "1, 2", (1, 2)), ("between", "1", (1.0,)), ("between", "1,2,", (1.0, 2.0)), ("bent", "Yes", True),
        ("bent", "off", False), ("colour", "GREEN", Colour.GREEN), ("file", "a/b.pth", Path("a/b.pth")),
        ("free", "-0.0", 0.0), ("file", "none", None),
    ],
)  # fmt: skip
def test_a_text_becomes_a_value_of_the_fields_type(setting, text, value):
    found = getattr(given(**{setting: text}), setting)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "text", "allowed"),
    [
        ("whole", "1,x", "a whole number, or several with commas between"),
        ("whole", "1,,2", "a whole number, or several with commas between"),
        ("level", "3", "one of 1, 2"),
        ("pair", "1,2,3", "2 with commas between: a whole number, a whole number"),
        ("pair", "1", "2 with commas between: a whole number, a whole number"),
        ("bent", "maybe", "true or false"),
        ("colour", "BLUE", "one of RED, GREEN"),
        ("colour", "Colour.RED", "one of RED, GREEN"),
        ("steps", "1.5", "a whole number of at least 1 or none"),
        ("batch_size", "none", "a whole number of at least 1"),
        ("precision", "half", "one of float32, bfloat16"),
    ],
)
def test_a_text_that_is_no_value_is_met_with_all_that_is_allowed(setting, text, allowed):
    with pytest.raises(UsageError) as refused:
        given(**{setting: text})
    assert refused.value.cause == f"{setting} cannot be '{text}': it must be {allowed}"


@pytest.mark.parametrize(
    "spellings",
    [
        [{"learning_rate": "0.001"}, {"learning_rate": "1e-3"}, {"learning_rate": ".001"}],
        [{"steps": "1000"}, {"steps": "1e3"}, {"steps": "1_000"}],
        [{"pair": "1,2"}, {"pair": " 1 , 2 "}],
        [{"bent": "true"}, {"bent": "1"}, {"bent": "ON"}],
        [{"free": "0"}, {"free": "-0.0"}, {}],
        [{"rank": "none"}, {"rank": "None"}, {}],
    ],
)
def test_two_spellings_of_a_value_are_one_variant(spellings):
    assert len({variant(**settings) for settings in spellings}) == 1


def test_two_values_never_share_a_name():
    texts = {
        "steps": ["1", "10"], "between": ["1,2", "12", "1", "0.1,2"], "either": ["1", "one", "none", "1,2"],
        "file": ["a;rank=3", "a]", "a_rank_3", "a/b", "a_b", "A"], "colour": ["GREEN"], "whole": ["", "1", "1,2,3"],
    }  # fmt: skip
    names = [variant(**{setting: text}) for setting, of in texts.items() for text in of]
    assert len(set(names)) == len(names) == 20


@pytest.mark.parametrize(
    "settings",
    [{}, {"whole": "3"}, {"colour": "GREEN", "pair": "7,8"}, {"between": "0.1,1e-9", "file": "w.pth", "bent": "yes"}],
)
def test_what_a_record_holds_gives_the_same_settings_again(settings):
    hparams = given(**settings)
    recorded = json.loads(json.dumps(plain(hparams)))
    assert resolve_hparams(Many, "drawn", {name: spelled(value) for name, value in recorded.items()}) == hparams


@pytest.mark.parametrize("value", [object(), {"a": 1}, ("a,b",), len])
def test_a_value_that_no_text_can_give_is_refused_by_its_kind_and_not_its_address(value):
    with pytest.raises(UsageError) as refused:
        dgbench.run("erm", "phantom", settings={"encoder": value}, dry_run=True)
    assert refused.value.cause.startswith("encoder: a ") and "0x" not in str(refused.value)


def test_names_of_long_variants_fit_into_a_file_system_in_any_script():
    """File systems count bytes: a letter of most scripts has two or three."""
    names = {variant_name("erm", {"encoder": "\u4e2d" * n}) for n in (99, 100)}
    names |= {variant_name("+".join("ab" * n), {}) for n in (98, 99)}
    assert len(names) == 4 and max(len(name.encode()) for name in names) <= 150
