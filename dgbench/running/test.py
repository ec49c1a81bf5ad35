"""Testing: a trained method's masks for whole cases, and one row of numbers for each case and structure."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch

from dgbench import metrics
from dgbench.errors import DataError, RunError
from dgbench.files import write_atomic
from dgbench.images.preparation import PreparedCase, PreparedDomain, mask_to_network, to_image
from dgbench.method import Batch, Method
from dgbench.protocol import Protocol
from dgbench.running.machine import free_memory_mb
from dgbench.running.train import autocast, device_of
from dgbench.seeding import key

COLUMNS = (
    "role", "domain", "case", "structure", "dice", "asd", "assd", "hd95", "flag",
    "n_reference", "n_prediction", "diagonal",
)  # fmt: skip
GROUPED = (*COLUMNS[:3], "group", *COLUMNS[3:])  # where cases have groups: `Task.group`


@dataclass(frozen=True)
class Tested:
    """One case's outcome: its rows of cases.csv, and the predicted mask as the protocol saw it.

    shape: (D, K, H, W) of the mask. packed: its voxels, eight a byte, deflated, so that those of all cases fit into
    memory until the run ends.
    """

    domain: str
    case: str
    rows: list[dict[str, object]]
    shape: tuple[int, ...]
    packed: bytes

    @classmethod
    def of(cls, domain: str, case: str, rows: list[dict[str, object]], prediction: np.ndarray) -> Self:
        """`prediction`: bool (D, K, H, W)."""
        return cls(domain, case, rows, prediction.shape, zlib.compress(np.packbits(prediction).tobytes(), 1))


def predict_slices(method: Method, batches: Iterable[Batch], size: tuple[int, int] | None) -> np.ndarray | None:
    """The masks of slices in order, bool (D, K, height, width), at `size` or at the network's; None without slices.

    Batches hold `batch_size` slices of one case from its first on, or all, so the result depends on the case alone.
    Raises `RunError` for a prediction of another shape or with NaN.
    """
    method.eval()
    masks = []
    for batch in batches:
        with torch.no_grad(), autocast(method):
            probability = method.predict_prompted(*batch) if method.uses_target_masks else method.predict(batch.image)
        expected = (len(batch.image), len(method.task.structures), *batch.image.shape[2:])
        if probability.shape != expected:
            raise RunError(
                f"predict gave {tuple(probability.shape)} for masks of {expected}",
                "it must return (N, K, H, W) probabilities; `dgbench check` tells more",
            )
        probability = probability.float()
        if not torch.isfinite(probability).all():
            raise RunError("predict gave NaN", "`dgbench check` may tell why")
        masks.append(((to_image(probability, *size) if size else probability) >= 0.5).cpu().numpy())
    return np.concatenate(masks) if masks else None


def slices_at_once(method: Method, slices: int) -> int:
    """How many slices of a case, of so many, a method is given in one batch."""
    return max(1, slices) if method.whole_case else method.hparams.batch_size


def predict_case(
    method: Method, domain: PreparedDomain, case: PreparedCase, protocol: Protocol, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference) of one case, bool (D, K, H, W), as the protocol compares them."""
    device = device_of(method)
    kept = np.array(case.foreground) if protocol.slices == "foreground" else np.ones(case.shape[0], dtype=bool)
    indices = np.array(case.slices)[kept]
    count = slices_at_once(method, len(indices))
    parts = (indices[start : start + count] for start in range(0, len(indices), count))
    batches = (domain.batch(part, device, method.neighbours) for part in parts)
    torch.manual_seed(key(seed, "predict", domain.name, case.id))
    of_image = protocol.resolution == "image"
    reference = domain.reference(case.id)[kept] if of_image else domain.masks[indices].astype(bool)
    prediction = predict_slices(method, batches, case.shape[1:] if of_image else None)
    if prediction is None:
        return np.zeros_like(reference), reference
    return where_scored(prediction, domain, case, protocol), reference


def where_scored(prediction: np.ndarray, domain: PreparedDomain, case: PreparedCase, protocol: Protocol) -> np.ndarray:
    """A prediction, bool (D, K, H, W), as the protocol compares it, without what lies outside the field of view."""
    if (scored := domain.scored(case.id)) is None:
        return prediction
    if protocol.resolution == "network":
        scored = mask_to_network(scored, domain.masks.shape[-1]).astype(bool)
    return prediction & (scored[np.array(case.foreground)] if protocol.slices == "foreground" else scored)


def measure_domain(
    method: Method,
    domain: PreparedDomain,
    cases: Mapping[str, str],
    role: str,
    protocol: Protocol,
    seed: int,
    further: Sequence[str] = (),
) -> Iterator[Tested]:
    """Predict and measure some cases of a domain, {id: group}, in their order; by `further` metrics as well.

    Raises `RunError` that names the case.
    """
    method.forget()
    for case_id, group in cases.items():
        case = domain.cases[case_id]
        try:
            prediction, reference = predict_case(method, domain, case, protocol, seed)
        except RunError as error:
            raise RunError(f"{domain.name}/{case_id}: {error.cause}", error.remedy) from None
        rule = method.task.structures, protocol, further
        yield measure_case((role, domain.name, group), case, prediction, reference, rule)


def measure_case(
    place: tuple[str, str, str],
    case: PreparedCase,
    prediction: np.ndarray,
    reference: np.ndarray,
    rule: tuple[Sequence[str], Protocol, Sequence[str]],
) -> Tested:
    """The scores of one case. place: (role, domain, group). rule: (structures in order, protocol, further metrics).

    prediction, reference: bool (D, K, H, W), as the protocol compares them.
    """
    (role, domain, group), (structures, protocol, further) = place, rule
    spacing = case.spacing if protocol.distances == "physical" else (1.0, 1.0, 1.0)
    rows: list[dict[str, object]] = []
    for k, structure in enumerate(structures):
        scores = metrics.measure(prediction[:, k], reference[:, k], spacing)
        what = {"role": role, "domain": domain, "case": case.id, "group": group, "structure": structure}
        diagonal = metrics.image_diagonal(reference[:, k].shape, spacing)
        asked = {name: metrics.FURTHER[name](prediction[:, k], reference[:, k]) for name in further}
        rows.append({**what, **scores._asdict(), "diagonal": diagonal, **asked})
    return Tested.of(domain, case.id, rows, prediction)


def mean_dice(method: Method, domain: PreparedDomain, case_ids: Sequence[str], protocol: Protocol, seed: int) -> float:
    """Dice of some cases of a domain, the mean over structures and then cases; 1 for what is in neither mask."""
    found = []
    method.forget()
    for case_id in case_ids:
        prediction, reference = predict_case(method, domain, domain.cases[case_id], protocol, seed)
        of_case = [metrics.dice(prediction[:, k], reference[:, k]) for k in range(prediction.shape[1])]
        found.append(np.mean(np.nan_to_num(of_case, nan=1)))
    return float(np.mean(found))


def cases_csv(tested: Sequence[Tested]) -> str:
    """The text of cases.csv: full precision, `inf` for a missed or falsely found structure, empty: not applicable.

    Column group is there where some case is not a group of its own, and last those of further metrics.
    """
    text = io.StringIO()
    grouped = any(row.get("group", row["case"]) != row["case"] for case in tested for row in case.rows)
    further = [name for name in metrics.FURTHER if any(name in row for case in tested for row in case.rows)]
    columns = (*(GROUPED if grouped else COLUMNS), *further)
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for case in tested:
        for row in case.rows:
            writer.writerow({c: "" if isinstance(v, float) and np.isnan(v) else v for c, v in row.items()})
    return text.getvalue()


def write_predictions(tested: Sequence[Tested], path: Path) -> None:
    """All predicted masks in one .npz, eight voxels a byte; the array `index` says which is which. No pickle."""
    index = json.dumps([[t.domain, t.case, list(t.shape)] for t in tested]).encode()
    masks = ((f"mask_{i}", zlib.decompress(t.packed)) for i, t in enumerate(tested))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:  # as np.savez_compressed, one mask at a time
        for name, values in itertools.chain([("index", index)], masks):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.frombuffer(values, np.uint8), allow_pickle=False)
    write_atomic(path, content.getvalue())


class Predictions(Mapping[tuple[str, str], np.ndarray]):
    """What `write_predictions` wrote, {(domain, case): bool (D, K, H, W)}; a mask is unpacked when it is asked for.

    Raises `DataError` for a file that is none, and before one is unpacked for a mask that would fill the memory.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._told():
            self.file = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            index = json.loads(self._read("index").tobytes())
            self.places = {(domain, case): (f"mask_{i}", tuple(shape)) for i, (domain, case, shape) in enumerate(index)}

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray:
        name, shape = self.places[key]
        with self._told():
            packed, count = self._read(name), math.prod(shape)
            if packed.size != (count + 7) // 8:  # NumPy would make up the voxels that are not there
                raise ValueError(f"{packed.size} bytes are no mask of {shape}")
            return np.unpackbits(packed, count=count).view(bool).reshape(shape)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def _read(self, name: str) -> np.ndarray:
        gigabytes = 8 * self.file.zip.getinfo(f"{name}.npy").file_size / 2**30
        if gigabytes > (free := free_memory_mb() / 1024):
            raise ValueError(f"{name} takes {gigabytes:.1f} GB of memory, {free:.1f} are free")
        return self.file[name]

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # numpy, zipfile, zlib and Python's tokenizer, for a header, raise a dozen kinds
            raise DataError(f"{self.path} cannot be read: {error}", "make the run again") from None
