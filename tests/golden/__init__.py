"""What the project computed before it was rebuilt, measured through its commands and its Python API.

values.json     by name: {"shape", "norm", "max", "part"} of an array (every n-th value, for a short list all of it), or
                plain numbers. Features of every method and prompt, loss and gradient of every kind of prompt, a resumed
                run, predictions of every localiser, PCK tables.
pairs.zip       40 pairs of the mini world in SPair-71k's layout, for the tables of the embedded networks
prompt/         learned prompts of the tiny networks as the authors' files have them, ckpt.pt and caption.pt
network/        weights of the tiny networks of transformers (tests/tiny.py)

tests/test_golden.py compares. `python -m tests.golden [NAME...]` measures anew what a deliberate change has touched (a
name, or the beginning of names, such as `table`: the embedded networks were trained anew) and writes values.json.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.command import call, read_scalars
from tests.watch import watching

FOLDER = Path(__file__).parent
VALUES = FOLDER / "values.json"
PROMPTS = FOLDER / "prompt"
SHOWN = 12  # values of an array that are kept

CPM = [
    f"{scope}-{network}-{feature}-G3-C4"
    for scope in ("Pair", "Img")
    for network in ("DINO", "CLIP")
    for feature in ("Feat", "Head")
]
KINDS = {
    **{variant: ("PROMPT.KIND", "CPM", "PROMPT.CPM", variant) for variant in (*CPM, "Pair-DINO-Feat-G0-C5-noN")},
    **{
        f"{kind}-{space}": ("PROMPT.KIND", kind, "PROMPT.SPACE", space, "PROMPT.LENGTH", "5")
        for kind in ("Single", "Class")
        for space in ("TokenEmbeds", "HiddenState")
    },
    "Class-text": ("PROMPT.KIND", "Class", "PROMPT.LENGTH", "5", "PROMPT.INIT", "text:a {category}"),
    "Single-empty": ("PROMPT.KIND", "Single", "PROMPT.LENGTH", "5", "PROMPT.INIT", "empty"),
}
METHODS = {
    "sd4match": (),
    "dift": ("TEST.TIMESTEP", "261", "TEST.ENSEMBLE", "3", "METHOD.LAYER", "2"),
    "mode": ("METHOD.POSTERIOR", "mode", "METHOD.LAYER", "0", "SEED", "3"),
    "dinov2": ("METHOD.NAME", "dinov2"),
    "dinov2_block": ("METHOD.NAME", "dinov2", "METHOD.DINO_LAYER", "0", "METHOD.DINO_NORM", "False"),
    "dinov2_layer": ("METHOD.NAME", "dinov2", "METHOD.DINO_LAYER", "0"),
    "sd_dino": ("METHOD.NAME", "sd_dino", "METHOD.SD_WEIGHT", "0.7"),
    "sd_dino_release": ("METHOD.NAME", "sd_dino", "METHOD.DINO_INPUT", "release"),
    "cleandift": ("METHOD.NAME", "cleandift", "METHOD.POSTERIOR", "mode", "TEST.ENSEMBLE", "1"),
}
TRAINED_KEYS = {  # a training step and a validation with one key changed
    **{
        f"{key} {value}": (key, value)
        for key, value in (
            ("SEED", "3"),
            ("DATASET.IMAGE_SIZE", "[64, 32]"),
            ("METHOD.LAYER", "2"),
            ("METHOD.POSTERIOR", "mode"),
            ("LOSS.BETA", "0.1"),
            ("LOSS.KERNEL_SIZE", "3"),
            ("LOSS.SIGMA", "0.7"),
            ("TRAIN.SPLIT", "test"),
            ("TRAIN.TIMESTEP", "50"),
            ("TRAIN.ENSEMBLE", "2"),
            ("TRAIN.LR", "0.02"),
            ("VAL.SPLIT", "test"),
            ("VAL.TIMESTEP", "50"),
            ("VAL.ENSEMBLE", "2"),
            ("EVAL.BETA", "0.2"),
            ("EVAL.SIGMA", "1.0"),
        )
    },
    "TRAIN.LINEAR_LR_SCALE 0.5": (
        "PROMPT.KIND",
        "CPM",
        "PROMPT.INIT",
        "random",
        "PROMPT.CPM",
        CPM[0],
        "TRAIN.LINEAR_LR_SCALE",
        "0.5",
    ),
}
TESTED_KEYS = {  # a test with one key changed
    f"{key} {value}": (key, value)
    for key, value in (
        ("SEED", "3"),
        ("DATASET.CATEGORY", "cat"),
        ("METHOD.LAYER", "2"),
        ("METHOD.POSTERIOR", "mode"),
        ("PROMPT.TEMPLATE", "one {category}, drawn"),
        ("TEST.SPLIT", "trn"),
        ("TEST.TIMESTEP", "261"),
        ("TEST.ENSEMBLE", "3"),
        ("EVAL.BETA", "0.2"),
        ("EVAL.SIGMA", "1.0"),
        ("EVAL.PROTOCOL", "original"),
    )
}
DINO_KEYS = {  # a test of SD+DINO with one key changed
    f"{key} {value}": (key, value)
    for key, value in (
        ("METHOD.DINO_NORM", "False"),
        ("METHOD.DINO_INPUT", "release"),
        ("METHOD.SD_WEIGHT", "0.2"),
        ("METHOD.DINO_WEIGHT", "0.2"),
    )
}
CURVE = f"({', '.join(f'{alpha / 50:g}' for alpha in range(1, 41))})"  # alphas at which PCK shows small changes
DINO = ("METHOD.DINO_SIZE", "[56, 56]", "METHOD.DINO_FOLDER")


def summarise(values: Any) -> dict[str, Any]:
    """What is kept of an array."""
    array = np.asarray(values, dtype=np.float64)
    flat = array.ravel()
    part = flat[:: max(1, flat.size // SHOWN)] if flat.size > 2 * SHOWN else flat
    numbers = [float(f"{value:.9g}") for value in (np.linalg.norm(flat), np.abs(flat).max(initial=0), *part)]
    return {"shape": list(array.shape), "norm": numbers[0], "max": numbers[1], "part": numbers[2:]}


def measure(world, output: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """All values whose name is wanted; the tiny networks and data are of `world`, files are written below `output`."""
    found: dict[str, Any] = {}
    for method, more in METHODS.items():
        if wanted(name := f"features/{method}"):
            found[name] = features(world, output, "text", *more)
    for prompt in ("empty", *sorted(path.name for path in PROMPTS.iterdir())):
        if wanted(name := f"features/sd4match/{prompt}"):
            found[name] = features(world, output, prompt)
    if wanted(name := "features/sd_dino/learned"):
        learned = "Single_spair_tiny_TokenEmbeds5"
        found[name] = features(world, output, learned, *METHODS["sd_dino"])
    if wanted("localisers"):
        found["localisers"] = localisers(world, output)
    for number, (kind, more) in enumerate(KINDS.items()):
        if wanted(name := f"step/{kind}"):
            found[name] = first_step(world, output / f"step{number}", *more)
    if wanted("step/pfpascal"):  # mirrored pairs
        more = ("DATASET.NAME", "pfpascal", "TRAIN.BATCH_SIZE", "4", "PROMPT.KIND", "Single")
        found["step/pfpascal"] = first_step(world, output / "pfpascal", *more)
    for kind in ("Pair-DINO-Feat-G3-C4", "Single-TokenEmbeds"):
        if wanted(name := f"resumed/{kind}"):
            found[name] = resumed_run(world, output / f"run_{kind}", *KINDS[kind])
    for number, (name, more) in enumerate({"": (), **TRAINED_KEYS}.items()):
        if wanted(name := f"trained/{name}"):
            found[name] = trained(world, output / f"trained{number}", *more)
    dino = (*METHODS["sd_dino"], *DINO, str(world and world.root / "dino"))
    for group, base, keys in (("tested", (), TESTED_KEYS), ("tested_dino", dino, DINO_KEYS)):
        for name, more in {"": (), **keys}.items():
            if wanted(name := f"{group}/{name}"):
                found[name] = tested(world, output, *base, *more)
    for name, more in {
        "table/text": ("PROMPT.TYPE", "text"),
        "table/class": ("PROMPT.TYPE", "Class_spair_mini_HiddenState"),
        "table/original": ("PROMPT.TYPE", "empty", "EVAL.PROTOCOL", "original"),
        "table/point": ("PROMPT.TYPE", "text", "EVAL.BY", "point"),
        "table/category": ("PROMPT.TYPE", "text", "EVAL.BY", "point", "EVAL.AVERAGE", "category"),
    }.items():
        if wanted(name):
            found[name] = table(output / "table", *more)
    return found


def features(world, output: Path, prompt: str, *more: str) -> dict[str, Any]:
    """Feature maps of both images of a pair."""
    pair = load_pair(world, output, prompt, *more)
    return {"src": summarise(pair.src_feat), "trg": summarise(pair.trg_feat)}


def load_pair(world, output: Path, prompt: str, *more: str):
    from config import load_config
    from sd4match import Matcher

    opts = world.opts(output, "PROMPT.TYPE", prompt, *DINO, str(world.root / "dino"), *more)
    folder = PROMPTS / prompt
    matcher = Matcher.from_config(load_config(None, opts), folder if folder.is_dir() else None)
    images = world.root / "data" / "SPair-71k" / "JPEGImages" / "cat"
    return matcher.pair(images / "2008_000000.jpg", images / "2008_000001.jpg", category="cat")


def localisers(world, output: Path) -> dict[str, Any]:
    """Points found by each localiser, and their confidence, on 8 x 8 cells."""
    pair = load_pair(world, output, "text", "METHOD.LAYER", "2", "DATASET.IMAGE_SIZE", "[64, 64]")
    points = [(3, 5), (20.5, 11.25), (40, 44), (60, 2)]
    found = {name: pair.match(points, name) for name in ("nn", "bilinear", "softmax", "kernelsoftmax")}
    return {
        f"{name} {what}": summarise(getattr(value, what))
        for name, value in found.items()
        for what in ("points", "confidence")
    }


def first_step(world, output: Path, *more: str) -> dict[str, Any]:
    """Loss and gradient of a step on all training pairs."""
    with watching() as seen:
        losses = train(world, output, "TRAIN.BATCH_SIZE", "6", "TRAIN.MAX_STEPS", "1", *more)["train/loss"]
    (step,) = seen.steps
    return {"loss": summarise(losses), "gradient": summarise(step.gradient), "lr": step.lr}


def resumed_run(world, output: Path, *more: str) -> dict[str, Any]:
    """Losses and validation scores of two epochs, stopped after step 2 and gone on with."""
    train(world, output, "TRAIN.EPOCHS", "2", "TRAIN.MAX_STEPS", "2", *more)
    scalars = train(world, output, "TRAIN.EPOCHS", "2", *more)
    kept = {tag: dict(scalars[tag]) for tag in ("train/loss", "val_nn/pck@0.1", "val_softmax/pck@0.1")}
    return {tag: {"steps": list(by_step), **summarise(list(by_step.values()))} for tag, by_step in kept.items()}


def trained(world, output: Path, *more: str) -> dict[str, Any]:
    """Loss and gradient of a Single prompt's first step on all training pairs, and the validation after it."""
    base = ("TRAIN.MAX_STEPS", "1", "PROMPT.KIND", "Single", "PROMPT.INIT", "empty", "EVAL.ALPHAS", CURVE)
    size = "4" if "TRAIN.SPLIT" in more else "6"  # as many pairs as the split has
    with watching() as seen:
        scalars = train(world, output, "TRAIN.BATCH_SIZE", size, *base, *more)
    (step,) = seen.steps
    pck = [value for tag, ((_, value),) in sorted(scalars.items()) if tag.startswith("val_")]
    loss = summarise([value for _, value in scalars["train/loss"]])
    return {"loss": loss, "gradient": summarise(step.gradient), "lr": step.lr, "pck": summarise(pck)}


def tested(world, output: Path, *more: str) -> dict[str, Any]:
    """PCK of the text prompt over many thresholds, localiser by localiser."""
    summary = test(output, *world.opts(output, "EVAL.ALPHAS", CURVE, *more))
    curves = [[row["all"] for row in rows.values()] for rows in summary["pck"].values()]
    return {"pairs": summary["pairs"], "pck": summarise(curves)}


def train(world, output: Path, *more: str) -> dict[str, list]:
    """Run train.py; what it wrote to tensorboard."""
    assert call("train.py", "--config_file", "config/spair/base.yaml", *world.opts(output, *more)) == 0
    return read_scalars(output)


def table(output: Path, *more: str) -> dict[str, Any]:
    """PCK of the embedded networks on 40 pairs of the mini world: {localiser: {alpha: {category: share}}}."""
    data, prompts = output / "data", output / "prompt"
    if not data.is_dir():
        with zipfile.ZipFile(FOLDER / "pairs.zip") as archive:
            archive.extractall(data)
    write_class_prompt(prompts / "Class_spair_mini_HiddenState")
    opts = ("DATASET.ROOT", data, "OUTPUT_ROOT", output, "DEVICE", "cpu", "EVAL.ALPHAS", "(0.03, 0.06, 0.1)")
    summary = test(output, "--config_file", "config/mini/base.yaml", *map(str, opts), *more)
    return {"pairs": summary["pairs"], "points": summary["points"], "pck": summary["pck"]}


def test(output: Path, *arguments: str) -> dict[str, Any]:
    """Run test.py; the summary it wrote below `output`."""
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    assert call("test.py", *arguments) == 0
    new = [path for path in output.rglob("*.json") if path.stat().st_mtime_ns != before.get(path)]
    contents = [json.loads(path.read_text()) for path in new]
    (summary,) = [content["summary"] for content in contents if "summary" in content]
    return summary


def write_class_prompt(folder: Path) -> None:
    """A Class prompt that learned nothing, as the authors' files hold one."""
    width = json.loads(Path("asset/mini/stable-diffusion/text_encoder/config.json").read_text())["hidden_size"]
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: torch.randn(1, 77, width, generator=generator) for name in ("bird", "chair", "dog", "horse")}
    torch.save(rows, folder / "caption.pt")
