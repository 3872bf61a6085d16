"""PCK@alpha, the share of keypoints predicted within alpha * threshold of the truth.

One plain record per pair, not a running mean, is what processes exchange and what is written to disk; every
number is computed from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.frame import Frame, as_frame
from utils.geometry import Size

PROTOCOLS = ("resized", "original")
Record = dict[str, Any]


def alpha_key(alpha: float) -> str:
    """The name of an alpha in records, tables and files: 0.1 -> "0.1"."""
    return f"{alpha:g}"


def _check_choice(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{what} must be one of {list(choices)}, got {value!r}")


def _check_protocol(protocol: str, frame: Frame | Size | None) -> None:
    _check_choice("protocol", protocol, PROTOCOLS)
    if protocol == "original" and frame is None:
        raise ValueError('protocol "original" needs the frame that predictions are in')


def compute_errors(
    pred_px: Tensor,
    batch: Mapping[str, Any],
    protocol: str = "resized",
    frame: Frame | Size | None = None,
) -> Tensor:
    """Distances ||prediction - truth|| in the protocol's frame.

    Args:
        pred_px: (B, N, 2) predictions, px of the resized target frame.
        batch: a pair batch. Protocol "resized" reads trg_kps (B, N, 2); "original" reads trg_kps_orig and
            trg_size (B, 2).
        protocol: "resized" measures in the network's frame (SD4Match); "original" maps the prediction to the
            original target image and measures there (common in the literature).
        frame: the network's frame, or the (H, W) of a stretched one; needed by "original" only.
    Returns:
        (B, N) float32 on the CPU, px.
    Raises:
        ValueError: unknown protocol, or "original" without a frame.
    """
    _check_protocol(protocol, frame)
    truth, _ = _read_truth(batch, protocol)
    pred = pred_px.detach().cpu().double()
    if protocol == "original":
        pred = as_frame(frame).to_orig(pred, batch["trg_size"].cpu())
    # Rounded to float32 only after the float64 arithmetic: a point exactly on the threshold stays on it.
    return torch.linalg.vector_norm(pred - truth.double(), dim=-1).float()


def _read_truth(batch: Mapping[str, Any], protocol: str) -> tuple[Tensor, Tensor]:
    """True points (B, N, 2) and thresholds (B,) float32, px of the protocol's frame, on the CPU."""
    suffix = "_orig" if protocol == "original" else ""
    return batch["trg_kps" + suffix].detach().cpu(), batch["pck_threshold" + suffix].detach().cpu().float()


def judge_errors(errors: Tensor, threshold: Tensor, alphas: Sequence[float]) -> Tensor:
    """(..., N, A) bool, error <= alpha * threshold, of errors (..., N) px, thresholds (...) px and A alphas."""
    radius = (threshold.double()[..., None] * torch.tensor(list(alphas), dtype=torch.float64)).float()
    return errors[..., :, None] <= radius[..., None, :]


def compute_hits(
    pred_px: Tensor,
    batch: Mapping[str, Any],
    alphas: Sequence[float],
    protocol: str = "resized",
    frame: Frame | Size | None = None,
) -> Tensor:
    """Which predictions count as correct: ||prediction - truth|| <= alpha * threshold.

    Args as `compute_errors`, and A alphas; of the batch kps_mask (B, N) and the protocol's pck_threshold or
    pck_threshold_orig (B,) are read as well.
    Returns (B, N, A) bool on the CPU; False for padded keypoints.
    """
    errors = compute_errors(pred_px, batch, protocol, frame)
    _, threshold = _read_truth(batch, protocol)
    return judge_errors(errors, threshold, alphas) & batch["kps_mask"].detach().cpu()[:, :, None]


class PCKEvaluator:
    """Collects one record per pair. Use a fresh one for each evaluation; join processes with `merge_records`.

    Args:
        localisers: names of the predictions to score.
        alphas: tolerances, relative to the threshold.
        protocol, frame: see `compute_hits`.
    """

    def __init__(
        self,
        localisers: Iterable[str],
        alphas: Iterable[float],
        protocol: str = "resized",
        frame: Frame | Size | None = None,
    ) -> None:
        _check_protocol(protocol, frame)
        self.localisers, self.alphas = tuple(localisers), tuple(alphas)
        if len({alpha_key(alpha) for alpha in self.alphas}) < len(self.alphas):
            raise ValueError(f"alphas must differ, got {self.alphas}")
        self.protocol, self.frame = protocol, None if frame is None else as_frame(frame)
        self._records: list[Record] = []

    def update(self, batch: Mapping[str, Any], predictions: Mapping[str, Tensor]) -> None:
        """Add the pairs of a batch; `predictions`: localiser -> (B, N, 2), px of the resized frame."""
        missing = [name for name in self.localisers if name not in predictions]
        if missing:
            raise ValueError(f"no predictions for {missing}; got {sorted(predictions)}")
        mask = batch["kps_mask"].detach().cpu()
        _, threshold = _read_truth(batch, self.protocol)
        settings = batch, self.protocol, self.frame
        errors = {name: compute_errors(predictions[name], *settings) for name in self.localisers}
        hits = {name: self._count_hits(errors[name], threshold, mask) for name in self.localisers}
        points = {name: self._list_points(predictions[name], batch) for name in self.localisers}
        n_points = mask.sum(dim=1).tolist()
        flags = {name: values.tolist() for name, values in batch.get("flags", {}).items()}
        for b, index in enumerate(batch["index"].tolist()):
            self._records.append(
                {
                    "index": index,
                    "pair_id": batch["pair_id"][b],
                    "category": batch["category"][b],
                    "src_identifier": batch["src_identifier"][b],
                    "trg_identifier": batch["trg_identifier"][b],
                    "protocol": self.protocol,
                    "n_points": n_points[b],
                    "flags": {name: values[b] for name, values in flags.items()},
                    "hits": {name: dict(zip(self._keys, hits[name][b], strict=True)) for name in self.localisers},
                    "threshold": threshold[b].item(),
                    "errors": {name: errors[name][b][mask[b]].tolist() for name in self.localisers},
                    "predictions": {name: points[name][b] for name in self.localisers if self.frame},
                }
            )

    @property
    def _keys(self) -> list[str]:
        return [alpha_key(alpha) for alpha in self.alphas]

    def _count_hits(self, errors: Tensor, threshold: Tensor, mask: Tensor) -> list[list[int]]:
        hits = judge_errors(errors, threshold, self.alphas) & mask[:, :, None]
        return hits.sum(dim=1).tolist()

    def _list_points(self, pred_px: Tensor, batch: Mapping[str, Any]) -> list[list[list[float]]]:
        """For each pair, the predicted (x, y) in px of the original target; empty lists without a frame."""
        if self.frame is None:
            return [[] for _ in batch["index"]]
        pred = self.frame.to_orig(pred_px.detach().cpu().double(), batch["trg_size"].cpu())
        counts = batch["kps_mask"].sum(dim=1).tolist()
        return [points[:count].tolist() for points, count in zip(pred, counts, strict=True)]

    def records(self) -> list[Record]:
        """The records so far: numbers, strings and dicts, fit for JSON and for exchange between processes.

        Keys: index, pair_id, category, src_identifier, trg_identifier, protocol, n_points, flags {name: int},
        hits {localiser: {alpha_key: number of correct keypoints}}, threshold (px of the protocol's frame), errors
        {localiser: [distance of each keypoint, px of that frame]} and, if a frame was given, predictions
        {localiser: [[x, y] of each keypoint in px of the original target]}.
        """
        return list(self._records)


def merge_records(*parts: Iterable[Record]) -> list[Record]:
    """The records of several processes, sorted by index; of an index seen twice the first is kept."""
    merged: dict[int, Record] = {}
    for part in parts:
        for record in part:
            merged.setdefault(record["index"], record)
    return [merged[index] for index in sorted(merged)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _group_pck(records: Sequence[Record], localiser: str, key: str, by: str) -> float | None:
    """PCK in [0, 1] of one group of records with points; None if there are none."""
    counts = [(record["hits"][localiser][key], record["n_points"]) for record in records]
    if by == "image":
        return _mean([hits / points for hits, points in counts])
    return sum(hits for hits, _ in counts) / sum(points for _, points in counts) if counts else None


def _check_records(records: Sequence[Record], localisers: Sequence[str], keys: Sequence[str]) -> None:
    if len({record["protocol"] for record in records}) > 1:
        raise ValueError("records of different PCK protocols cannot be averaged")
    for record in records:
        for name in localisers:
            missing = [key for key in keys if key not in record["hits"].get(name, {})]
            if missing:
                raise ValueError(f"pair {record['pair_id']!r} has no hits of {name!r} at alpha {missing}")


def summarise(
    records: Sequence[Record],
    localisers: Sequence[str],
    alphas: Sequence[float],
    by: str = "image",
    average: str = "pair",
) -> dict[str, Any]:
    """PCK of a set of records, overall and per category.

    Args:
        by: "image" is the mean over pairs of each pair's share of correct keypoints (SD4Match); "point" is
            the share of correct keypoints among all keypoints.
        average: what "all" is: "pair" pools every pair (SD4Match); "category" is the mean of the categories'
            values.
    Returns:
        {"protocol", "by", "average", "pairs", "pairs_without_points", "points",
         "categories": {category: {"pairs", "pairs_without_points", "points"}},
         "pck": {localiser: {alpha_key: {category: PCK in [0, 1], ..., "all": PCK}}}}.
        Pairs without keypoints are counted in "pairs_without_points" and in no mean ("pairs" counts the
        others); a category (or "all") left with no pair is None.
    Raises:
        ValueError: unknown `by` or `average`, records of several protocols, or records that lack a localiser
        or alpha.
    """
    _check_choice("by", by, ("image", "point"))
    _check_choice("average", average, ("pair", "category"))
    keys = [alpha_key(alpha) for alpha in alphas]
    _check_records(records, localisers, keys)
    groups = _group_by_category(records)
    scored = {category: [record for record in group if record["n_points"]] for category, group in groups.items()}
    return {
        "protocol": records[0]["protocol"] if records else None,
        "by": by,
        "average": average,
        **_count(records),
        "categories": {category: _count(group) for category, group in groups.items()},
        "pck": {name: {key: _pck_row(scored, name, key, by, average) for key in keys} for name in localisers},
    }


def _group_by_category(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {category: [] for category in sorted({r["category"] for r in records})}
    for record in records:
        groups[record["category"]].append(record)
    return groups


def _pck_row(
    scored: Mapping[str, Sequence[Record]], localiser: str, key: str, by: str, average: str
) -> dict[str, float | None]:
    """PCK of each category's records with points, and of "all"."""
    row = {category: _group_pck(group, localiser, key, by) for category, group in scored.items()}
    if average == "pair":
        everything = [record for group in scored.values() for record in group]
        return row | {"all": _group_pck(everything, localiser, key, by)}
    return row | {"all": _mean([value for value in row.values() if value is not None])}


def _count(records: Sequence[Record]) -> dict[str, int]:
    """Numbers of scored pairs, of pairs without keypoints, and of keypoints."""
    pairs = sum(record["n_points"] > 0 for record in records)
    return {
        "pairs": pairs,
        "pairs_without_points": len(records) - pairs,
        "points": sum(record["n_points"] for record in records),
    }
