"""The tabs on which one photo is brought onto the other: the target over the source, an edit onto the target."""

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


def show_overlay(pair: Any) -> dict[str, Any]:
    """What app/static/overlay.js shows of a sd4match.Pair: every place of the source as what was found for it.

    Returns {"source", "warped", "both_ways": data: URLs of equal size, "width", "height", "message"}; `both_ways` is
    `warped` where the way back ends near its beginning, transparent elsewhere.
    """
    small = _shrink(pair)
    flow = small.flow()
    warped = Image.fromarray(flow.warp(np.array(small.trg.image)))
    masked = warped.copy()
    masked.putalpha(Image.fromarray(flow.mask))
    urls = {"source": to_data_url(small.src.image), "warped": to_data_url(warped)}
    message = f"{flow.mask.mean():.0%} of the source is matched both ways."
    return {**urls, "both_ways": to_data_url(masked, lossless=True), **_describe_size(small), "message": message}


def show_painting(pair: Any) -> dict[str, Any]:
    """What app/static/painting.js shows of a sd4match.Pair before anything is painted."""
    return _describe_painting(_shrink(pair))


def carry_painting(pair: Any, data: Any, warp: Any, seen: Any) -> dict[str, Any]:
    """The same, and "edited": the target with what was painted, whose PNG `data` (base64) holds.

    seen: the source's URL on which it was painted. ValueError for anything that the page does not send. All is done in
    the size that is shown.
    """
    small = _shrink(pair)
    shown = _describe_painting(small)
    if seen != shown["source"]:
        raise ImageError("the images have changed; choose this tab again and paint anew")
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


def _shrink(pair: Any) -> Any:
    """The pair with its pictures in the size that is shown."""
    images = {name: shrink(getattr(pair, name).image, SIDE) for name in ("src", "trg")}
    return replace(
        pair, **{name: Picture(image, image.size[::-1], getattr(pair, name).name) for name, image in images.items()}
    )


def _describe_painting(small: Any) -> dict[str, Any]:
    urls = {"source": to_data_url(small.src.image), "target": to_data_url(small.trg.image)}
    return {**urls, **_describe_size(small), "message": PAINT}


def _describe_size(pair: Any) -> dict[str, int]:
    return {"width": pair.src.size[1], "height": pair.src.size[0]}
