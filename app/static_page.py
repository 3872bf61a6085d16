"""A page in one file, with its style, script and data, which any browser opens without a server."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from utils.store import write_text

STATIC = Path(__file__).parent / "static"
SHARED = {"style": "shared.css", "script": "shared.js"}  # what a template takes in at {{style}} and {{script}}


class StaticPage:
    """What is looked at from a file, or through app.serve."""

    template: str  # its file in STATIC
    name: str
    images: list[str]  # paths of the pictures, which stay where they are

    def describe(self, urls: Sequence[str], served: bool) -> dict[str, Any]:
        """What the script gets, JSON values. urls: of the images. served: the page is no file, it can ask for more."""
        raise NotImplementedError

    def write(self, path: Path) -> None:
        """A file that finds the pictures from where it lies."""
        folder = path.resolve().parent
        urls = [quote(os.path.relpath(image, folder).replace(os.sep, "/")) for image in self.images]
        write_text(path, self.render(urls, served=False))

    def render(self, urls: Sequence[str], served: bool = True) -> str:
        """The page, with a URL for each image."""
        text = json.dumps(self.describe(urls, served), separators=(",", ":"), allow_nan=False)
        parts = {key: (STATIC / file).read_text(encoding="utf-8") for key, file in SHARED.items()}
        page = (STATIC / self.template).read_text(encoding="utf-8")
        for key, part in [*parts.items(), ("data", text.replace("<", "\\u003c"))]:
            page = page.replace(f"{{{{{key}}}}}", part)
        return page
