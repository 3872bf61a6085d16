"""The model card of the mini networks, written from the logs of the runs that made them."""

import json
import platform
from pathlib import Path

from mini.pretrain import diffusion
from mini.pretrain.captions import KINDS
from mini.pretrain.proxy import TEMPLATES, TIMESTEP

ROWS = {"empty": '""', "text": '"a photo of a X"', "parts": '"a photo of a X, all parts"'}
ROWS |= {
    "detail": '"a photo of a X, all parts in detail"',
    "object_detail": '"a photo of an object, all parts in detail"',
    "wrong": '"a photo of a Y" (another category)',
}


def read_log(path: Path) -> list[dict[str, float]]:
    """Return the reports of a run, oldest first. Raises FileNotFoundError if it has not been trained."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run mini/pretrain.sh --stage {path.stem}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def folder_size(folder: Path) -> str:
    """Return the size of all files of a folder in words."""
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"


def percent(line: dict[str, float], *keys: str) -> str:
    """Return the cells of a table row: scores in percent."""
    return " | ".join(f"{100 * line[key]:.1f}" for key in keys)


def write_card(work: Path, out: Path, scenes: int, baseline: float, device: str, note: str) -> None:
    """Write `out/README.md` from the logs in `work`."""
    logs = {name: read_log(work / f"{name}.jsonl") for name in ("vae", "dino", "diffusion")}
    final = {name: log[-1] for name, log in logs.items()}
    compute = "\n".join(f"| {name} | {line['samples']:,} | {line['minutes']:.0f} |" for name, line in final.items())
    scores = "\n".join(f"| {ROWS[kind]} | {percent(final['diffusion'], kind, f'{kind}_ends')} |" for kind in TEMPLATES)
    history = "\n".join(
        f"| {line['samples']:,} | {line['minutes']:.0f} | {percent(line, *TEMPLATES)} |" for line in logs["diffusion"]
    )
    text = TEMPLATE.format(
        scenes=scenes,
        device=device,
        note=note,
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
        sd_size=folder_size(out / "stable-diffusion"),
        dino_size=folder_size(out / "dinov2"),
    )
    (out / "README.md").write_text(text)


TEMPLATE = """# Networks of the mini world

Small stand-ins for Stable Diffusion 2-1 and DINOv2, in the same folder formats, so that everything
in this repository runs offline on a CPU. They know only the rendered scenes of `mini/render` and
are of no use for photos.

| folder | what it is | size |
|---|---|---:|
| `stable-diffusion/` | VAE (stride 4), UNet (2 levels, v-prediction), text encoder | {sd_size} |
| `dinov2/` | `Dinov2Model` on 84 px (12 x 12 patches), image processor | {dino_size} |

All weights are half precision. `mini/pretrain.sh` makes them.

## Objectives
- VAE: L1 + L2 reconstruction and a tiny KL term on 48-px crops of the first 2,000 scenes; afterwards
  the basis of the latents is changed to one of mean 0 and covariance 1, so the scaling factor is 1.
- UNet and text encoder, trained together: v-prediction plus {grounding} times a **text-grounded
  objective**: a throw-away cosine classifier (temperature {tau}) reads, from the features of
  `up_blocks[1]`, the labels that the caption asks for. "a photo of a dog" asks for the dog as a
  whole, "a dog, left" for each of its parts on the left and for the rest by kinds of part (legs),
  "a dog, all parts in detail" for the ends of every single part, "an object, all parts in detail"
  for the same without the name, the empty caption for the objects, a caption of an absent category
  for nothing. An end is the half or quarter of a part on one side of the middle of its 3D box.
  Kinds of caption: {shares}. A second throw-away classifier (weight {asking}) reads from the text
  alone which labels it asks for; it replaces the pretraining of the text encoder.
- DINOv2: category, colour and facing from the class token, kinds of part from the patch tokens.

**The real Stable Diffusion has no grounded objective.** It stands in for what hundreds of millions
of captioned photos teach the real one: which words belong to which pixels. No
network saw a keypoint, or a scene of the benchmark's other splits.

## Data and compute
{scenes:,} rendered scenes (a quarter with two objects), split `pretrain`, seeds fixed. Trained on
{device} ({machine}); minutes are wall-clock time of the training steps on a machine shared with
other work:

| network | samples | minutes |
|---|---:|---:|
{compute}

{note}

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
