"""From any two images to a `Pair` that answers questions about points."""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import ConfigError, change_config, load_config, resolve_path
from dataset.pair_dataset import collate
from engine.build import build_method
from engine.check import check_config
from engine.identity import what_makes_matches
from engine.transfer import move_batch
from model.backbone.device import check_finite, resolve_device
from model.method import METHODS
from model.method.base import FeatureMethod, Method
from model.prompt.build import build_prompt
from model.prompt.text_prompt import OpenTextPrompt
from model.source import find_sources, load_sources
from sd4match.error import KEYS, CategoryError
from sd4match.pair import Pair, Setting
from sd4match.source import MINI_NOTE, find_prompt, find_settings, find_weights
from utils.frame import build_frame
from utils.image import ImageError as ImageError
from utils.image import ImageSource, Picture, read_image
from utils.noise import identifier_seed


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What was computed of one image: reusable in any number of pairs of the matcher that made it."""

    picture: Picture
    category: str | None
    identifier: str  # of the pixels
    seed: int  # of its noise
    feature: Tensor | None  # (C, h, w) float32, not normalised; None if the prompt depends on the partner
    inputs: dict[str, Tensor | dict[str, Tensor]]  # what the matcher reads of the image, such as the VAE's posterior
    made_by: Mapping[str, Any]  # what computed each input, and the feature


class Matcher:
    """Finds points of one image in another.

    Calls that run a network take turns under a lock, so that one matcher serves several threads; a `Pair` needs
    no lock. Nothing is kept between calls: keep the `ImageFeatures` or the `Pair`.
    """

    def __init__(self, cfg, method: Method, sources: Mapping, device: torch.device) -> None:
        """For `from_pretrained`, which makes the parts."""
        self.config = cfg
        self.device = device
        self._method = method
        self._sources = sources
        self._conditions = {method.condition: sources["condition"]} if "condition" in sources else {}  # of all prompts
        self._lock = threading.Lock()
        self._warned: list[bool] = []  # that the networks know no photos; shared by copies
        self._owner = object()  # features of another prompt, timestep or network are computed anew
        section = cfg.EVAL
        self._setting = Setting(
            section.PICTURE_LOCALISER,
            section.BETA,
            section.SIGMA,
            build_frame(cfg.DATASET.FRAME, cfg.DATASET.IMAGE_SIZE),
            section.WINDOW,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",  # "mini", "sd2-1", "geoaware", a network's or a prompt's folder or hub id
        prompt: str
        | None = None,  # "text", "empty", a learned prompt's name, folder or hub id; None: name's, or "text"
        device: str = "auto",  # "auto" (GPU if there is one), or a torch device
        *,
        method: str
        | None = None,  # "sd4match" (default), "dinov2", "sd_dino", "cleandift", "geoaware", "ldm_correspondence"
        weights: str | Path | None = None,  # learned weights other than prompts: name below OUTPUT_ROOT/prompt, folder
        timestep: int | None = None,  # diffusion step, 0..999; None: the one that suits the prompt
        ensemble: int | None = None,  # noise draws that are averaged; None: the configuration's
        layer: int | None = None,  # up-block that gives the features; None: the configuration's
        localiser: str | None = None,  # "nn", "bilinear", "softmax", "kernelsoftmax", "window", "centre"
        image_size: int | tuple[int, int] | None = None,  # (H, W) of the networks' input
        precision: str | None = None,  # "auto", "fp32", "fp16", "bf16"
        seed: int | None = None,  # of the noise
        settings: Mapping[str, Any] | None = None,  # any other key of config/default.py -> value
    ) -> Matcher:
        """Load the networks and the prompt.

        Raises ConfigError (a setting that cannot be used), NetworkNotFoundError, NetworkError,
        PromptNotFoundError or PromptError, with what to do.
        """
        found = find_settings(str(name), None if prompt is None else str(prompt), method)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        named = {"timestep": timestep, "ensemble": ensemble, "layer": layer, "localiser": localiser}
        given = {KEYS[name]: value for name, value in (named | {"image_size": size, "device": device}).items()}
        learned, folder = (None, None) if weights is None else find_weights(str(weights))
        given |= {"PRECISION": precision, "SEED": seed, "METHOD.WEIGHTS": learned}
        given = {key: value for key, value in given.items() if value is not None}
        cfg = load_config(found.config_file, overrides={**found.settings, **given, **(settings or {})})
        return cls.from_config(cfg, folder or found.prompt_folder)

    @classmethod
    def from_config(cls, cfg, folder: str | Path | None = None) -> Matcher:
        """The matcher that test.py tests under a config, its prompt or weights from `folder` if that is given."""
        check_config(cfg, training=False)
        device = resolve_device(cfg.DEVICE)
        method = build_method(cfg, device, None, folder=folder)
        sources = load_sources(find_sources(cfg, method.reads, method.condition), device)
        return cls(cfg, method, sources, device)

    @property
    def prompt_name(self) -> str | None:
        """None if the method takes no prompt."""
        return self._prompt and str(self._prompt.name)

    @property
    def _prompt(self):
        return getattr(self._method, "prompt", None)

    @property
    def depends_on_pair(self) -> bool:
        """Whether an image's features depend on its partner, so that every pair runs the UNet."""
        return not self._method.per_image

    @property
    def knows_photos(self) -> bool:
        """False for the mini networks."""
        return self.config.NETWORK.NAME != "mini"

    @property
    def categories(self) -> tuple[str, ...] | None:
        """The categories that the prompt knows and `category` must be one of; None: any word, or nothing."""
        return self._prompt.rows if self._prompt and self._prompt.name.kind == "Class" else None

    def describe(self) -> dict[str, Any]:
        """What the matches depend on beside the images: plain values, for JSON."""
        cfg = self.config
        of_prompts = {"timestep": cfg.TEST.TIMESTEP, "ensemble": cfg.TEST.ENSEMBLE, "layer": cfg.METHOD.LAYER}
        return {
            "network": cfg.NETWORK.NAME,
            "method": cfg.METHOD.NAME,
            "prompt": self.prompt_name,
            **(of_prompts if METHODS[cfg.METHOD.NAME].takes_prompt else {}),  # the others do not read these keys
            "localiser": cfg.EVAL.PICTURE_LOCALISER,
            "image_size": list(cfg.DATASET.IMAGE_SIZE),
            "seed": cfg.SEED,
            "device": str(self.device),
        }

    def identify(self) -> dict[str, Any]:
        """All that decides the matches beside the images, networks and weights by their content: JSON values."""
        return what_makes_matches(self.config, self._method)

    def at(self, timestep: int | None = None, ensemble: int | None = None, localiser: str | None = None) -> Matcher:
        """The same networks and prompt in another setting, sharing memory and lock; None keeps a setting."""
        values = {"TEST.TIMESTEP": timestep, "TEST.ENSEMBLE": ensemble, "EVAL.PICTURE_LOCALISER": localiser}
        other = self._copy({key: value for key, value in values.items() if value is not None})
        if (timestep, ensemble) != (None, None):
            other._method = self._method.at(other.config.TEST.TIMESTEP, other.config.TEST.ENSEMBLE)
            other._owner = object()
        return other

    def _copy(self, values: dict[str, Any]) -> Matcher:
        """This matcher with other values in its config."""
        cfg = check_config(change_config(self.config, values), training=False)
        other = copy.copy(self)
        other.config = cfg
        other._setting = replace(self._setting, localiser=cfg.EVAL.PICTURE_LOCALISER)
        return other

    def with_prompt(self, prompt: str) -> Matcher:
        """The same networks under another prompt, sharing memory and lock; `prompt` as for `from_pretrained`.

        Timestep and ensemble stay. Raises ConfigError if the method takes no prompt.
        """
        if self._prompt is None:
            raise ConfigError(f"the method {self.config.METHOD.NAME} takes no prompt")
        name, folder = find_prompt(str(prompt))
        other = self._copy({"PROMPT.TYPE": name})
        other._method = self._method.under(build_prompt(other.config, None, False, folder).to(self.device)).eval()
        other._owner = object()
        needed = find_sources(other.config, other._method.reads, other._method.condition)
        kept = {key: compute for key, compute in self._sources.items() if key != "condition"}
        kept["condition"] = self._conditions.get(other._method.condition)
        kept = {key: compute for key, compute in kept.items() if compute}
        added = load_sources({key: source for key, source in needed.items() if key not in kept}, self.device)
        other._sources = {key: value for key, value in (kept | added).items() if key in needed}
        if "condition" in needed:
            self._conditions[other._method.condition] = other._sources["condition"]
        return other

    def encode(self, image: ImageSource | ImageFeatures, category: str | None = None) -> ImageFeatures:
        """Everything of an image that needs no partner; see `encode_many`."""
        return self.encode_many([image], category)[0]

    def encode_many(
        self,
        images: Sequence[ImageSource | ImageFeatures],
        category: str | Sequence[str | None] | None = None,
    ) -> list[ImageFeatures]:
        """Features of n images, EVAL.BATCH_SIZE at a time.

        images: as utils.image.read_image takes them; `ImageFeatures` are not computed again unless they belong
        to another setting. category: of all images, or of each. Raises ImageError for an unusable image,
        CategoryError for a category that the prompt cannot use.
        """
        categories = [category] * len(images) if category is None or isinstance(category, str) else list(category)
        if len(categories) != len(images):
            raise ValueError(f"{len(images)} images, but {len(categories)} categories")
        size, found = self.config.EVAL.BATCH_SIZE, []
        for first in range(0, len(images), size):
            part = zip(images[first : first + size], categories[first : first + size], strict=True)
            found += self._encode_batch([self._start(image, category) for image, category in part])
        return found

    def pair(
        self,
        source: ImageSource | ImageFeatures,
        target: ImageSource | ImageFeatures,
        category: str | None = None,  # of images that are not encoded yet
    ) -> Pair:
        """The pair of two images."""
        return self.pairs(source, [target], category)[0]

    def pairs(
        self,
        source: ImageSource | ImageFeatures,
        targets: Sequence[ImageSource | ImageFeatures],
        category: str | None = None,
    ) -> list[Pair]:
        """One source with each of several targets; each image is encoded once."""
        source, *targets = self.encode_many([source, *targets], category)
        if not self.depends_on_pair:
            return [Pair(source.picture, t.picture, source.feature, t.feature, self._setting) for t in targets]
        size, found = self.config.EVAL.BATCH_SIZE, []
        for first in range(0, len(targets), size):
            found += self._extract_pairs(source, targets[first : first + size])
        return found

    def _start(self, image: ImageSource | ImageFeatures, category: str | None) -> ImageFeatures:
        """An image of which this matcher may have computed nothing yet."""
        if isinstance(image, ImageFeatures) and image.made_by["feature"] is self._owner:
            return image
        made_by = {**self._sources, "feature": self._owner}
        if isinstance(image, ImageFeatures):
            self._check_category(image.category)
            seed = identifier_seed(self.config.SEED, image.identifier)
            inputs = {key: value for key, value in image.inputs.items() if image.made_by[key] is made_by.get(key)}
            return replace(image, seed=seed, feature=None, inputs=inputs, made_by=made_by)
        self._check_category(category)
        picture = read_image(image)
        self._warn_of_photos(picture)
        identifier = hashlib.blake2b(picture.image.tobytes(), digest_size=16).hexdigest()
        seed = identifier_seed(self.config.SEED, identifier)
        return ImageFeatures(picture, category, identifier, seed, None, {}, made_by)

    def _warn_of_photos(self, picture: Picture) -> None:
        """Once, if the networks know no photos and a picture is none of the data set that they do know."""
        root = resolve_path(self.config.DATASET.ROOT)
        if not self.knows_photos and not self._warned and root not in str(Path(picture.name).absolute()):
            self._warned.append(True)
            logging.getLogger("sd4match").warning(MINI_NOTE)

    def _check_category(self, category: str | None) -> None:
        if self.categories is not None and category not in self.categories:
            known = ", ".join(self.categories)
            raise CategoryError(f"category must be one of {known} (prompt {self.prompt_name}); got {category!r}")
        if isinstance(self._prompt, OpenTextPrompt):
            try:
                self._prompt.find_ids([category])
            except ValueError as error:
                raise CategoryError(f"category of {len(category.split())} words is too long for the prompt") from error

    @torch.no_grad()
    def _encode_batch(self, images: list[ImageFeatures]) -> list[ImageFeatures]:
        """The images with all that was missing."""
        with self._lock:
            for key, compute in self._sources.items():
                todo = [image for image in images if key not in image.inputs]
                if todo:
                    values = compute([image.picture.image for image in todo], [image.category for image in todo])
                    for image, value in zip(todo, values, strict=True):
                        image.inputs[key] = value
            if self.depends_on_pair:
                return images
            todo = [image for image in images if image.feature is None]
            features = ()
            if todo:
                batch = collate([image.inputs for image in todo]) | {"category": [image.category for image in todo]}
                features = self._method.features(move_batch(batch, self.device), _seeds(todo))
                self._check(features, todo)
        made = dict(zip(map(id, todo), features, strict=True))
        return [replace(image, feature=made.get(id(image), image.feature)) for image in images]

    @torch.no_grad()
    def _extract_pairs(self, source: ImageFeatures, targets: list[ImageFeatures]) -> list[Pair]:
        sources = [source] * len(targets)
        sides = {"src": sources, "trg": targets}
        batch = {
            f"{side}_{key}": value
            for side, images in sides.items()
            for key, value in collate([image.inputs for image in images]).items()
        }
        batch["category"] = [target.category for target in targets]
        batch, seeds = move_batch(batch, self.device), torch.stack([_seeds(sources), _seeds(targets)], dim=1)
        if not isinstance(self._method, FeatureMethod):
            return [self._make_point_pair(source, target, batch, seeds, i) for i, target in enumerate(targets)]
        with self._lock:
            maps = self._method.pair_features(batch, seeds)
            for features, images in zip(maps, (sources, targets), strict=True):
                self._check(features, images)
        pairs = zip(targets, *maps, strict=True)
        return [Pair(source.picture, target.picture, *features, self._setting) for target, *features in pairs]

    def _make_point_pair(
        self, source: ImageFeatures, target: ImageFeatures, batch: dict, seeds: Tensor, i: int
    ) -> Pair:
        from sd4match.point_pair import PointPair

        images = {key: batch[key][i : i + 1] for key in ("src_image", "trg_image")}
        similarity = self._method.similarity(images, seeds[i : i + 1])
        pictures, maps = (source.picture, target.picture), (images["src_image"][0], images["trg_image"][0])
        return PointPair(*pictures, *maps, self._setting, similarity=similarity, lock=self._lock)

    def _check(self, features: Tensor, images: list[ImageFeatures]) -> None:
        """NetworkError for features with an inf or nan."""
        names = [image.picture.name for image in images]
        check_finite(features, names, self._method.block, self._method.precision)


def _seeds(images: Sequence[ImageFeatures]) -> Tensor:
    return torch.tensor([image.seed for image in images])
