"""What per-pair results say beyond their mean: curves, breakdowns, intervals, and whether two methods differ.

Everything is computed from the records of `engine.result.read_pairs_csv`; a mean is always that of
`utils.pck.summarise`. Resampling is over pairs, within the categories if these are averaged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from utils.pck import Record, alpha_key, summarise

ALPHAS = tuple(round(0.01 * step, 2) for step in range(1, 21))  # of a PCK curve
LEVELS = {  # what SPair's flags mean
    "viewpoint_variation": ("easy", "medium", "hard"),
    "scale_variation": ("easy", "medium", "hard"),
    "truncation": ("none", "source", "target", "both"),
    "occlusion": ("none", "source", "target", "both"),
}
DRAWS = 2000
CHUNK = 2**22  # random numbers held at a time


@dataclass(frozen=True)
class Measure:
    """Which number is meant: PCK of a localiser at an alpha, by and average as in `utils.pck.summarise`."""

    localiser: str = "kernelsoftmax"
    alpha: float = 0.1
    by: str = "image"
    average: str = "pair"


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of an interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """B minus A over the same pairs."""

    difference: Interval  # paired bootstrap
    p_value: float  # two-sided sign-flip permutation test
    pairs: int


def compute_pck(records: Sequence[Record], measure: Measure) -> float | None:
    """PCK in [0, 1] over all records; None without a scored pair."""
    summary = summarise(records, [measure.localiser], [measure.alpha], measure.by, measure.average)
    return summary["pck"][measure.localiser][alpha_key(measure.alpha)]["all"]


def compute_curve(
    records: Sequence[Record], measure: Measure, alphas: Sequence[float] = ALPHAS
) -> dict[float, float | None]:
    """PCK at each alpha (`measure.alpha` is not used), from the stored errors and thresholds."""
    judged = judge_records(records, measure.localiser, alphas)
    rows = summarise(judged, [measure.localiser], alphas, measure.by, measure.average)["pck"][measure.localiser]
    return {alpha: rows[alpha_key(alpha)]["all"] for alpha in alphas}


def judge_records(records: Sequence[Record], localiser: str, alphas: Sequence[float]) -> list[Record]:
    """The records with the hits of one localiser at other alphas; the same arithmetic as `utils.pck.judge_errors`.

    Raises ValueError for records of a file without errors and thresholds.
    """
    if any(localiser not in record.get("errors", {}) for record in records):
        raise ValueError(f"these results hold no errors of {localiser}: run test.py again to get curves from them")
    counts = np.array([record["n_points"] for record in records], dtype=np.int64)
    errors = np.array([error for record in records for error in record["errors"][localiser]], dtype=np.float32)
    thresholds = np.array([record["threshold"] for record in records], dtype=np.float64)
    radius = (thresholds[:, None] * np.array(alphas, dtype=np.float64)).astype(np.float32)  # (P, A)
    owner = np.repeat(np.arange(len(records)), counts)
    hits = np.zeros((len(records), len(alphas)), dtype=np.int64)
    np.add.at(hits, owner, errors[:, None] <= radius[owner])
    keys = [alpha_key(alpha) for alpha in alphas]
    return [
        record | {"hits": {localiser: dict(zip(keys, row, strict=True))}}
        for record, row in zip(records, hits.tolist(), strict=True)
    ]


def break_down(records: Sequence[Record], measure: Measure) -> dict[str, dict[str, tuple[int, float | None]]]:
    """{flag: {level: (scored pairs, PCK)}} of SPair's difficulty flags; {} for data sets without flags."""
    table: dict[str, dict[str, tuple[int, float | None]]] = {}
    for flag, levels in LEVELS.items():
        for level in levels:
            if group := select_level(records, flag, level):
                table.setdefault(flag, {})[level] = (len(group), compute_pck(group, measure))
    return table


def select_level(records: Sequence[Record], flag: str, level: str) -> list[Record]:
    """The scored records of one of LEVELS of a flag."""
    value = LEVELS[flag].index(level)
    return [record for record in records if record["flags"].get(flag, -1) == value and record["n_points"]]


def bootstrap(
    records: Sequence[Record], measure: Measure, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """PCK with its percentile bootstrap interval; None without a scored pair."""
    value = compute_pck(records, measure)
    if value is None:
        return None
    gains, weights, groups = _as_arrays(records, measure)
    return Interval(value, *_bounds(_resample(gains, weights, groups, draws, seed), level))


def compare(
    first: Sequence[Record],
    second: Sequence[Record],
    measure: Measure,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Does the second method differ from the first? Both must have been tested on the same pairs.

    The interval resamples pairs, keeping both methods' results of a pair together; the p-value is the share of
    random swaps of the two results of each pair that differ at least as much (the observed one counted in).
    Raises ValueError if the pairs differ or none is scored.
    """
    first, second = _match(first, second)
    gains_a, weights, groups = _as_arrays(first, measure)
    gains_b, _, _ = _as_arrays(second, measure)
    gains = gains_b - gains_a
    value = compute_pck(second, measure) - compute_pck(first, measure)
    interval = Interval(value, *_bounds(_resample(gains, weights, groups, draws, seed), level))
    flipped = _flip(gains, weights, groups, draws, seed)
    extreme = int((np.abs(flipped) >= abs(value) - 1e-12).sum())
    return Comparison(interval, (1 + extreme) / (1 + draws), len(first))


@dataclass(frozen=True)
class Spread:
    """A number over seeds; std and interval are None for a single seed."""

    mean: float
    std: float | None
    interval: Interval | None
    count: int


def spread(values: Sequence[float], level: float = 0.95) -> Spread:
    """Mean, standard deviation (n - 1) and Student's t interval of the mean over seeds."""
    values = np.asarray(values, dtype=np.float64)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Spread(mean, None, None, count)
    std = float(values.std(ddof=1))
    half = float(student_t.ppf(0.5 + level / 2, count - 1)) * std / count**0.5
    return Spread(mean, std, Interval(mean, mean - half, mean + half), count)


def _match(first: Sequence[Record], second: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The scored records of both, in one order."""
    by_pair: list[Mapping[tuple, Record]] = [
        {(record["index"], record["pair_id"]): record for record in side} for side in (first, second)
    ]
    if by_pair[0].keys() != by_pair[1].keys():
        different = len(by_pair[0].keys() ^ by_pair[1].keys())
        raise ValueError(f"the two results are not of the same pairs: {different} pairs are in only one of them")
    pairs = [(record, by_pair[1][name]) for name, record in by_pair[0].items() if record["n_points"]]
    if not pairs:
        raise ValueError("no pair of the two results has keypoints")
    for a, b in pairs:
        if (a["protocol"], a["n_points"]) != (b["protocol"], b["n_points"]):
            raise ValueError(f"pair {a['pair_id']!r} was not judged alike: protocol or number of keypoints differ")
    return [a for a, _ in pairs], [b for _, b in pairs]


def _as_arrays(records: Sequence[Record], measure: Measure) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(P,) gains and (P,) weights of the scored pairs, whose sums' ratio is the PCK of a group; groups as positions."""
    records = [record for record in records if record["n_points"]]
    key = alpha_key(measure.alpha)
    hits = np.array([record["hits"][measure.localiser][key] for record in records], dtype=np.float64)
    points = np.array([record["n_points"] for record in records], dtype=np.float64)
    gains, weights = (hits / points, np.ones_like(points)) if measure.by == "image" else (hits, points)
    if measure.average == "pair":
        return gains, weights, [np.arange(len(records))]
    categories = np.array([record["category"] for record in records])
    return gains, weights, [np.flatnonzero(categories == name) for name in np.unique(categories)]


def _resample(
    gains: np.ndarray, weights: np.ndarray, groups: Sequence[np.ndarray], draws: int, seed: int
) -> np.ndarray:
    """(draws,) PCK of random draws of pairs with replacement, within each group."""
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for members in groups:
        gain, weight = gains[members], weights[members]
        for start, stop in _chunks(draws, len(members)):
            chosen = rng.integers(len(members), size=(stop - start, len(members)))
            total[start:stop] += gain[chosen].sum(axis=1) / weight[chosen].sum(axis=1)
    return total / len(groups)


def _flip(gains: np.ndarray, weights: np.ndarray, groups: Sequence[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """(draws,) differences with the sign of every pair drawn anew."""
    scale = np.zeros_like(gains)
    for members in groups:
        scale[members] = 1 / (weights[members].sum() * len(groups))
    rng = np.random.default_rng(seed)
    parts = [
        rng.integers(2, size=(stop - start, len(gains)), dtype=np.int8) for start, stop in _chunks(draws, len(gains))
    ]
    return np.concatenate([(2.0 * part - 1) @ (gains * scale) for part in parts])


def _chunks(draws: int, width: int) -> list[tuple[int, int]]:
    step = max(1, CHUNK // max(1, width))
    return [(start, min(start + step, draws)) for start in range(0, draws, step)]


def _bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
