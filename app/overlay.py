"""The whole target laid over the source: every place of the source shows what was found for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from app.photo import shrink, to_data_url
from utils.draw import warp_image
from utils.frame import build_sampling_grid
from utils.geometry import cell_to_px, rescale_kps

SIDE = 512  # px of the longer side
RETURNS = 1.5  # cells: a place counts as matched both ways if its match's match lies this near


def build_overlay(pair: Any) -> dict[str, Any]:
    """What app/static/overlay.js shows of a sd4match.Pair.

    Returns {"source", "warped", "both_ways": data: URLs of equal size, "width", "height", "share"}; `both_ways` is
    `warped` where the way back ends near its beginning, transparent elsewhere, `share` the part of the source
    where it does.
    """
    field, frame = pair.dense(), pair.setting.frame
    source = shrink(pair.src.image, SIDE)
    target = torch.from_numpy(np.array(shrink(pair.trg.image, SIDE))).permute(2, 0, 1).float()
    grid = build_sampling_grid(frame, pair.src.size, (source.height, source.width))
    returns = (field.cycle <= RETURNS).float().cpu()
    maps = torch.cat([field.points.permute(2, 0, 1).cpu(), returns[None]])
    *cells, mask = F.grid_sample(maps[None], grid[None], padding_mode="border", align_corners=True)[0]
    px = cell_to_px(torch.stack(cells, dim=-1), pair.trg_feat.shape[-2:], frame.image_size)
    warped = warp_image(target, rescale_kps(frame.to_orig(px, pair.trg.size), pair.trg.size, target.shape[-2:]))
    picture = _to_image(warped)
    masked = picture.copy()
    masked.putalpha(Image.fromarray((mask > 0.5).numpy()))
    return {
        "source": to_data_url(source),
        "warped": to_data_url(picture),
        "both_ways": to_data_url(masked, lossless=True),
        "width": source.width,
        "height": source.height,
        "share": float(returns.mean()),
    }


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
