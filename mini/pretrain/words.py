"""A second mini Stable Diffusion, trained on from the first until its attention lies where its words are true.

The first takes in its caption as a whole, so where a place attends says little about a word. Here every cross-attention
layer that DSD reads is asked, for each place and each word of a statement on two things: is the word true of the place?
Beside it goes on what a network of this kind is trained for, v-prediction under true captions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from mini.pretrain.captions import REVERSED
from mini.pretrain.diffusion import (
    WIDTH,
    build_scheduler,
    denoising_loss,
    draw_latents,
    draw_timesteps,
    load_moments,
    save_pipeline,
)
from mini.pretrain.loop import Run, Schedule, Scores, fit
from mini.pretrain.process import first_process_first
from mini.pretrain.proxy import BATCH
from mini.pretrain.scenes import SceneStore, to_cells
from mini.pretrain.tokenizer import POSITIONS, tokenize
from mini.pretrain.vae import encode
from mini.render.comvg import CHANGES, Statement, change_statement
from model.backbone.attention import read_layers
from model.backbone.image_text import ImageTextScore, find_layers
from model.backbone.text import PromptEncoder

SIDE = 24  # cells of a latent's side
# Times that something is changed in a statement: a single untrue word would be taken for true among true ones. Changed
# twice, "on" may become "above", which here counts as untrue.
CHANGED = 3
EMPTY_SHARE = 0.1  # share of the changed statements in whose stead stands the empty text: a true one, without words
TIMESTEP_SHARES = {300: 0.5, 1000: 0.5}  # share of the timesteps drawn below each limit
BACKGROUND_WEIGHT = 0.3  # of words at places where nothing is
JUDGED = (114, 364)  # timesteps of the score that watches the training


def find_truth(said: Statement, seen: Statement) -> list[int | None]:
    """For each word of a statement the thing (0, 1) of which it is true where `seen` is what is to be seen, or None.

    A relation is said of the first thing.
    """
    truth: list[int | None] = []
    for place, (thing, fact) in enumerate(zip(said.things, seen.things, strict=True)):
        truth.append(None)  # "a"
        for text, true in zip(thing, fact, strict=True):
            truth += [place if text == true else None] * len(text.replace("_", " ").split())
        if place == 0:
            truth += [0 if said.relation == seen.relation else None] * len(said.relation.split())
    return truth


def word_loss(scores: torch.Tensor, truth: torch.Tensor, spoken: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
    """How badly a layer's logits (n, heads, h, w, L) tell where each word is true.

    truth (n, L, H, W) and things (n, H, W), where anything is: shares of a cell; spoken (n, L): tokens that are words.
    True words, untrue ones on things, and words where nothing is count alike, whatever their number. All that is not
    spoken, begin and padding, counts as one word that is true nowhere: it would outweigh the others in the score.
    """
    size = scores.shape[2:4]
    true = F.adaptive_avg_pool2d(truth, size).permute(0, 2, 3, 1)[:, None]
    things = F.adaptive_avg_pool2d(things[:, None], size)[..., None]
    untrue = (1 - true) * spoken[:, None, None, None]
    rest = scores.masked_fill(spoken[:, None, None, None] > 0, -torch.inf).logsumexp(dim=-1)
    return (
        _mean(F.softplus(-scores), true)
        + _mean(F.softplus(scores), untrue * things)
        + BACKGROUND_WEIGHT * _mean(F.softplus(scores), untrue * (1 - things))
        + F.softplus(rest).mean()
    )


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.expand_as(values)
    return (values * weights).sum() / weights.sum().clamp(min=1)


class Statements:
    """Draws statements that are true and untrue of scenes of two objects in a plain relation."""

    def __init__(self, store: SceneStore):
        self.store = store
        self.rows = torch.tensor([row for row, relation in enumerate(store.relations) if relation])
        _, self.instance = to_cells(store.detail[self.rows.numpy()], store.instance[self.rows.numpy()])

    def describe(self, row: int, reverse: bool) -> tuple[Statement, tuple[int, int]]:
        """What is to be seen in a scene, and the numbers of its objects; `reverse`: told of the second first."""
        things = tuple((o["colour"], o["category"]) for o in self.store.objects[row])
        relation = self.store.relations[row]
        if reverse and relation in REVERSED:
            return Statement(things[::-1], REVERSED[relation]), (2, 1)
        return Statement(things, relation), (1, 2)

    def draw(
        self, count: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, list[str], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw scenes, each under what is true of it, and changed, or without words.

        Returns rows of the store (2n,), texts, which are true (2n,), and truth, spoken and things of `word_loss`.
        """
        chosen = rng.integers(len(self.rows), size=count)
        texts, true = [""] * 2 * count, torch.ones(2 * count)
        truth, spoken = torch.zeros(2 * count, POSITIONS, SIDE, SIDE), torch.zeros(2 * count, POSITIONS)
        for i, scene in enumerate(chosen):
            seen, numbers = self.describe(int(self.rows[scene]), bool(rng.random() < 0.5))
            masks = [torch.from_numpy(self.instance[scene] == number).float() for number in numbers]
            changed = seen
            for kind in rng.choice(CHANGES, size=CHANGED):
                changed = change_statement(rng, changed, kind)
            both = (seen,) if rng.random() < EMPTY_SHARE else (seen, changed)
            for j, said in zip((i, count + i), both, strict=False):
                texts[j], true[j] = said.sentence, float(said == seen)
                for token, place in enumerate(find_truth(said, seen), start=1):
                    spoken[j, token] = 1
                    if place is not None:
                        truth[j, token] = masks[place]
        things = torch.from_numpy(self.instance[chosen] > 0).float()
        return self.rows[chosen].repeat(2), texts, true, truth, spoken, things.repeat(2, 1, 1)


class Judge:
    """Tells true statements on held-out scenes from changed ones by DSD's attention score."""

    def __init__(self, store: SceneStore, latents: torch.Tensor, tokenizer: CLIPTokenizer):
        self.latents, self.tokenizer = latents, tokenizer
        statements, rng = Statements(store), np.random.default_rng(21)
        self.kinds = [CHANGES[i % len(CHANGES)] for i in range(len(store))]
        seen = [statements.describe(row, False)[0] for row in range(len(store))]
        changed = [change_statement(rng, said, kind) for said, kind in zip(seen, self.kinds, strict=True)]
        self.texts = [[said.sentence for said in statements] for statements in (seen, changed)]
        self.noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def __call__(self, networks: nn.Module) -> Scores:
        """The share of each kind of change whose true statement scores higher."""
        text = PromptEncoder(networks["text_encoder"], self.tokenizer)
        score = ImageTextScore(networks["unet"], build_scheduler(), text, terms="attention", rows=BATCH)
        totals = [torch.zeros(len(self.latents))] * 2
        for step in JUDGED:
            for i, texts in enumerate(self.texts):
                steps = torch.full((len(texts),), step)
                totals[i] = totals[i] + score.score(self.latents, texts, steps, self.noise).attention
        wins = (totals[0] > totals[1]).float()
        return {kind: wins[[k == kind for k in self.kinds]].mean().item() for kind in CHANGES}


def train_words(
    store: SceneStore,
    held_out: SceneStore,
    tokenizer: CLIPTokenizer,
    trained: Path,
    schedule: Schedule,
    folder: Path,
    out: Path,
    device,
) -> None:
    """Train UNet and text encoder of the pipeline in `trained` on, and save it to `out`."""
    pipeline = StableDiffusionPipeline.from_pretrained(trained, torch_dtype=torch.float32)
    vae, scheduler = pipeline.vae.eval(), build_scheduler()
    scale = vae.config.scaling_factor
    with first_process_first():
        moments = load_moments(vae, store, folder / "moments.pt", device)
    statements = Statements(store)
    judge = Judge(held_out, scale * encode(vae, held_out.image, device)[:, :4].float(), tokenizer)
    naming = nn.Linear(WIDTH, len(tokenizer))
    networks = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "naming": naming})
    run = Run("words", networks.to(device).requires_grad_(True), schedule, folder)
    layers = find_layers(pipeline.unet)

    def compute_loss(networks: nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Scores]:
        rng = np.random.default_rng(torch.randint(2**62, (1,), generator=generator).item())
        rows, texts, true, truth, spoken, things = statements.draw(schedule.local_batch // 2, rng)
        z = draw_latents(moments, rows, scale, generator)
        noise, timesteps = torch.randn(z.shape, generator=generator), draw_timesteps(len(z), generator, TIMESTEP_SHARES)
        x_t, target = scheduler.add_noise(z, noise, timesteps), scheduler.get_velocity(z, noise, timesteps)
        ids = tokenize(tokenizer, texts).to(device)
        tokens = networks["text_encoder"](ids).last_hidden_state
        with read_layers(networks["unet"], layers, (SIDE, SIDE), stop=False) as found:
            velocity = networks["unet"](x_t.to(device), timesteps.to(device), tokens).sample
        truth, spoken, things = (values.to(device) for values in (truth, spoken, things))
        losses = {"denoising": denoising_loss(velocity, target.to(device), true.to(device))}
        losses["naming"] = F.cross_entropy(networks["naming"](tokens[spoken > 0]), ids[spoken > 0])
        losses |= {name: word_loss(found[name].scores(), truth, spoken, things) for name in layers}
        return sum(losses.values()), {name: value.item() for name, value in losses.items()}

    def export(networks: nn.Module) -> None:
        save_pipeline(vae, networks["unet"], networks["text_encoder"], scheduler, folder / "tokenizer", out)

    fit(run, compute_loss, judge, export)
