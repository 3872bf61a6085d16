"""How well scores rank candidates: accuracy, recall, Winoground's three scores; ties counted in three ways, intervals.

Scores of an item are those of its candidates, number `text * I + image` (T texts, I images); higher is better. A table
of scores has a row per item, the columns of `IDENTITY`, and for each way of scoring one that holds an array (T * I,).
"strict": the true candidate must beat all others; "random": the expectation if ties were broken at random; "release":
as DSD's release, where the first of equals wins for k = 1, and the true one, which comes first, loses for k > 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

IDENTITY = ("index", "item_id", "category", "n_texts", "n_images", "both_ways")
TIES = ("strict", "random", "release")
TOTAL = "all"
RECALLS = (1, 5)  # k of R@k


def judge(scores: pd.DataFrame, column: str) -> dict[str, dict[str, np.ndarray]]:
    """{measure: {way of counting ties: (n,) in [0, 1]}} of the items of a table."""
    if not len(scores):
        return {}
    values = np.stack(scores[column].to_numpy())
    if scores["both_ways"].iloc[0]:
        return judge_both_ways(values.reshape(len(values), scores["n_texts"].iloc[0], -1))
    return {f"R@{k}": recall(values, k) for k in RECALLS if k == 1 or k < values.shape[1]}


def recall(values: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Whether candidate 0 is among the best k of values (n, candidates)."""
    true, others = values[:, :1], values[:, 1:]
    above, equal = (others > true).sum(axis=1), (others == true).sum(axis=1)
    strict = (above + equal < k).astype(float)
    return {
        "strict": strict,
        "random": np.clip((k - above) / (equal + 1), 0, 1),  # k - above places are left to equal + 1 candidates
        "release": (above == 0).astype(float) if k == 1 else strict,
    }


def judge_both_ways(values: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Winoground's scores of values (n, T, T): text k belongs to image k.

    text: every image prefers its own text; image: every text its own image; group: both. There is no release to follow.
    """
    true = np.diagonal(values, axis1=1, axis2=2)  # (n, T)
    own = np.eye(values.shape[1], dtype=bool)
    # of an image (column) all texts, of a text (row) all images
    text, image = win(true[:, None, :], values), win(true[:, :, None], values)
    found = {}
    for name, wins in {"text": [text], "image": [image], "group": [text, image]}.items():
        chances = [np.where(own, 1.0, chance) for chance in wins]
        random = np.prod([chance.prod(axis=(1, 2)) for chance in chances], axis=0)
        strict = np.all([(chance == 1).all(axis=(1, 2)) for chance in chances], axis=0).astype(float)
        found[name] = {"strict": strict, "random": random, "release": strict}
    return found


def margins(scores: pd.DataFrame, column: str) -> np.ndarray:
    """(n,) true score minus the best that it must beat, of each item of a table; the least if there are several."""
    values = np.stack(scores[column].to_numpy())
    if not scores["both_ways"].iloc[0]:
        return values[:, 0] - values[:, 1:].max(axis=1)
    values = values.reshape(len(values), scores["n_texts"].iloc[0], -1)
    others = np.where(np.eye(values.shape[1], dtype=bool), -np.inf, values)
    rivals = np.maximum(others.max(axis=1), others.max(axis=2))
    return (np.diagonal(values, axis1=1, axis2=2) - rivals).min(axis=1)


def win(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """1 where the true score is larger, 0.5 in a tie, else 0."""
    return np.where(true == other, 0.5, true > other)


def summarise(scores: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """{column: {measure: {category or "all": {"strict", "random", "release", "low", "high"}}}}.

    low, high: Wilson's 95 % interval of "strict". There is no entry for a category without items.
    """
    groups = {str(name): group for name, group in scores.groupby("category")} | {TOTAL: scores}
    found: dict[str, Any] = {}
    for column in columns:
        for category, group in groups.items():
            for measure, ways in judge(group, column).items():
                rates = {way: float(hits.mean()) for way, hits in ways.items()}
                low, high = interval(int(ways["strict"].sum()), len(group))
                found.setdefault(column, {}).setdefault(measure, {})[category] = {**rates, "low": low, "high": high}
    return found


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    bounds = stats.binomtest(hits, count).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)


def compare(first: pd.DataFrame, second: pd.DataFrame, columns: tuple[str, str], measure: str) -> dict[str, float]:
    """Second minus first on the same items, strict: difference, its bootstrap interval, McNemar's exact p-value.

    ValueError if the items differ.
    """
    if list(first["item_id"]) != list(second["item_id"]):
        raise ValueError("the two results are not of the same items")
    before, after = (
        judge(table, column)[measure]["strict"] for table, column in zip((first, second), columns, strict=True)
    )
    gains = after - before
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    found = stats.bootstrap((gains,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    p_value = stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    bounds = found.confidence_interval
    return {"difference": float(gains.mean()), "low": float(bounds.low), "high": float(bounds.high), "p": p_value}


def find_best(measures: Mapping[str, Any]) -> str:
    """The measure that a validation is judged by: R@1, or the group score."""
    return "group" if "group" in measures else "R@1"
