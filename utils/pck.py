"""PCK@alpha, the share of keypoints predicted within alpha * threshold of the truth.

The scores of a test are one table with a row per pair, not a running mean: it is what processes exchange and what is
written to disk, and every number is computed from it. Its columns:

    index                    place of the pair in the split
    pair_id, category, src_identifier, trg_identifier, protocol
    n_points                 number of keypoints
    flag:NAME                SPair's difficulty flags, -1 = unknown
    LOCALISER@ALPHA          number of correct keypoints
    threshold                px of the protocol's frame, float32
    error:LOCALISER          (n_points,) float32, distance of each prediction from the truth, px of that frame
    point:LOCALISER          (n_points, 2) float64, the predictions, px of the original target
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from utils.frame import Frame, as_frame
from utils.geometry import Size

PROTOCOLS = ("resized", "original")
IDENTITY = ("index", "pair_id", "category", "src_identifier", "trg_identifier", "protocol", "n_points")
FLAG, ERROR, POINT = "flag:", "error:", "point:"  # what the names of such columns start with
TOTAL = "all"  # the name of the mean over everything: no category may bear it


class PredictionError(ValueError):
    """A prediction or a threshold that is no number: a score made of it would mean nothing."""


def alpha_key(alpha: float) -> str:
    """The name of an alpha in records, tables and files: 0.1 -> "0.1"."""
    return f"{alpha:g}"


def hits_column(localiser: str, alpha: float) -> str:
    """The column of a localiser's hits: "nn@0.1"."""
    return f"{localiser}@{alpha_key(alpha)}"


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
    """(..., N, A) bool, error <= alpha * threshold, Eq. (9); errors (..., N), threshold (...) px, A alphas."""
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
    """Collects the scores of pairs. Use a fresh one for each evaluation; join processes with `merge_scores`.

    Args:
        localisers: names of the predictions to score.
        alphas: tolerances, relative to the threshold.
        protocol, frame: see `compute_hits`. Without a frame the predictions are not kept.
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
        self._columns: dict[str, list] = {}

    def update(self, batch: Mapping[str, Any], predictions: Mapping[str, Tensor]) -> None:
        """Add the pairs of a batch; `predictions`: localiser -> (B, N, 2), px of the resized frame.

        Raises PredictionError for a keypoint whose prediction, or a pair whose threshold, is not finite.
        """
        missing = [name for name in self.localisers if name not in predictions]
        if missing:
            raise ValueError(f"no predictions for {missing}; got {sorted(predictions)}")
        mask = batch["kps_mask"].detach().cpu()
        _, threshold = _read_truth(batch, self.protocol)
        _refuse_not_finite("the threshold", threshold, batch)
        hits, kept = {}, {"threshold": list(threshold.numpy())}
        for name in self.localisers:
            pred = predictions[name].detach().cpu()
            _refuse_not_finite(f"a point predicted by {name}", torch.where(mask[..., None], pred, 0.0), batch)
            errors = compute_errors(pred, batch, self.protocol, self.frame)
            counts = (judge_errors(errors, threshold, self.alphas) & mask[:, :, None]).sum(dim=1)
            hits |= {hits_column(name, alpha): counts[:, a].tolist() for a, alpha in enumerate(self.alphas)}
            kept[ERROR + name] = _select(errors, mask)
            if self.frame is not None:
                kept[POINT + name] = _select(self.frame.to_orig(pred.double(), batch["trg_size"].cpu()), mask)
        pairs = {
            "index": batch["index"].tolist(),
            **{name: list(batch[name]) for name in ("pair_id", "category", "src_identifier", "trg_identifier")},
            "protocol": [self.protocol] * len(mask),
            "n_points": mask.sum(dim=1).tolist(),
            **{FLAG + name: values.tolist() for name, values in batch.get("flags", {}).items()},
        }
        for name, values in (pairs | hits | kept).items():
            self._columns.setdefault(name, []).extend(values)

    def scores(self) -> pd.DataFrame:
        """The scores so far, in the order of the updates; the columns are listed at the head of this module."""
        return pd.DataFrame(self._columns or {name: [] for name in IDENTITY})


def _select(values: Tensor, mask: Tensor) -> list[np.ndarray]:
    """The entries of values (B, N, ...) where mask (B, N) is set, an array for each of B."""
    return [row[chosen].numpy() for row, chosen in zip(values, mask, strict=True)]


def _refuse_not_finite(what: str, values: Tensor, batch: Mapping[str, Any]) -> None:
    """values: (B, ...), one entry for each pair of the batch."""
    bad = (~torch.isfinite(values)).flatten(1).any(dim=1) if values.dim() > 1 else ~torch.isfinite(values)
    if bad.any():
        pair = batch["pair_id"][int(bad.int().argmax())]
        raise PredictionError(f"pair {pair!r}: {what} is not finite, so that nothing can be scored")


def merge_scores(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """The scores of several processes, sorted by index; of an index seen twice the first is kept."""
    parts = list(parts)
    whole = pd.concat([part for part in parts if len(part)] or parts[:1])
    return whole.drop_duplicates("index").sort_values("index", ignore_index=True)


def weigh(scores: pd.DataFrame, columns: Sequence[str], by: str) -> tuple[pd.DataFrame, pd.Series]:
    """Gains (of each column) and weights of the pairs: the PCK of a group is the ratio of their sums over it.

    by: "image" is the mean over pairs of each pair's share of correct keypoints (SD4Match); "point" is the share of
    correct keypoints among all keypoints. Every pair must have keypoints.
    """
    _check_choice("by", by, ("image", "point"))
    if missing := [name for name in columns if name not in scores]:
        raise ValueError(f"the scores hold no {', '.join(missing)}")
    points, hits = scores["n_points"], scores[list(columns)]
    return (hits.div(points, axis=0), points * 0 + 1) if by == "image" else (hits, points)


def summarise(
    scores: pd.DataFrame,
    localisers: Sequence[str],
    alphas: Sequence[float],
    by: str = "image",
    average: str = "pair",
) -> dict[str, Any]:
    """PCK of a table of scores, overall and per category.

    Args:
        by: see `weigh`.
        average: what "all" is: "pair" pools every pair (SD4Match); "category" is the mean of the categories'
            values.
    Returns:
        {"protocol", "by", "average", "pairs", "pairs_without_points", "points",
         "categories": {category: {"pairs", "pairs_without_points", "points"}},
         "pck": {localiser: {alpha_key: {category: PCK in [0, 1], ..., "all": PCK}}}}.
        Pairs without keypoints are counted in "pairs_without_points" and in no mean ("pairs" counts the
        others); a category (or "all") left with no pair is None.
    Raises:
        ValueError: unknown `by` or `average`, scores of several protocols, scores that lack a localiser or alpha, or
        a category that is called "all".
    """
    _check_choice("average", average, ("pair", "category"))
    if scores["protocol"].nunique() > 1:
        raise ValueError("scores of different PCK protocols cannot be averaged")
    categories = sorted(scores["category"].unique())
    if TOTAL in categories:
        raise ValueError(f'a category is called "{TOTAL}", which is the name of the mean over all: rename it')
    columns = [hits_column(name, alpha) for name in localisers for alpha in alphas]
    scored = scores[scores["n_points"] > 0]
    gains, weights = weigh(scored, columns, by)
    groups = gains.groupby(scored["category"]).sum(), weights.groupby(scored["category"]).sum()
    pck = groups[0].div(groups[1], axis=0)  # (categories with a scored pair, columns)
    total = pck.mean() if average == "category" else gains.sum() / weights.sum()
    pck = pck.reindex(categories)
    pck.loc[TOTAL] = total
    pck = pck.astype(object).where(pck.notna(), None)
    return {
        "protocol": scores["protocol"].iloc[0] if len(scores) else None,
        "by": by,
        "average": average,
        **_count(scores),
        "categories": {category: _count(scores[scores["category"] == category]) for category in categories},
        "pck": {
            name: {alpha_key(alpha): pck[hits_column(name, alpha)].to_dict() for alpha in alphas} for name in localisers
        },
    }


def _count(scores: pd.DataFrame) -> dict[str, int]:
    """Numbers of scored pairs, of pairs without keypoints, and of keypoints."""
    pairs = int((scores["n_points"] > 0).sum())
    return {"pairs": pairs, "pairs_without_points": len(scores) - pairs, "points": int(scores["n_points"].sum())}
