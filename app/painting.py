"""The tab on which an edit is painted on the source and carried to the target."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from app.photo import shrink, to_data_url
from utils.image import ImageError, Picture

SIDE = 512  # px of the longer side of what is shown and painted on
PAINT = "Paint on the source; then carry it to the target."
WARPS = ("dense", "rigid", "similarity", "affine", "homography")


def show_pair(pair: Any) -> dict[str, Any]:
    """What app/static/painting.js shows of a sd4match.Pair before anything is painted."""
    source, target = (shrink(picture.image, SIDE) for picture in (pair.src, pair.trg))
    urls = {"source": to_data_url(source), "target": to_data_url(target)}
    return urls | {"width": source.width, "height": source.height, "message": PAINT}


def carry_painting(pair: Any, data: Any, warp: Any, seen: Any) -> dict[str, Any]:
    """The same, and "edited": the target with what was painted, whose PNG `data` (base64) holds.

    seen: the source's URL on which it was painted. ImageError for anything that the page does not send. All is done in
    the size that is shown.
    """
    shown = show_pair(pair)
    if seen != shown["source"]:
        raise ImageError("the images have changed; choose this tab again and paint anew")
    if warp not in WARPS or not isinstance(data, str):
        raise ImageError("the painting did not arrive; try again")
    small = replace(pair, src=_shrink(pair.src), trg=_shrink(pair.trg))
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]) as image:
            if image.size != small.src.image.size:
                raise ValueError
            layer = np.array(image.convert("RGBA"))
    except Exception:  # decoders raise all sorts of errors
        raise ImageError("the painting did not arrive; try again") from None
    if not layer[..., 3].any():
        raise ImageError("nothing is painted yet: draw on the source")
    carried = small.carry(layer, warp)
    edited = Image.alpha_composite(small.trg.image.convert("RGBA"), Image.fromarray(carried)).convert("RGB")
    share = carried[..., 3].astype(bool).mean()
    return shown | {"edited": to_data_url(edited), "message": f"Carried: it covers {share:.0%} of the target."}


def _shrink(picture: Picture) -> Picture:
    image = shrink(picture.image, SIDE)
    return Picture(image, image.size[::-1], picture.name)
