"""What weights have seen: all known weights say it, and it is found where it meets the images of a task."""

import typing

from dgbench.images.find_task import get_task
from dgbench.networks.provenance import SEEN, Certainty, overlap, started_from
from dgbench.networks.weights import WEIGHTS
from dgbench.registry import TASKS

LITE = {"lite_medsam.pth": WEIGHTS["lite_medsam"].sha256}


def test_all_known_weights_say_what_they_were_trained_on_and_who_says_so():
    assert set(SEEN) == {*WEIGHTS, "imagenet", "lvd142m", "lvd1689m", "sat493m"}
    for name, seen in SEEN.items():
        assert seen and all(s.source and s.certainty in typing.get_args(Certainty) for s in seen), name
        assert len({s.collection for s in seen}) == len(seen), f"{name} names a collection twice"


def test_every_task_of_public_images_names_its_collections_and_something_is_said_of_each():
    told = {s.collection for seen in SEEN.values() for s in seen}
    for name in TASKS.names():
        task = get_task(name)
        assert task.collections or "computed" in task.citation, name
        assert set(task.collections) <= told, name


def test_weights_are_told_by_their_checksum_whatever_the_file_is_called():
    assert started_from({"initialisation": {"renamed.pth": WEIGHTS["lite_medsam"].sha256}}) == ["lite_medsam"]
    assert started_from({"initialisation": {"lite_medsam.pth": "another file"}}) == []
    assert started_from({"initialisation": {"sam-med2d_b.pth": "any"}}) == ["sam_med2d_b"], "no checksum is known"
    assert started_from({"initialisation": "scratch"}) == started_from({}) == []
    assert started_from({"initialisation": {"m.pth": "0"}, "hparams": {"initialisation": "imagenet"}}) == ["imagenet"]


def test_the_data_of_a_published_dino_are_told_by_its_name_or_are_those_of_timms_first():
    def seen(encoder: str, initialisation: str = "published") -> list[str]:
        return started_from({"hparams": {"encoder": encoder, "initialisation": initialisation}})

    assert seen("vit_base_patch14_dinov2.lvd142m") == seen("vit_small_patch14_dinov2") == ["lvd142m"]
    assert seen("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m") == seen("vit_base_patch16_dinov3") == ["lvd1689m"]
    assert seen("vit_large_patch16_dinov3.sat493m") == ["sat493m"]
    assert seen("vit_base_patch14_dinov2.lvd142m", "scratch") == seen("vit_base_patch14_dinov2", "mine.pth") == []


def test_lists_meet_whatever_the_spelling_and_a_record_without_a_list_still_reads():
    found = overlap([{"collections": ["busi", "BUS_BRA", "mine"], "initialisation": LITE}])
    assert {key: s.certainty for key, s in found.items()} == {
        ("lite_medsam", "busi"): "likely",
        ("lite_medsam", "BUS_BRA"): "not known",
    }
    assert overlap([{"initialisation": LITE}]) == {}  # of an earlier version


def test_sam_has_seen_photographs_only():
    collections = [c for name in TASKS.names() for c in get_task(name).collections]
    assert overlap([{"collections": collections, "initialisation": {"b": WEIGHTS["sam_vit_b"].sha256}}]) == {}
