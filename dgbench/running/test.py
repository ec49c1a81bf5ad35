"""Testing: a trained method's masks for whole cases, and one row of numbers for each case and structure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dgbench import metrics
from dgbench.errors import RunError
from dgbench.files import write_atomic
from dgbench.images.preparation import PreparedCase, PreparedDomain, to_image
from dgbench.method import Method
from dgbench.protocol import Protocol
from dgbench.running.train import device_of
from dgbench.seeding import key

COLUMNS = (
    "role", "domain", "case", "structure", "dice", "asd", "assd", "hd95", "flag",
    "n_reference", "n_prediction", "diagonal",
)  # fmt: skip


@dataclass(frozen=True)
class Tested:
    """One case's outcome: its rows of cases.csv, and the predicted mask, bool (D, K, H, W), as the protocol saw it."""

    domain: str
    case: str
    rows: list[dict[str, object]]
    prediction: np.ndarray


def predict_case(
    method: Method, domain: PreparedDomain, case: PreparedCase, protocol: Protocol, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, reference) of one case, bool (D, K, H, W), as the protocol compares them.

    The slices go through the network in fixed batches from the first one on, so the result depends on the case alone.
    """
    device = device_of(method)
    kept = np.array(case.foreground) if protocol.slices == "foreground" else np.ones(case.shape[0], dtype=bool)
    indices = np.array(case.slices)[kept]
    torch.manual_seed(key(seed, "predict", domain.name, case.id))
    method.eval()
    masks = []
    for start in range(0, len(indices), method.hparams.batch_size):
        batch = domain.batch(indices[start : start + method.hparams.batch_size], device, method.neighbours)
        with torch.no_grad():
            probability = method.predict_prompted(*batch) if method.uses_target_masks else method.predict(batch.image)
        if probability.shape != batch.mask.shape:
            raise RunError(
                f"predict gave {tuple(probability.shape)} for masks of {tuple(batch.mask.shape)}",
                "it must return (N, K, H, W) probabilities; `dgbench check` tells more",
            )
        if not torch.isfinite(probability).all():
            raise RunError(f"predict gave NaN for {domain.name}/{case.id}", "`dgbench check` may tell why")
        if protocol.resolution == "image":
            probability = to_image(probability, *case.shape[1:])
        masks.append((probability >= 0.5).cpu().numpy())
    if protocol.resolution == "image":
        reference = domain.reference(case.id)[kept]
    else:
        reference = domain.masks[indices].astype(bool)
    return (np.concatenate(masks) if masks else np.zeros_like(reference)), reference


def measure_domain(
    method: Method,
    domain: PreparedDomain,
    case_ids: Sequence[str],
    role: str,
    structures: Sequence[str],
    protocol: Protocol,
    seed: int,
    report: Callable[[str], None] = lambda case: None,
) -> Iterator[Tested]:
    """Predict and measure some cases of a domain, in their order."""
    for case_id in case_ids:
        case = domain.cases[case_id]
        prediction, reference = predict_case(method, domain, case, protocol, seed)
        spacing = case.spacing if protocol.distances == "physical" else (1.0, 1.0, 1.0)
        rows: list[dict[str, object]] = []
        for k, structure in enumerate(structures):
            scores = metrics.measure(prediction[:, k], reference[:, k], spacing)
            rows.append(
                {
                    "role": role,
                    "domain": domain.name,
                    "case": case_id,
                    "structure": structure,
                    "dice": scores.dice,
                    "asd": scores.asd,
                    "assd": scores.assd,
                    "hd95": scores.hd95,
                    "flag": scores.flag,
                    "n_reference": scores.n_reference,
                    "n_prediction": scores.n_prediction,
                    "diagonal": metrics.image_diagonal(reference[:, k].shape, spacing),
                }
            )
        report(case_id)
        yield Tested(domain.name, case_id, rows, prediction)


def cases_csv(tested: Sequence[Tested]) -> str:
    """The text of cases.csv: full precision, `inf` for a missed or falsely found structure, empty: not applicable."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for case in tested:
        for row in case.rows:
            writer.writerow({c: "" if isinstance(v, float) and np.isnan(v) else v for c, v in row.items()})
    return text.getvalue()


def write_predictions(tested: Sequence[Tested], path: Path) -> None:
    """All predicted masks in one .npz, eight voxels a byte; the array `index` says which is which. No pickle."""
    index = [[t.domain, t.case, list(t.prediction.shape)] for t in tested]
    arrays = {f"mask_{i}": np.packbits(t.prediction) for i, t in enumerate(tested)}
    content = io.BytesIO()
    np.savez_compressed(content, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    write_atomic(path, content.getvalue())


def read_predictions(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """Undo `write_predictions`: {(domain, case): bool (D, K, H, W)}."""
    with np.load(path, allow_pickle=False) as file:
        index = json.loads(file["index"].tobytes())
        return {
            (domain, case): np.unpackbits(file[f"mask_{i}"], count=int(np.prod(shape))).view(bool).reshape(shape)
            for i, (domain, case, shape) in enumerate(index)
        }
