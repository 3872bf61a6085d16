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
    inequality               "<=" or "<", what an error must be to alpha x threshold; "<=" in tables that do not say

and what utils.metrics reads:

    src_azimuth, trg_azimuth  ids of the views, -1 = unknown
    aware                    (n_points,) 1 = geometry-aware, 0 = not, or not known
    other:LOCALISER          (n_points,) float32, distance of predictions from the nearest other of the pair's points
    partner:LOCALISER        (n_points,) float32, that from the part of the other side; both inf where there is none
    mirrored                 1 = pose alignment has mirrored the source (POSE.ALIGN)
    kap+@ALPHA, kap-@ALPHA   similarities of positives and negatives, as many as there are, in [0, 1] (EVAL.KAP)
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from utils.error import UserError
from utils.frame import Frame

PROTOCOLS = ("resized", "original")
COMPARE = {"<=": operator.le, "<": operator.lt}  # of an error with alpha x threshold
IDENTITY = ("index", "pair_id", "category", "src_identifier", "trg_identifier", "protocol", "n_points")
FLAG, ERROR, POINT = "flag:", "error:", "point:"  # what the names of such columns start with
OTHER, PARTNER, KAP = "other:", "partner:", "kap"
AWARE, AZIMUTH, INEQUALITY, MIRRORED = "aware", "azimuth", "inequality", "mirrored"
TOTAL = "all"  # the name of the mean over everything: no category may bear it


class PredictionError(UserError, ValueError):
    """A prediction or a threshold that is no number: a score made of it would mean nothing."""


def alpha_key(alpha: float) -> str:
    """The name of an alpha in records, tables and files: 0.1 -> "0.1"."""
    return f"{alpha:g}"


def hits_column(localiser: str, alpha: float) -> str:
    """The column of a localiser's hits: "nn@0.1"."""
    return f"{localiser}@{alpha_key(alpha)}"


def compute_errors(
    pred_px: Tensor, batch: Mapping[str, Any], protocol: str = "resized", frame: Frame | None = None
) -> Tensor:
    """Distances ||prediction - truth||, (B, N) float32 on the CPU, px of the protocol's frame.

    Args:
        pred_px: (B, N, 2) predictions, px of the network's frame.
        batch: a pair batch. Protocol "resized" reads trg_kps (B, N, 2); "original" reads trg_kps_orig and
            trg_size (B, 2).
        protocol: "resized" measures in the network's frame (SD4Match); "original" maps the prediction to the
            original target image and measures there (common in the literature).
        frame: the network's; "original" needs it.
    """
    truth, _ = _read_truth(batch, protocol)
    # Rounded to float32 only after the float64 arithmetic: a point exactly on the threshold stays on it.
    return _distance(_into_frame(pred_px, batch, protocol, frame), truth)


def _into_frame(pred_px: Tensor, batch: Mapping[str, Any], protocol: str, frame: Frame | None) -> Tensor:
    """The predictions in px of the protocol's frame, float64 on the CPU."""
    pred = pred_px.detach().cpu().double()
    return frame.to_orig(pred, batch["trg_size"].cpu()) if protocol == "original" else pred


def _distance(points: Tensor, others: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points - others.double(), dim=-1).float()


def compute_other_errors(
    pred_px: Tensor, batch: Mapping[str, Any], protocol: str = "resized", frame: Frame | None = None
) -> tuple[Tensor, Tensor]:
    """How far predictions are from what they could be confused with; args as `compute_errors`.

    Returns (B, N) float32 each: distance from the nearest other keypoint that both images show, and from the part of
    the other side, which the target shows alone or not; inf where there is none.
    """
    pred, (truth, _) = _into_frame(pred_px, batch, protocol, frame), _read_truth(batch, protocol)
    mask, n = batch["kps_mask"].cpu(), truth.shape[1]
    distances = _distance(pred[:, :, None], truth[:, None])  # (B, N, N)
    nearest = distances.masked_fill(~mask[:, None] | torch.eye(n, dtype=torch.bool), torch.inf).amin(dim=-1)
    if "trg_seen" not in batch:
        return nearest, torch.full_like(nearest, torch.inf)
    ids, partner = (batch[key].cpu() for key in ("kps_ids", "kps_partner"))
    seen = batch["trg_seen" + ("_orig" if protocol == "original" else "")].cpu()
    has_partner = (partner >= 0) & (partner != ids)
    is_partner = (batch["trg_seen_ids"].cpu()[:, None] == partner[..., None]) & has_partner[..., None]
    return nearest, _distance(pred[:, :, None], seen[:, None]).masked_fill(~is_partner, torch.inf).amin(dim=-1)


def _read_truth(batch: Mapping[str, Any], protocol: str) -> tuple[Tensor, Tensor]:
    """True points (B, N, 2) and thresholds (B,) float32, px of the protocol's frame, on the CPU."""
    suffix = "_orig" if protocol == "original" else ""
    return batch["trg_kps" + suffix].detach().cpu(), batch["pck_threshold" + suffix].detach().cpu().float()


def judge_errors(errors: Tensor, threshold: Tensor, alphas: Sequence[float], inequality: str = "<=") -> Tensor:
    """(..., N, A) bool, error <= alpha * threshold, Eq. (9); errors (..., N), threshold (...) px, A alphas."""
    radius = (threshold.double()[..., None] * torch.tensor(list(alphas), dtype=torch.float64)).float()
    return COMPARE[inequality](errors[..., :, None], radius[..., None, :])


def judge(scores: pd.DataFrame, column: str, alphas: Sequence[float]) -> np.ndarray:
    """(all points, A) bool: which distances of a column, pair after pair, are within alpha * threshold."""
    lengths = np.concatenate([*scores[column], np.empty(0, np.float32)])
    thresholds = scores["threshold"].to_numpy(np.float64)[:, None] * np.array(alphas, dtype=np.float64)
    radius = thresholds.astype(np.float32)[np.repeat(np.arange(len(scores)), scores["n_points"])]
    return COMPARE[find_inequality(scores)](lengths[:, None], radius)


def find_inequality(scores: pd.DataFrame) -> str:
    """What errors were compared with; tables that do not say so are of "<="."""
    return scores[INEQUALITY].iloc[0] if INEQUALITY in scores and len(scores) else "<="


def find_localisers(scores: pd.DataFrame) -> list[str]:
    """Those whose errors the scores hold."""
    return [name.removeprefix(ERROR) for name in scores if name.startswith(ERROR)]


def compute_hits(
    pred_px: Tensor,
    batch: Mapping[str, Any],
    alphas: Sequence[float],
    protocol: str = "resized",
    frame: Frame | None = None,
    inequality: str = "<=",
) -> Tensor:
    """Which predictions are right at A alphas, (B, N, A) bool on the CPU; False for padded keypoints.

    Args as `compute_errors`.
    """
    errors = compute_errors(pred_px, batch, protocol, frame)
    _, threshold = _read_truth(batch, protocol)
    return judge_errors(errors, threshold, alphas, inequality) & batch["kps_mask"].detach().cpu()[:, :, None]


class PCKEvaluator:
    """Collects the scores of pairs. Use a fresh one for each evaluation; join processes with `merge_scores`.

    Args:
        localisers: names of the predictions to score.
        alphas: tolerances, relative to the threshold.
        protocol, frame: see `compute_errors`. Without a frame the predictions are not kept.
        inequality: what an error must be to alpha * threshold, "<=" (SD4Match) or "<" (GeoAware).
    """

    def __init__(
        self,
        localisers: Iterable[str],
        alphas: Iterable[float],
        protocol: str = "resized",
        frame: Frame | None = None,
        inequality: str = "<=",
    ) -> None:
        self.localisers, self.alphas = tuple(localisers), tuple(alphas)
        self.protocol, self.frame, self.inequality = protocol, frame, inequality
        self._columns: dict[str, list] = {}

    def update(
        self, batch: Mapping[str, Any], predictions: Mapping[str, Tensor], more: Mapping[str, Sequence] | None = None
    ) -> None:
        """Add the pairs of a batch; `predictions`: localiser -> (B, N, 2), px of the resized frame.

        more: further columns, with an entry for each pair.

        Raises PredictionError for a keypoint whose prediction, or a pair whose threshold, is not finite.
        """
        mask = batch["kps_mask"].detach().cpu()
        _, threshold = _read_truth(batch, self.protocol)
        _refuse_not_finite("the threshold", threshold, batch)
        hits, kept = {}, {"threshold": list(threshold.numpy())}
        for name in self.localisers:
            pred = predictions[name].detach().cpu()
            _refuse_not_finite(f"a point predicted by {name}", torch.where(mask[..., None], pred, 0.0), batch)
            errors = compute_errors(pred, batch, self.protocol, self.frame)
            right = judge_errors(errors, threshold, self.alphas, self.inequality)
            counts = (right & mask[:, :, None]).sum(dim=1)
            hits |= {hits_column(name, alpha): counts[:, a].tolist() for a, alpha in enumerate(self.alphas)}
            kept[ERROR + name] = _select(errors, mask)
            others = compute_other_errors(pred, batch, self.protocol, self.frame)
            kept |= {key + name: _select(values, mask) for key, values in zip((OTHER, PARTNER), others, strict=True)}
            if self.frame is not None:
                kept[POINT + name] = _select(self.frame.to_orig(pred.double(), batch["trg_size"].cpu()), mask)
        pairs = {
            "index": batch["index"].tolist(),
            **{name: list(batch[name]) for name in ("pair_id", "category", "src_identifier", "trg_identifier")},
            "protocol": [self.protocol] * len(mask),
            "n_points": mask.sum(dim=1).tolist(),
            INEQUALITY: [self.inequality] * len(mask),
            **{FLAG + name: values.tolist() for name, values in batch.get("flags", {}).items()},
        }
        if "kps_aware" in batch:
            pairs |= {f"{side}_{AZIMUTH}": batch[f"{side}_{AZIMUTH}"].tolist() for side in ("src", "trg")}
            kept[AWARE] = _select(batch["kps_aware"].cpu().int(), mask)
        for name, values in (pairs | hits | kept | dict(more or {})).items():
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
        ValueError: scores of several protocols, or that lack a localiser or alpha.
    """
    if scores["protocol"].nunique() > 1 or (INEQUALITY in scores and scores[INEQUALITY].nunique() > 1):
        raise ValueError("scores of different PCK protocols cannot be averaged")
    categories = sorted(scores["category"].unique())
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
        INEQUALITY: find_inequality(scores),
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
