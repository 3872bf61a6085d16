"""Every change of coordinates, in one place.

Frames: `px` = pixels of the network's input image, `cell` = positions on a feature map (its first element is
cell (0, 0)), `orig` = pixels of the image on disk. Points are (x, y), sizes are (H, W). The centres of the corner
pixels and of the corner cells coincide (align_corners, as in SD4Match): cell = px (w - 1) / (W - 1).
"""

import torch
from torch import Tensor

NORM_PART = 256  # channels squared at a time
NORM_EPS = 1e-6  # added to every norm, as in SD4Match
Size = tuple[int, int]


def _change_grid(points: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Points (..., 2) on a grid of `from_size` samples -> the same places on a grid of `to_size` samples."""
    if min(from_size) < 2:
        raise ValueError(f"a grid needs at least 2 samples per axis, got size (H, W) = {tuple(from_size)}")
    (from_h, from_w), (to_h, to_w) = from_size, to_size
    x, y = points.unbind(-1)
    return torch.stack((x * ((to_w - 1) / (from_w - 1)), y * ((to_h - 1) / (from_h - 1))), dim=-1)


def px_to_cell(kps_px: Tensor, image_size: Size, feat_size: Size) -> Tensor:
    """Image pixels (..., 2) -> cells (..., 2) of a feature map; image_size (H, W), feat_size (h, w)."""
    return _change_grid(kps_px, image_size, feat_size)


def cell_to_px(kps_cell: Tensor, feat_size: Size, image_size: Size) -> Tensor:
    """Feature-map cells (..., 2) -> image pixels (..., 2); the inverse of `px_to_cell`."""
    return _change_grid(kps_cell, feat_size, image_size)


def rescale_kps(kps: Tensor, from_size: Size | Tensor, to_size: Size | Tensor) -> Tensor:
    """Keypoints (B, N, 2) of an image of `from_size` -> of its copy resized to `to_size`: x W'/W, y H'/H.

    Sizes are (H, W), or int tensors (B, 2) with one size per image. To a feature map's size: the position in patches,
    where cell (i, j) is the square from (i, j) to (i + 1, j + 1).
    """
    from_hw = torch.as_tensor(from_size, device=kps.device)
    to_hw = torch.as_tensor(to_size, device=kps.device)
    scale_xy = (to_hw.to(kps.dtype) / from_hw.to(kps.dtype)).flip(-1)  # (2,) or (B, 2)
    return kps * (scale_xy if scale_xy.dim() == 1 else scale_xy[:, None])


def cell_grid(feat_size: Size, like: Tensor) -> Tensor:
    """Coordinates (x, y) of all cells in row-major order, (h*w, 2), with the device and dtype of `like`."""
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype) for n in feat_size)
    return torch.cartesian_prod(y, x).flip(-1)


def bilinear_corners(points_cell: Tensor, feat_size: Size) -> tuple[Tensor, Tensor]:
    """The four cells around each point and their bilinear weights (the area of the opposite rectangle).

    Args:
        points_cell: (..., 2), (x, y) in cells; points outside the map are moved to its border.
        feat_size: (h, w).
    Returns:
        index (..., 4) int64 into the flattened h*w map, in the order (y0,x0), (y0,x1), (y1,x0), (y1,x1);
        weight (..., 4), non-negative, summing to 1.
    """
    h, w = feat_size
    x, y = points_cell[..., 0].clamp(0, w - 1), points_cell[..., 1].clamp(0, h - 1)
    x0, y0 = x.floor().clamp(max=max(w - 2, 0)), y.floor().clamp(max=max(h - 2, 0))
    x1, y1 = (x0 + 1).clamp(max=w - 1), (y0 + 1).clamp(max=h - 1)
    right, down = x - x0, y - y0
    left, up = 1 - right, 1 - down
    index = torch.stack((y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1), dim=-1).long()
    weight = torch.stack((up * left, up * right, down * left, down * right), dim=-1)
    return index, weight


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32 if it is half precision, otherwise unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gather_cells(feat: Tensor, index: Tensor) -> Tensor:
    """Features (B, N, K, C), at least float32, of the flat cells `index` (B, N, K) of feat (B, C, h, w)."""
    batch, channels = feat.shape[:2]
    picked = feat.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))  # (B, C, N*K)
    return at_least_float32(picked).transpose(1, 2).reshape(batch, *index.shape[1:], channels)


def sample_features(feat: Tensor, kps_cell: Tensor) -> Tensor:
    """Bilinear samples (B, N, C), at least float32, of feat (B, C, h, w) at kps_cell (B, N, 2)."""
    index, weight = bilinear_corners(at_least_float32(kps_cell), feat.shape[-2:])
    return (gather_cells(feat, index) * weight[..., None]).sum(dim=2)


def l2_norm(x: Tensor, dim: int) -> Tensor:
    """||x||_2 along `dim`, which is kept with length 1; the gradient of a zero vector is zero, not NaN.

    Summed in parts: the squares of a whole feature map would be a second map in memory.
    """
    total = sum(part.square().sum(dim=dim, keepdim=True) for part in x.split(NORM_PART, dim=dim))
    return total.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def l2_normalise(x: Tensor, dim: int, eps: float = NORM_EPS) -> Tensor:
    """x / (||x||_2 + eps) along `dim`: eps is added to the norm; a zero vector stays zero."""
    return x / (l2_norm(x, dim) + eps)
