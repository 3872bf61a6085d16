"""What else per-pair scores say than PCK: every number here is computed from the table of `utils.pck` alone.

- geometry-aware PCK: PCK over the points that another point of the target can be taken for (`select_aware`)
- PCK-dagger: right only if no other of the pair's points lies nearer to the prediction (`refuse_nearer`)
- confusion of sides: the share of wrong predictions that land on the part of the other side (`count_confused`)
- KAP: whether similarity tells shown points from hidden ones (`keypoint_average_precision`)

The first two turn a table of scores into another one, of which everything that is computed of scores can be asked.
How PCK depends on the difference of the two views is a breakdown of utils.statistics.
"""

import numpy as np
import pandas as pd

from utils.pck import AWARE, ERROR, KAP, OTHER, PARTNER, alpha_key, find_localisers, judge
from utils.statistics import count_hits


class MetricError(ValueError):
    """A number that these scores cannot give; the message says what they lack."""


def choose(scores: pd.DataFrame, points: str = "all", dagger: bool = False) -> pd.DataFrame:
    """The scores over all points or, "aware", the geometry-aware ones, for PCK or PCK-dagger."""
    if dagger:  # before points are left out: any of the pair may be nearer
        scores = refuse_nearer(scores)
    return select_aware(scores) if points == "aware" else scores


def select_aware(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores over the geometry-aware points alone. Pairs that have none count as pairs without points."""
    _require(scores, AWARE, "which points are geometry-aware")
    masks = [mask.astype(bool) for mask in scores[AWARE]]
    chosen = scores.assign(n_points=[int(mask.sum()) for mask in masks])
    for name in scores:
        if name.startswith((ERROR, OTHER, PARTNER)) or name == AWARE:
            chosen[name] = [values[mask] for values, mask in zip(scores[name], masks, strict=True)]
    return recount(chosen)


def measure_aware(scores: pd.DataFrame) -> dict[str, float | int]:
    """How many pairs and points are geometry-aware, and their shares of those that have, or are, points."""
    aware = select_aware(scores)["n_points"]
    pairs, points = int((scores["n_points"] > 0).sum()), int(scores["n_points"].sum())
    found = {"pairs": int((aware > 0).sum()), "points": int(aware.sum())}
    return found | {
        "share_of_pairs": found["pairs"] / max(1, pairs),
        "share_of_points": found["points"] / max(1, points),
    }


def refuse_nearer(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with an infinite error where another of the pair's points is nearer to the prediction: PCK-dagger."""
    chosen = scores.copy()
    for name in find_localisers(scores):
        _require(scores, OTHER + name, "how far the pair's other points are from the predictions")
        chosen[ERROR + name] = [
            np.where(other < error, np.float32(np.inf), error)
            for error, other in zip(scores[ERROR + name], scores[OTHER + name], strict=True)
        ]
    return recount(chosen)


def recount(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the hits that their errors give, at the alphas of their columns."""
    for name in find_localisers(scores):
        alphas = [float(column.removeprefix(f"{name}@")) for column in scores if column.startswith(f"{name}@")]
        scores = count_hits(scores, name, alphas)
    return scores


def count_confused(scores: pd.DataFrame, localiser: str, alpha: float) -> dict[str, float | int | None]:
    """How many predictions are wrong at an alpha, how many of them land on the part of the other side, their share.

    To land on a part is to be as near to it as a right prediction has to be. A part that the target does not show, or
    that lies on the plane of symmetry, cannot be landed on.
    """
    _require(scores, PARTNER + localiser, "how far the other side's parts are from the predictions")
    right = judge(scores, ERROR + localiser, [alpha])[:, 0]
    there = judge(scores, PARTNER + localiser, [alpha])[:, 0]
    wrong, confused = int((~right).sum()), int((~right & there).sum())
    return {"wrong": wrong, "confused": confused, "share": confused / wrong if wrong else None}


def keypoint_average_precision(scores: pd.DataFrame, alpha: float, pooled: bool = False) -> float | None:
    """KAP in [0, 1] (Spherical Maps): the mean over pairs, or of all similarities at once; None if there are none.

    A pair without a positive has no average precision and is left out of the mean.
    """
    columns = [f"{KAP}{sign}@{alpha_key(alpha)}" for sign in "+-"]
    for column in columns:
        _require(scores, column, f"the similarities that KAP needs at alpha {alpha:g} (EVAL.KAP)")
    pairs = list(zip(*(scores[column] for column in columns), strict=True))
    if pooled:
        pairs = [tuple(np.concatenate([np.empty(0, np.float32), *side]) for side in zip(*pairs, strict=True))]
    values = [average_precision(positive, negative) for positive, negative in pairs if len(positive)]
    return float(np.mean(values)) if values else None


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """sum_n (R_n - R_{n - 1}) P_n over the thresholds of the scores (P,) of positives and (N,) of negatives.

    Equal scores are taken in together, as scikit-learn's average_precision_score does.
    """
    values = np.concatenate([positive, negative])
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(order < len(positive))
    last = np.flatnonzero(np.diff(values[order], append=np.nan) != 0)  # of each run of equals
    precision, recall = hits[last] / (last + 1), hits[last] / len(positive)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def _require(scores: pd.DataFrame, column: str, what: str) -> None:
    if column not in scores:
        raise MetricError(f"these scores do not say {what} (no column {column!r}): run the test again")
