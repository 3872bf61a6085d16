"""LDM_correspondences: a text embedding per point, found by descent on Stable Diffusion's attention; no training.

One token's cross-attention is pushed to peak at the query point of the source; on the target the same embedding's
peak is the match ("Unsupervised Semantic Correspondence Using Stable Diffusion", NeurIPS 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import ConfigError
from model.backbone.device import check_finite, name_precision, resolve_dtype, speed_up
from model.method.base import Batch, Method
from model.method.embedding_store import EmbeddingStore
from model.method.point_embedding import CropLatents, Descent, PointReader, Reading, Rows
from model.source import find_caches, fingerprint_stable_diffusion, load_parts
from utils.crop import CropRule
from utils.geometry import Size
from utils.noise import derive_seeds, draw_noise, identifier_seed

Images = dict[int, Tensor]  # (3, R, R) in [-1, 1] by key
Progress = Callable[[int, int], None]  # (rows through the UNet, rows in all); may raise to cancel
OF_READING = ("READ_LAYERS", "CROPS", "TIMESTEP", "PIXEL_SOFTMAX", "ROUNDS", "ROWS_AT_ONCE", "KEPT_CROPS")


@dataclass(frozen=True)
class Point:
    """A point of a source image."""

    key: int  # of the image
    xy: tuple[float, float]  # px
    name: str | None = None  # of the image in the store; None: it is not kept


class LDMCorrespondence(Method):
    """Maps (B, N, R, R) of the points over the target, at the resolution of the image of R x R pixels."""

    reads = ("image",)
    keeps_pairs = True
    block = "the attention maps"

    def __init__(
        self,
        finder: PointReader,  # with the layers on which embeddings are found
        read_layers: Sequence[str],  # those on which they are read
        *,
        descent: Descent,
        reading: Reading,
        rounds: int = 5,  # embeddings of each point, whose maps are averaged
        tokens: int = 77,
        pixel_softmax: bool = True,  # of each layer's map, before the mean over the layers
        store: EmbeddingStore | None = None,
    ) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([finder.unet, finder.latents.vae])
        self.finder, self.reader = finder, finder.on(read_layers)
        self.descent, self.reading, self.rounds, self.tokens = descent, reading, rounds, tokens
        self.pixel_softmax, self.store = pixel_softmax, store
        self.image_size = (finder.rule.image,) * 2
        self.progress: Progress | None = None

    @property
    def precision(self) -> str:
        return name_precision(self.finder.unet.dtype)

    def similarity(self, batch: Batch, seeds: Tensor) -> AttentionSimilarity:
        return AttentionSimilarity(self, batch, seeds)

    def find(self, images: Images, points: Sequence[Point]) -> Tensor:
        """Embeddings (n, rounds, L, D) of points; the same point is found once, and those in the store are read."""
        found: dict[Point, Tensor] = {}
        todo: dict[Point, int] = {}  # the first round that is missing
        for point in dict.fromkeys(points):
            kept = self.store.get(point.name, point.xy, images[point.key]) if self.store and point.name else None
            none = torch.empty(0, self.tokens, self.finder.width)
            found[point] = (kept["embedding"][: self.rounds] if kept else none).to(self.finder.device)
            if (first := len(found[point])) < self.rounds:
                todo[point] = first
        tick = self._count_rows(sum(self.rounds - first for first in todo.values()) * self.descent.steps)
        for point, embeddings, losses in self._find(images, todo, tick):
            self._check(losses[None], [point])
            if self.store and point.name:
                self.store.put(point.name, point.xy, images[point.key], embeddings, losses, todo[point])
            found[point] = torch.cat([found[point], embeddings])
        return torch.stack([found[point] for point in points])

    def _find(self, images: Images, todo: dict[Point, int], tick) -> Iterator[tuple[Point, Tensor, Tensor]]:
        """(point, embeddings (r, L, D), losses (r, steps)) of the missing rounds, as they get finished."""
        points, step = list(todo), max(1, self.finder.rows_at_once // self.rounds)
        for part in (points[i : i + step] for i in range(0, len(points), step)):
            rows = [(point, number) for point in part for number in range(todo[point], self.rounds)]
            seeds = torch.tensor([identifier_seed(point.key, f"{point.xy} {number}") for point, number in rows])
            anchors = torch.tensor([point.xy for point, _ in rows])
            start = draw_noise(derive_seeds(seeds, 0), (self.tokens, self.finder.width), self.finder.device)
            asked = Rows(tuple(point.key for point, _ in rows), anchors, seeds)
            found = self.finder.find(images, asked, start, self.descent, tick)
            sizes = [self.rounds - todo[point] for point in part]
            yield from zip(part, *(values.split(sizes) for values in found), strict=True)

    def read(self, images: Images, keys: Sequence[int], points: Sequence[Point], embeddings: Tensor) -> Tensor:
        """Maps (n, layers, R, R) of the points' embeddings (n, rounds, L, D) on images: mean over the rounds."""
        rows = [(key, point, number) for key, point in zip(keys, points, strict=True) for number in range(self.rounds)]
        seeds = [identifier_seed(key, f"{point.key} {point.xy} {number}") for key, point, number in rows]
        asked = Rows(tuple(key for key, *_ in rows), torch.zeros(len(rows), 2), torch.tensor(seeds))
        tick = self._count_rows(len(rows) * self.reading.crops)
        total = torch.zeros(len(points), len(self.reader.layers), *self.image_size, device=embeddings.device)
        for part, maps in self.reader.read(images, asked, embeddings.flatten(0, 1), self.reading, tick):
            owner = torch.arange(part.start, part.stop, device=maps.device) // self.rounds
            total.index_add_(0, owner, maps)
        self._check(total, points)
        return total / self.rounds

    def _check(self, values: Tensor, points: Sequence[Point]) -> None:
        """NetworkError if those of a point are not finite."""
        names = [f"point {point.xy} of {point.name or 'the source'}" for point in points]
        check_finite(values, names, self.block, self.precision)

    def _count_rows(self, total: int) -> Callable[[int], None]:
        """Adds up what passes and tells `progress`."""
        done = 0

        def tick(rows: int) -> None:
            nonlocal done
            done = min(done + rows, total)
            if self.progress is not None:
                self.progress(done, total)

        return tick

    def combine(self, maps: Tensor) -> Tensor:
        """One map (..., R, R) out of those of the layers (..., layers, R, R)."""
        if self.pixel_softmax:
            maps = maps.flatten(-2).softmax(dim=-1).view_as(maps)
        return maps.mean(dim=-3)

    @classmethod
    def fingerprint(cls, cfg) -> str:
        return fingerprint_stable_diffusion(cfg, ("unet", "vae", "scheduler"))

    @classmethod
    def build(cls, cfg, device: torch.device, categories: Sequence[str] | None, training: bool, folder=None):
        section, (height, width) = cfg.LDM, cfg.DATASET.IMAGE_SIZE
        if height != width:
            raise ConfigError(f"DATASET.IMAGE_SIZE {height, width}: METHOD.NAME {cfg.METHOD.NAME} takes squares")
        if section.TOKEN >= section.TOKENS:
            raise ConfigError(f"LDM.TOKEN {section.TOKEN}: there are tokens 0..{section.TOKENS - 1} (LDM.TOKENS)")
        store = None
        if categories is not None:  # points of images of no data set are found anew
            store = EmbeddingStore(find_caches(cfg) / "LDM-embedding" / cfg.DATASET.NAME, cls.what_finds(cfg, device))
        try:
            return cls(
                build_reader(cfg, device),
                section.READ_LAYERS or section.LAYERS,
                descent=Descent(section.STEPS, section.LR, section.SIGMA, section.FIND_TIMESTEP, section.FLIP_PROB),
                reading=Reading(section.CROPS, section.TIMESTEP),
                rounds=section.ROUNDS,
                tokens=section.TOKENS,
                pixel_softmax=section.PIXEL_SOFTMAX,
                store=store,
            )
        except ValueError as error:  # a layer or head that is not there
            raise ConfigError(f"LDM: {error}") from error

    @classmethod
    def what_finds(cls, cfg, device: torch.device) -> dict:
        """What decides the embeddings, besides image and point."""
        stamp = {
            "what": "text embeddings of points",
            "fingerprint": cls.fingerprint(cfg),
            "image_size": list(cfg.DATASET.IMAGE_SIZE),
            "frame": cfg.DATASET.FRAME,
            "seed": cfg.SEED,
            "precision": str(resolve_dtype(cfg.PRECISION, device)),
        }
        return stamp | {f"LDM.{key}": value for key, value in cfg.LDM.items() if key not in OF_READING}


class AttentionSimilarity:
    """Maps over the target for points of the source, in pixels; an embedding is found for each that has none yet."""

    def __init__(self, method: LDMCorrespondence, batch: Batch, seeds: Tensor) -> None:
        self.method = method
        self.src_keys, self.trg_keys = seeds.T.tolist()  # an image is called by its seed
        sides = (self.src_keys, batch["src_image"]), (self.trg_keys, batch["trg_image"])
        self.images = {key: image.float() for keys, side in sides for key, image in zip(keys, side, strict=True)}
        self.names = batch.get("src_identifier", [None] * len(seeds))
        self.mask = batch.get("kps_mask")

    @property
    def src_size(self) -> Size:
        return self.method.image_size

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of `layer_maps`."""
        return self.method.reader.layers

    def __call__(self, points_cell: Tensor) -> Tensor:
        return self.method.combine(self.layer_maps(points_cell))

    def layer_maps(self, points_px: Tensor, on_source: bool = False) -> Tensor:
        """Maps (B, N, layers, R, R) of points (B, N, 2) over the target, or the source itself; zeros for padding."""
        shape = points_px.shape[:2]
        real = self.mask if self.mask is not None and self.mask.shape == shape else torch.ones(shape, dtype=torch.bool)
        places = real.cpu().nonzero().tolist()
        values = points_px.float().cpu()
        points = [Point(self.src_keys[b], tuple(values[b, n].tolist()), self.names[b]) for b, n in places]
        keys = [(self.src_keys if on_source else self.trg_keys)[b] for b, _ in places]
        maps = torch.zeros(*shape, len(self.method.reader.layers), *self.src_size, device=points_px.device)
        if points:
            maps[real.to(maps.device)] = self.method.read(
                self.images, keys, points, self.method.find(self.images, points)
            )
        return maps


def build_reader(cfg, device: torch.device) -> PointReader:
    """The networks, frozen: UNet in PRECISION, VAE in float32."""
    section, (size, _) = cfg.LDM, cfg.DATASET.IMAGE_SIZE
    networks = load_parts(cfg, ("unet", "scheduler"), device, resolve_dtype(cfg.PRECISION, device))
    speed_up(networks.unet, cfg.NETWORK.MEMORY_FORMAT, cfg.NETWORK.COMPILE)
    vae = load_parts(cfg, ("vae",), device).vae
    latents = CropLatents(vae, networks.facts.scaling_factor, cfg.EVAL.BATCH_SIZE, section.KEPT_CROPS)
    return PointReader(
        networks.unet,
        networks.scheduler,
        latents,
        CropRule.from_shares(size, section.CROP_PERCENT, section.CROP_MARGIN),
        layers=section.LAYERS,
        heads=section.HEADS or None,
        token=section.TOKEN,
        uniform_noise=section.NOISE == "uniform",
        rows_at_once=section.ROWS_AT_ONCE,
    )
