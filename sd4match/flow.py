"""Where every pixel of the source lies in the target: as arrays, files, a picture, a warp, or one transform."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from utils.geometry import Size
from utils.image import Picture
from utils.store import atomic_path

if TYPE_CHECKING:
    from sd4match.pair import Pair

RETURNS = 1.5  # feature cells: a place is matched both ways if its match's match lies this near
JUMP = 3.0  # feature cells of the target between neighbouring places: nothing is interpolated across more
KINDS = {  # of transforms -> class of skimage.transform, fewest pairs of points
    "rigid": ("EuclideanTransform", 2),
    "similarity": ("SimilarityTransform", 2),
    "affine": ("AffineTransform", 3),
    "homography": ("ProjectiveTransform", 4),
}
FLO_TAG = 202021.25  # the bytes "PIEH"
FLO_UNKNOWN = 1e10  # what Middlebury's files say where nothing is known (anything above 1e9)
WRITERS = (".npy", ".flo", ".png", ".jpg", ".webp")


class FlowError(ValueError):
    """A flow that cannot be written, read or fitted."""


@dataclass(frozen=True, eq=False)
class Transform:
    """A map of the plane, source px -> target px, that most matches agree with."""

    kind: str
    matrix: np.ndarray  # (3, 3), of points (x, y, 1)
    inliers: np.ndarray  # (N,) bool, of the pairs of points that it was fitted to

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the source in the target."""
        mapped = np.concatenate([points, np.ones((*np.shape(points)[:-1], 1))], axis=-1) @ self.matrix.T
        return mapped[..., :2] / mapped[..., 2:]

    def warp(self, image: np.ndarray, size: Size) -> np.ndarray:
        """An image (H', W', C) of the target as seen from the source, `size` (H, W); beyond its border 0."""
        y, x = np.indices(size, dtype=np.float32)
        return sample_image(image, self(np.stack([x, y], axis=-1)), "zeros")


@dataclass(frozen=True, eq=False)
class Flow:
    """What was found for every pixel (x, y) of the source: it lies at (x, y) + flow[y, x], px of the target."""

    flow: np.ndarray  # (H, W, 2) float32
    confidence: np.ndarray  # (H, W) float32, as of Matches; 0 outside the masks
    mask: np.ndarray  # (H, W) bool: matched there and back, and inside the masks

    @property
    def size(self) -> Size:
        """(H, W) of the source."""
        return self.mask.shape

    @property
    def points(self) -> np.ndarray:
        """(H, W, 2), (x, y) px of the target."""
        y, x = np.indices(self.size, dtype=np.float32)
        return self.flow + np.stack([x, y], axis=-1)

    def warp(self, image: np.ndarray) -> np.ndarray:
        """An image (H', W', C) of the target as seen from the source, (H, W, C), bilinear, in its own type."""
        return sample_image(image, self.points, "border")

    def fit(self, kind: str = "affine", tolerance: float | None = None, count: int = 2000, seed: int = 0) -> Transform:
        """The transform that most matches inside `mask` agree with; see `fit_transform`.

        tolerance: px of the target; None: 2 % of the source's longer side. count: matches looked at, evenly spread.
        """
        rows, columns = np.nonzero(self.mask)
        chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
        source = np.stack([columns, rows], axis=1)[chosen].astype(float)
        target = source + self.flow[rows[chosen], columns[chosen]]
        return fit_transform(source, target, kind, tolerance or 0.02 * max(self.size), seed)

    def draw(self) -> np.ndarray:
        """(H, W, 3) uint8 in Middlebury's colours: direction is hue, length is strength; white outside `mask`."""
        from torchvision.utils import flow_to_image

        flow = torch.from_numpy(np.where(self.mask[..., None], self.flow, 0))
        picture = flow_to_image(flow.permute(2, 0, 1)).permute(1, 2, 0).numpy()
        return np.where(self.mask[..., None], picture, np.uint8(255))

    def save(self, path: str | Path, masked: bool = True) -> None:
        """Write the flow as .npy (H, W, 2) or Middlebury's .flo, or its colours as .png, .jpg or .webp.

        masked: pixels outside `mask` are NaN in .npy, and unknown (1e10) in .flo.
        """
        path = Path(path)
        if path.suffix not in WRITERS:
            raise FlowError(f"{path}: a flow is written as {', '.join(WRITERS)}")
        if path.suffix in WRITERS[2:]:
            from utils.draw import save_figure

            save_figure(path, self.draw())
            return
        unknown = np.nan if path.suffix == ".npy" else FLO_UNKNOWN
        flow = np.where(self.mask[..., None], self.flow, unknown) if masked else self.flow
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            if path.suffix == ".npy":
                np.save(file, flow.astype(np.float32))
            else:
                np.array([FLO_TAG], "<f4").tofile(file)
                np.array(self.size[::-1], "<i4").tofile(file)
                flow.astype("<f4").tofile(file)


def read_flo(path: str | Path) -> np.ndarray:
    """(H, W, 2) float32 of Middlebury's file; NaN where it says unknown. FlowError for another file."""
    content = Path(path).read_bytes()
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != FLO_TAG:
        raise FlowError(f"{path}: no .flo file of Middlebury's (its first four bytes are not PIEH)")
    width, height = np.frombuffer(content, "<i4", 2, offset=4).tolist()
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise FlowError(f"{path}: {len(content)} bytes are not those of {width} x {height} px")
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)
    return np.where(np.abs(flow) > 1e9, np.float32(np.nan), flow)


def fit_transform(source: np.ndarray, target: np.ndarray, kind: str, tolerance: float, seed: int = 0) -> Transform:
    """The "rigid", "similarity", "affine" or "homography" transform by RANSAC, then of all its inliers.

    source, target: (N, 2), (x, y) px. tolerance: px of the target within which a pair agrees. FlowError if there are
    too few pairs, or no transform of that kind is found.
    """
    from skimage import transform
    from skimage.measure import ransac

    if kind not in KINDS:
        raise FlowError(f"unknown transform {kind!r}; known: {', '.join(KINDS)}")
    name, fewest = KINDS[kind]
    if len(source) <= fewest:
        raise FlowError(f"{len(source)} matches are too few for a transform of kind {kind}; it needs {fewest + 1}")
    model, inliers = ransac(
        (np.asarray(source, float), np.asarray(target, float)),
        *(getattr(transform, name), fewest, tolerance),
        max_trials=2000,
        stop_probability=0.9999,
        rng=seed,
    )
    if not model or inliers is None or inliers.sum() < fewest:
        raise FlowError(f"no transform of kind {kind} is within {tolerance:g} px of the matches")
    return Transform(kind, np.asarray(model.params), inliers)


def sample_image(image: np.ndarray, points: np.ndarray, beyond: str) -> np.ndarray:
    """An image (H', W', C) at points (H, W, 2), (x, y) px, bilinear, in its own type. beyond: "border" or "zeros"."""
    image = np.ascontiguousarray(image[..., None] if image.ndim == 2 else image)
    last = np.array([image.shape[1] - 1, image.shape[0] - 1], np.float32)
    grid = torch.from_numpy((points / last * 2 - 1).astype(np.float32))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    seen = F.grid_sample(pixels, grid[None], padding_mode=beyond, align_corners=True)[0].permute(1, 2, 0).numpy()
    return (seen.round() if np.issubdtype(image.dtype, np.integer) else seen).astype(image.dtype)


def compute_flow(
    pair: Pair,
    step: float | None = None,
    tolerance: float | None = None,
    src_mask: np.ndarray | None = None,
    trg_mask: np.ndarray | None = None,
    **options: Any,
) -> Flow:
    """See sd4match.Pair.flow."""
    (height, width), src_cell, trg_cell = pair.src.size, *pair.cell_sizes()
    for mask, picture in ((src_mask, pair.src), (trg_mask, pair.trg)):
        if mask is not None and not check_mask(mask, picture).any():
            raise ValueError(f"the mask of {picture.name} is empty")
    steps = src_cell / 2 if step is None else np.full(2, step, float)  # (x, y)
    if not (steps > 0).all():
        raise ValueError(f"step must be positive px, got {step}")
    steps = np.maximum(steps, 1)
    xs, ys = (np.linspace(0, n - 1, int(np.ceil((n - 1) / s)) + 1) for n, s in zip((width, height), steps, strict=True))
    places = np.stack(np.meshgrid(xs, ys), axis=-1).astype(np.float32)  # (h, w, 2)
    found = pair.match(places.reshape(-1, 2), src_mask=src_mask, trg_mask=trg_mask, **options)
    flow = (found.points - found.source).reshape(places.shape)
    values = [flow, found.confidence.reshape(*places.shape[:2], 1), found.cycle.reshape(*places.shape[:2], 1)]
    grid = torch.from_numpy(np.concatenate(values, axis=-1)).permute(2, 0, 1)[None]
    whole = F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    flow, confidence, cycle = whole[..., :2], whole[..., 2], whole[..., 3]
    mask = cycle <= (RETURNS * src_cell.max() if tolerance is None else tolerance)
    mask &= ~_crosses_jump(found.points.reshape(places.shape) / trg_cell, (height, width))
    flow, limits = np.ascontiguousarray(flow), np.ones_like(mask)
    if src_mask is not None:
        limits &= np.asarray(src_mask, bool)
    if trg_mask is not None:
        at = Flow(flow, confidence, mask).points.round().astype(int)
        limits &= np.asarray(trg_mask, bool)[at[..., 1], at[..., 0]]
    return Flow(flow, np.where(limits, confidence, np.float32(0)), mask & limits)


def check_mask(mask: np.ndarray, picture: Picture) -> np.ndarray:
    """A mask as (H, W) bool; ValueError if it is not of the picture's size."""
    mask = np.asarray(mask, bool)
    if mask.shape != tuple(picture.size):
        raise ValueError(f"the mask of {picture.name} has shape {mask.shape}, not {tuple(picture.size)}")
    return mask


def _crosses_jump(points: np.ndarray, size: Size) -> np.ndarray:
    """(H, W) bool: pixels between places of a grid whose matches (h, w, 2), in cells, lie more than JUMP apart."""
    corners = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, :-1], points[1:, 1:]])
    far = np.ptp(corners, axis=0).max(axis=-1) > JUMP  # (h - 1, w - 1)
    at = [np.arange(n) * ((places - 1) / (n - 1)) for n, places in zip(size, points.shape[:2], strict=True)]
    between = [~np.isclose(values, values.round(), atol=1e-6) for values in at]
    rows, columns = (values.astype(int).clip(max=n - 1) for values, n in zip(at, far.shape, strict=True))
    return far[np.ix_(rows, columns)] & (between[0][:, None] | between[1])
