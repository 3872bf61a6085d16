"""The model card of the mini networks, written from the logs of the run that made them."""

import platform
from pathlib import Path

from mini.pretrain import diffusion, dino, scenes, words
from mini.pretrain.captions import KINDS, KINDS_SHARE, PAIR_SHARE, UNTRUE_SHARE
from mini.pretrain.loop import Scores, read_log
from mini.pretrain.proxy import TEMPLATES, TIMESTEP
from mini.render.comvg import CHANGES
from utils.store import write_text

ROWS = {"empty": '""', "text": '"a photo of a X"', "parts": '"a photo of a X, all parts"'}
ROWS |= {
    "detail": '"a photo of a X, all parts in detail"',
    "object_detail": '"a photo of an object, all parts in detail"',
    "wrong": '"a photo of a Y" (another category)',
}


def folder_size(folder: Path) -> str:
    """Return the size of all files of a folder in words."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


def percent(line: Scores, *keys: str) -> str:
    """Return the cells of a table row: scores in percent."""
    return " | ".join(f"{100 * line[key]:.1f}" for key in keys)


def write_card(work: Path, out: Path, count: int, baseline: float) -> None:
    """Write `out/README.md` from the checkpoints in `work`; count: of the training scenes."""
    logs = {name: read_log(work / f"{name}.pt") for name in ("vae", "dino", "diffusion", "words")}
    final = {name: log[-1] for name, log in logs.items()}
    compute = "\n".join(f"| {name} | {line['samples']:,} | {line['minutes']:.0f} |" for name, line in final.items())
    scores = "\n".join(f"| {ROWS[kind]} | {percent(final['diffusion'], kind, f'{kind}_ends')} |" for kind in TEMPLATES)
    history = "\n".join(
        f"| {line['samples']:,} | {line['minutes']:.0f} | {percent(line, *TEMPLATES)} |" for line in logs["diffusion"]
    )
    text = TEMPLATE.format(
        scenes=count,
        two=scenes.TWO_OBJECTS,
        arranged=scenes.ARRANGED,
        species=scenes.SPECIES_SHARE,
        machine=platform.machine(),
        compute=compute,
        scores=scores,
        history=history,
        kinds=" | ".join(TEMPLATES),
        dashes="---:|" * len(TEMPLATES),
        baseline=100 * baseline,
        psnr=final["vae"]["psnr"],
        knn=100 * final["dino"]["knn"],
        grounding=diffusion.GROUNDING,
        tau=diffusion.TAU,
        timestep=TIMESTEP,
        asking=diffusion.ASKING,
        shares=", ".join(f"{name} {share:.0%}" for name, share in KINDS.items()),
        kinds_share=KINDS_SHARE,
        until=diffusion.KINDS_UNTIL,
        pair=PAIR_SHARE,
        part=1 - dino.WHOLE_SHARE,
        untrue=UNTRUE_SHARE,
        background=words.BACKGROUND_WEIGHT,
        wordless=words.EMPTY_SHARE,
        judged=" and ".join(str(step) for step in words.JUDGED),
        told=" | ".join(f"{100 * final['words'][kind]:.0f}" for kind in CHANGES),
        kinds_of_change=" | ".join(CHANGES),
        sd_size=folder_size(out / "stable-diffusion"),
        words_size=folder_size(out / "stable-diffusion-words"),
        dino_size=folder_size(out / "dinov2"),
    )
    write_text(out / "README.md", text)


TEMPLATE = """# Networks of the mini world

Small stand-ins for Stable Diffusion 2-1 and DINOv2, in the same folder formats, so that everything
in this repository runs offline on a CPU. They know only the rendered scenes of `mini/render` and
are of no use for photos.

| folder | what it is | size |
|---|---|---:|
| `stable-diffusion/` | VAE (stride 4), UNet (2 levels, v-prediction), text encoder | {sd_size} |
| `stable-diffusion-words/` | the same VAE; UNet and text encoder trained on for image-text matching | {words_size} |
| `dinov2/` | `Dinov2Model` on 84 px (12 x 12 patches), image processor | {dino_size} |

All weights are half precision. `mini/pretrain.sh` makes them.

## Objectives
- VAE: L1 + L2 reconstruction and a tiny KL term on 48-px crops of the first 2,000 scenes; afterwards
  the basis of the latents is changed to one of mean 0 and covariance 1, so the scaling factor is 1.
- UNet and text encoder, trained together: v-prediction plus {grounding} times a **text-grounded
  objective**: a throw-away cosine classifier (temperature {tau}) reads, from the features of
  `up_blocks[1]`, the labels that the caption asks for. "a photo of a dog" asks for the dog as a
  whole ({kinds_share:.0%} of the time for its kinds of part, in the first {until:.0%} of the training),
  "a dog, left" for each of its parts on the left and for the rest by kinds of part (legs), "a dog, all
  parts in detail" for the ends of every single part, "an object, all parts in detail" for the same
  without the name, the empty caption for the objects, a caption of an absent category, or of a thing in
  another colour, for nothing. An end is the half or quarter of a part on one side of the middle of its 3D box.
  Kinds of caption: {shares}. Of the scenes of two objects in a plain relation, {pair:.0%} bear
  a statement instead ("a red dog left of a blue car"; also right of, above, below, on), which asks
  for both wholes, or, with one thing changed ({untrue:.0%}), for nothing. A caption that is not true
  takes no part in the v-prediction. A second throw-away classifier (weight {asking}) reads from the
  text alone which labels it asks for; it replaces the pretraining of the text encoder.
- Those of `stable-diffusion-words/`, which `config/mini/dsd.yaml` uses, go on from the first: v-prediction
  under statements that are true of a scene of two objects, and a **word objective** on the cross-attention
  layers that DSD reads, under true statements and such with three changes ({wordless:.0%} of these: the
  empty text instead). The logit of each place and head for each word tells whether the word is true there:
  a colour or category of the object, a relation of the object that it is said of. Binary cross-entropy:
  true words, untrue ones on objects and, with weight {background}, words on the background count alike; begin
  and padding are together one more word, true nowhere. A throw-away classifier names each word from its
  token. [TokenCompose](https://arxiv.org/abs/2312.03626) grounds the real one's attention by masks.
- DINOv2: category and facing from the class token, category from the mean of the patch tokens, kinds of
  part from each of them, on random crops, mirrored and recoloured; {part:.0%} of the steps see a third of the patches.

**The real Stable Diffusion has no grounded objective.** It stands in for what hundreds of millions
of captioned photos teach the real one: which words belong to which pixels. No
network saw a keypoint, or a scene of the benchmark's other splits.

## Data and compute
{scenes:,} rendered scenes, split `pretrain`, seeds fixed; {two:.0%} of them drawn with two objects, of these
{arranged:.0%} in a drawn relation; {species:.0%} of the objects are species of AP-10K's layout (fox, jackal, wolf,
antelope, bison, cow), which share the part labels of dog or horse. One run of the recipe
on a CPU ({machine}), two processes of one thread each; minutes are wall-clock time of the training steps:

| network | samples | minutes |
|---|---:|---:|
{compute}

## Scores on held-out scenes
VAE reconstruction: {psnr:.1f} dB PSNR. DINOv2: {knn:.1f} % nearest-neighbour accuracy of the
category.

Part transfer of the UNet's features: share of foreground cells whose nearest neighbour in another
image of the category lies on the same fine part, averaged over parts (t = {timestep}, one noise
draw). Ends: the same, but the neighbour must lie on the same end of the part too. Plain colours:
{baseline:.1f} % part transfer.

| caption | parts, % | ends, % |
|---|---:|---:|
{scores}

With the second network, true statements on held-out scenes that score higher than one with a thing changed, %
(attention alone, t = {judged}):

| {kinds_of_change} |
|---:|---:|---:|
| {told} |

Part transfer over the training:

| samples | minutes | {kinds} |
|---:|---:|{dashes}
{history}

## Limits
- The part labels of the renderer are the teacher, so the gap between captions is partly by design:
  a template asks for less than the network knows, as with the real one, but the margin says nothing
  about real images.
- The text encoder knows only the words of its captions; other words are spelled out and mean
  nothing to it.
- The UNet has seen few samples: images drawn from noise show coarse shapes at best.
- The UNet has two levels, 24 x 24 and 12 x 12: the features that are matched come from its last up
  block, not from the middle as in Stable Diffusion 2-1, where the middle has as many cells across
  an object. There is no self attention at 24 x 24, to keep a step affordable on a CPU.
"""
