"""Dense matching of two feature maps: where every source cell lies on the target, and whether it comes back.

Plain PyTorch goes through the source in parts that fit a memory budget. KeOps (the package pykeops) never holds
a similarity at all, but compiles its formulas on first use, some 20 seconds with a C++ compiler.
"""

import contextlib
import importlib.util
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.geometry import Size, at_least_float32, cell_grid, l2_normalise, sample_features
from utils.localise import LOCALISERS, MatchQuery, check_localisers

BACKENDS = ("auto", "torch", "keops")
KEOPS_LOCALISERS = ("nn", "kernelsoftmax")
KEOPS_PAIRS = 2**32  # cell pairs, such as 256 x 256 cells on both sides, from which "auto" takes KeOps on a GPU
KEOPS_MAX_CELLS = 2**24  # KeOps returns the place of a maximum as a float32
MAPS_PER_QUERY = 10  # similarity maps that PyTorch's localisers hold at once for each query, at most
FEATURES_PER_QUERY = 16  # and feature vectors
MIB = 2**20


@dataclass(frozen=True)
class DenseField:
    """Matches of all cells of a source map (h, w); positions are (x, y) in cells."""

    points: Tensor  # (h, w, 2) place on the target map
    similarity: Tensor  # (h, w) highest cosine similarity with any target cell
    cycle: Tensor  # (h, w) cells between a source cell and where its place on the target is matched back to


@torch.no_grad()
def match_densely(
    src_feat: Tensor,
    trg_feat: Tensor,
    backend: str = "auto",
    localiser: str = "nn",
    beta: float = 0.04,
    sigma: float = 7.0,
    budget_mib: int = 512,
) -> DenseField:
    """Match every cell of a map with another map, forward and back.

    Args:
        src_feat, trg_feat: (C, h, w) and (C, h', w'), not normalised, on one device.
        backend: "torch", "keops", or "auto": KeOps on a GPU for large grids if it works there, else PyTorch. On a
            CPU, PyTorch is the faster one for maps of many channels, as these are.
        localiser: a name in `utils.localise.LOCALISERS`; KeOps knows "nn" and "kernelsoftmax".
        beta, sigma: of the localiser, sigma in cells of the target map.
        budget_mib: what PyTorch may hold at once beside the maps themselves, but at least one query's maps. KeOps
            holds a normalised copy of each map.
    Raises:
        ValueError: unknown backend or localiser, maps of different channels, or KeOps cannot be used, and why.
    """
    _check(src_feat, trg_feat, backend, localiser, budget_mib)
    match = _choose(src_feat, trg_feat, backend, localiser, budget_mib)
    src_feat, trg_feat = at_least_float32(src_feat), at_least_float32(trg_feat)
    size = tuple(src_feat.shape[-2:])
    cells = cell_grid(size, like=src_feat)
    points, similarity = match(src_feat, trg_feat, cells, localiser, beta, sigma)
    back, _ = match(trg_feat, src_feat, points, localiser, beta, sigma)
    cycle = (back - cells).norm(dim=-1)
    return DenseField(points.unflatten(0, size), similarity.unflatten(0, size), cycle.unflatten(0, size))


def resize_features(feat: Tensor, size: Size) -> Tensor:
    """A map (C, h, w) on a finer or coarser grid, (C, *size), bilinear; corner cells stay at the corners."""
    return F.interpolate(at_least_float32(feat)[None], tuple(size), mode="bilinear", align_corners=True)[0]


def find_keops_problem(device: torch.device) -> str | None:
    """Why KeOps cannot be used on a device, or None."""
    if importlib.util.find_spec("pykeops") is None:
        return "the package pykeops is not installed"
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        return "there is no C++ compiler (g++) to compile KeOps' formulas with"
    if device.type not in ("cpu", "cuda"):
        return f"KeOps runs on cpu and cuda, not on {device.type}"
    try:
        has_gpu = _import_keops().config.gpu_available
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # on a GPU it compiles when it is imported
        return f"KeOps cannot be loaded ({error})"
    return None if has_gpu or device.type == "cpu" else "KeOps finds no CUDA on this machine"


def _check(src_feat: Tensor, trg_feat: Tensor, backend: str, localiser: str, budget_mib: int) -> None:
    check_localisers([localiser])
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if src_feat.dim() != 3 or trg_feat.dim() != 3 or len(src_feat) != len(trg_feat):
        shapes = f"{tuple(src_feat.shape)} and {tuple(trg_feat.shape)}"
        raise ValueError(f"expected maps (C, h, w) and (C, h', w') with the same C, got {shapes}")
    if budget_mib < 1:
        raise ValueError(f"budget_mib must be at least 1, got {budget_mib}")


def _choose(src_feat: Tensor, trg_feat: Tensor, backend: str, localiser: str, budget_mib: int) -> Callable:
    n_src, n_trg = src_feat[0].numel(), trg_feat[0].numel()
    if backend == "auto":
        large = src_feat.device.type == "cuda" and n_src * n_trg >= KEOPS_PAIRS
        able = localiser in KEOPS_LOCALISERS and max(n_src, n_trg) <= KEOPS_MAX_CELLS
        backend = "keops" if large and able and find_keops_problem(src_feat.device) is None else "torch"
    if backend == "torch":
        return lambda *query: _match_torch(*query, budget=budget_mib * MIB)
    problem = find_keops_problem(src_feat.device)
    if localiser not in KEOPS_LOCALISERS:
        problem = f"KeOps knows the localisers {', '.join(KEOPS_LOCALISERS)}, not {localiser}"
    if max(n_src, n_trg) > KEOPS_MAX_CELLS:
        problem = f"KeOps counts at most {KEOPS_MAX_CELLS} cells, got {max(n_src, n_trg)}"
    if problem:
        raise ValueError(f"backend keops: {problem}; use auto or torch")
    return _match_keops


def _match_torch(
    src_feat: Tensor, trg_feat: Tensor, cells: Tensor, localiser: str, beta: float, sigma: float, *, budget: int
) -> tuple[Tensor, Tensor]:
    """Places (n, 2) on the target of source positions (n, 2), and similarities (n,), within `budget` bytes."""
    per_query = trg_feat.element_size() * (MAPS_PER_QUERY * trg_feat[0].numel() + FEATURES_PER_QUERY * len(trg_feat))
    found = []
    for part in cells.split(max(1, budget // per_query)):
        query = MatchQuery(src_feat[None], trg_feat[None], part[None], beta, sigma)
        found.append((LOCALISERS[localiser](query)[0], query.sim[0].flatten(1).amax(dim=1)))
    points, similarity = zip(*found, strict=True)
    return torch.cat(points), torch.cat(similarity)


def _match_keops(
    src_feat: Tensor, trg_feat: Tensor, cells: Tensor, localiser: str, beta: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """The same by KeOps' reductions over the target cells."""
    lazy = _import_keops().torch.LazyTensor
    queries = l2_normalise(sample_features(src_feat[None], cells[None])[0], dim=1)
    targets = l2_normalise(trg_feat.flatten(1).T.contiguous(), dim=1)
    sim = lazy(queries[:, None].contiguous()) | lazy(targets[None])  # (n, m, 1), never held
    highest, index = sim.max_argmax(dim=1)
    grid = cell_grid(trg_feat.shape[-2:], like=trg_feat)
    best = grid[index[:, 0].long()]
    if localiser == "nn":
        return best, highest[:, 0]
    offset = lazy(grid[None].contiguous()) - lazy(best[:, None].contiguous())  # (n, m, 2)
    damped = sim * (-(offset**2).sum(-1) / (2 * sigma**2)).exp()
    weight = ((damped - lazy(highest.clamp(min=0)[:, None].contiguous())) / beta).exp()
    moments = (weight * offset).concat(weight).sum(dim=1)  # (n, 3)
    return best + moments[:, :2] / moments[:, 2:], highest[:, 0]


def _import_keops():
    with contextlib.redirect_stdout(io.StringIO()):  # where it tells of every compilation
        import pykeops
        import pykeops.torch
    pykeops.set_verbose(False)
    return pykeops
