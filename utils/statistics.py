"""What per-pair scores say beyond their mean: curves, breakdowns, intervals, and whether two methods differ.

Everything is computed from the tables of `engine.result.read_scores`; a mean is always that of `utils.pck.summarise`.
Bootstrap and permutation test are scipy's and speak of the choice of pairs; `spread` speaks of the chance in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from utils.pck import AZIMUTH, ERROR, FLAG, alpha_key, hits_column, judge, summarise, weigh

ALPHAS = tuple(round(0.01 * step, 2) for step in range(1, 21))  # of a PCK curve
LEVELS = {  # what SPair's flags mean
    "viewpoint_variation": ("easy", "medium", "hard"),
    "scale_variation": ("easy", "medium", "hard"),
    "truncation": ("none", "source", "target", "both"),
    "occlusion": ("none", "source", "target", "both"),
}
VIEWS = 8  # azimuth ids, steps of 45 degrees
DRAWS, LEVEL, SEED = 2000, 0.95, 0  # of bootstrap and permutations
BATCH = 200  # draws held at a time


@dataclass(frozen=True)
class Measure:
    """Which number is meant: PCK of a localiser at an alpha, by and average as in `utils.pck.summarise`.

    points, dagger: what `utils.metrics.choose` has made the scores of.
    """

    localiser: str = "kernelsoftmax"
    alpha: float = 0.1
    by: str = "image"
    average: str = "pair"
    points: str = "all"
    dagger: bool = False

    @property
    def title(self) -> str:
        """What it is called in a table."""
        return f"{'geometry-aware ' if self.points == 'aware' else ''}PCK{'-dagger' if self.dagger else ''}"

    @property
    def column(self) -> str:
        return hits_column(self.localiser, self.alpha)


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of an interval around it; NaN where there is too little to give one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """B minus A over the same pairs."""

    difference: Interval  # paired bootstrap
    p_value: float  # two-sided sign-flip permutation test
    pairs: int


def compute_pck(scores: pd.DataFrame, measure: Measure) -> float | None:
    """PCK in [0, 1] over all pairs; None without a scored pair."""
    summary = summarise(scores, [measure.localiser], [measure.alpha], measure.by, measure.average)
    return summary["pck"][measure.localiser][alpha_key(measure.alpha)]["all"]


def compute_curve(
    scores: pd.DataFrame, measure: Measure, alphas: Sequence[float] = ALPHAS
) -> dict[float, float | None]:
    """PCK at each alpha (`measure.alpha` is not used), from the stored errors and thresholds."""
    judged = count_hits(scores, measure.localiser, alphas)
    rows = summarise(judged, [measure.localiser], alphas, measure.by, measure.average)["pck"][measure.localiser]
    return {alpha: rows[alpha_key(alpha)]["all"] for alpha in alphas}


def count_hits(scores: pd.DataFrame, localiser: str, alphas: Sequence[float]) -> pd.DataFrame:
    """The scores with the hits of one localiser at these alphas; the same arithmetic as `utils.pck.judge_errors`."""
    owner, right = np.repeat(np.arange(len(scores)), scores["n_points"]), judge(scores, ERROR + localiser, alphas)
    columns = {
        hits_column(localiser, alpha): np.bincount(owner[right[:, a]], minlength=len(scores))
        for a, alpha in enumerate(alphas)
    }
    return scores.assign(**columns)


def list_groups(scores: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """("all", ""), ("category", name), (flag, level) of SPair, ("view", steps) -> the scored pairs of that kind."""
    scored = scores[scores["n_points"] > 0]
    groups = {("all", ""): scored}
    groups |= {("category", name): group for name, group in scored.groupby("category")}
    for flag, levels in LEVELS.items():
        for value, level in enumerate(levels):
            if FLAG + flag in scored and (chosen := scored[FLAG + flag] == value).any():
                groups[flag, level] = scored[chosen]
    groups |= {("view", name): group for name, group in split_by_view(scored).items()}
    return groups


def split_by_view(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The scores by steps between the two views, "0" to "4" (d = |a - b|, min(d, 8 - d)), and of "mirror" pairs.

    A pair is a mirror pair if one object is seen from the one half of the circle (ids 0 to 3) and the other from the
    other. Pairs whose views are not known are in none, and bins without a scored pair are left out.
    """
    if f"src_{AZIMUTH}" not in scores:
        return {}
    a, b = (scores[f"{side}_{AZIMUTH}"] for side in ("src", "trg"))
    known, steps = (a >= 0) & (b >= 0), (a - b).abs()
    steps = np.minimum(steps, VIEWS - steps)
    half = VIEWS // 2
    groups = {str(step): scores[known & (steps == step)] for step in range(half + 1)}
    groups["mirror"] = scores[known & ((a < half) != (b < half))]
    return {name: group for name, group in groups.items() if (group["n_points"] > 0).any()}


def sensitivity(values: Sequence[float]) -> float | None:
    """(best - worst) / best of the PCK of the bins of `split_by_view`; None if there is none or all are 0."""
    return (max(values) - min(values)) / max(values) if len(values) and max(values) > 0 else None


def break_down(scores: pd.DataFrame, measure: Measure, draws: int = DRAWS) -> pd.DataFrame:
    """PCK and its interval of every group of `list_groups`: index (kind, group), columns pairs, value, low, high."""
    rows = {}
    for name, group in list_groups(scores).items():
        if found := bootstrap(group, measure, draws=draws):
            rows[name] = {"pairs": len(group), "value": found.value, "low": found.low, "high": found.high}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["kind", "group"])
    return table


def bootstrap(scores: pd.DataFrame, measure: Measure, draws: int = DRAWS) -> Interval | None:
    """PCK with its percentile bootstrap interval over pairs; None without a scored pair.

    Pairs are drawn with replacement from all, or from each category if the categories are averaged.
    """
    value = compute_pck(scores, measure)
    if value is None:
        return None
    scored = scores[scores["n_points"] > 0]
    gains, weights = weigh(scored, [measure.column], measure.by)
    bounds = _resample(gains[measure.column], weights, _group(scored, measure), draws)
    return Interval(value, *bounds)


def compare(first: pd.DataFrame, second: pd.DataFrame, measure: Measure, draws: int = DRAWS) -> Comparison:
    """Does the second method differ from the first, on the same pairs? See `select_common`.

    The interval resamples pairs as `bootstrap` does, keeping both methods' results of a pair together; the test swaps
    the two results of random pairs. Raises ValueError if the pairs differ or none is scored.
    """
    if different := set(first["pair_id"]) ^ set(second["pair_id"]):
        raise ValueError(f"the two results are not of the same pairs: {len(different)} pairs are in only one of them")
    first, second = (table[table["n_points"] > 0] for table in select_common([first, second]))
    if not len(first):
        raise ValueError("no pair of the two results has keypoints")
    (before, weights), (after, _) = (weigh(table, [measure.column], measure.by) for table in (first, second))
    gains, groups = (after - before)[measure.column], _group(first, measure)
    value = compute_pck(second, measure) - compute_pck(first, measure)
    bounds = _resample(gains, weights, groups, draws)
    return Comparison(Interval(value, *bounds), _test_signs(gains, weights, groups, draws), len(first))


def select_common(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of the pairs that all tables have, in the order of the first.

    Raises ValueError if there are none, or a pair was judged under another protocol or with other keypoints.
    """
    common = set.intersection(*(set(table["pair_id"]) for table in tables))
    if not common:
        raise ValueError("the results have no pair in common")
    order = [name for name in tables[0]["pair_id"] if name in common]
    chosen = [table.set_index("pair_id", drop=False).loc[order].reset_index(drop=True) for table in tables]
    for one, other in pairwise(chosen):
        alike = (one[["protocol", "n_points", "category"]] == other[["protocol", "n_points", "category"]]).all(axis=1)
        if not alike.all():
            name = one["pair_id"][int(alike.argmin())]
            raise ValueError(f"pair {name!r} was not judged alike: protocol, category or number of keypoints differ")
    return chosen


@dataclass(frozen=True)
class Spread:
    """A number over seeds; std and interval are None for a single seed."""

    mean: float
    std: float | None
    interval: Interval | None
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (n - 1) and Student's t interval of the mean over seeds."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Spread(mean, None, None, count)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, count - 1)) * std / count**0.5
    return Spread(mean, std, Interval(mean, mean - half, mean + half), count)


def _group(scores: pd.DataFrame, measure: Measure) -> list[np.ndarray]:
    """Positions of the pairs that are drawn from together."""
    if measure.average == "pair":
        return [np.arange(len(scores))]
    return list(scores.groupby("category").indices.values())


def _resample(gains: pd.Series, weights: pd.Series, groups: Sequence[np.ndarray], draws: int) -> tuple[float, float]:
    """Bounds of the mean over groups of (sum of gains) / (sum of weights); a group of one pair stays as it is."""
    gain, weight = gains.to_numpy(np.float64), weights.to_numpy(np.float64)
    drawn = [group for group in groups if len(group) > 1]
    if not drawn:
        return np.nan, np.nan
    fixed = sum(float(gain[group].sum() / weight[group].sum()) for group in groups if len(group) == 1)

    def statistic(*chosen: np.ndarray, axis: int) -> np.ndarray:
        return (fixed + sum(gain[c].sum(axis) / weight[c].sum(axis) for c in chosen)) / len(groups)

    found = stats.bootstrap(
        drawn,
        statistic,
        n_resamples=draws,
        batch=BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def _test_signs(gains: pd.Series, weights: pd.Series, groups: Sequence[np.ndarray], draws: int) -> float:
    """Two-sided p-value of the sum of gains under random signs; pairs without a difference change nothing."""
    parts = np.empty(len(gains))
    for group in groups:
        parts[group] = gains.to_numpy()[group] / (weights.to_numpy()[group].sum() * len(groups))
    parts = parts[parts != 0]
    if len(parts) < 2:  # the swap of a single one is as far from 0
        return 1.0
    found = stats.permutation_test(
        (parts,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        batch=BATCH,
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)
