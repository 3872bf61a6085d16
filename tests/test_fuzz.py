"""Damaged files of every kind that the project reads: a normal result, or one line that says which file and what to do.

Never a traceback (an error of a type that a command does not answer), and where a file carries its own check, never
another value than was written. `pytest tests/test_fuzz.py --fuzz-minutes 10 --fuzz-seed 7` looks further; a failure
names kind and seed, and `--fuzz-only KIND:SEED` repeats it.
"""

from __future__ import annotations

import contextlib
import io
import random
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from config import ConfigError, load_config
from config.load import dump_config
from engine.errors import USER_ERRORS
from tests.fuzz import Damage, damage_bytes, damage_json, damage_text, damage_yaml

SECONDS, MOST = 1.0, 50  # for each kind: seconds, and files
EXPECTED = (ConfigError, *USER_ERRORS)


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    write: Callable[[Path], None]  # sound files into a folder
    read: Callable[[Path], Any]  # everything that the project reads of them
    files: str  # pattern of those that are damaged
    damages: Sequence[Damage] = (damage_bytes,)
    checked: bool = False  # what is read after damage is what was written
    named: bool = True  # a refusal says the file, or its folder
    check: Callable[[Path, Any], None] | None = None  # of what was read from the damaged files


KINDS: dict[str, Kind] = {}


# ---- settings -------------------------------------------------------------------------------------------------


def write_config(folder: Path) -> None:
    (folder / "base.yaml").write_text("DATASET:\n  IMAGE_SIZE: [32, 32]\nTRAIN:\n  LR: 1e-2\n  BATCH_SIZE: 4\n")
    content = {
        "_BASE_": "base.yaml",
        "SEED": 3,
        "PRECISION": "fp32",
        "NETWORK": {"NAME": "tiny", "FOLDER": "asset/mini/stable-diffusion"},
        "CONDITION": {"DINO_FOLDER": "asset/mini/dinov2"},
        "PROMPT": {"KIND": "CPM", "CPM": "Pair-DINO-Feat-G3-C4", "LENGTH": 7, "TEMPLATE": "one {category}"},
        "LOSS": {"BETA": 0.05, "KERNEL_SIZE": 3},
        "TRAIN": {"EPOCHS": 2, "SCHEDULER": "piecewise_constant", "STEP_RULES": "1:3,0.1"},
        "EVAL": {"ALPHAS": [0.05, 0.1], "LOCALISERS": ["nn", "softmax"], "PROTOCOL": "original"},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def read_config(folder: Path) -> Any:
    from engine.check import check_config

    cfg = load_config(str(folder / "experiment.yaml"))
    for training in (True, False):
        check_config(cfg, training)
    return cfg


def check_meaning(folder: Path, cfg: Any) -> None:
    """A value is what a reader of the file takes it for, and what is printed of it reads back."""
    written = yaml.safe_load((folder / "experiment.yaml").read_text(encoding="utf-8-sig")) or {}
    for section, content in written.items():
        for key, value in content.items() if isinstance(content, dict) else ():
            found = cfg[section][key]
            if isinstance(found, tuple):
                assert list(found) == list(value), (section, key)
            elif isinstance(found, float):
                assert found == float(value), (section, key)
            else:
                assert found == value and type(found) is type(value), (section, key)
    printed = folder / "printed.txt"
    printed.write_text(dump_config(cfg), encoding="utf-8")
    again = load_config(str(printed))
    printed.unlink()
    assert dump_config(again) == dump_config(cfg)


KINDS["config"] = Kind(
    write_config,
    read_config,
    "experiment.yaml",
    (damage_text, damage_yaml, damage_yaml, damage_bytes),
    named=False,
    check=check_meaning,
)


def write_options(folder: Path) -> None:
    words = ["SEED", "3", "TRAIN.LR", "0.1", "DATASET.IMAGE_SIZE", "(32, 32)", "EVAL.ALPHAS", "[0.1, 0.2]"]
    words += ["PROMPT.TEMPLATE", "one {category}", "NETWORK.FOLDER", "asset/mini/stable-diffusion", "NETWORK.NAME", "m"]
    (folder / "options.txt").write_text("\n".join(words))


def read_options(folder: Path) -> Any:
    from engine.check import check_config

    words = (folder / "options.txt").read_text(errors="replace").split("\n")
    return check_config(load_config(None, words), training=False)


KINDS["options"] = Kind(write_options, read_options, "options.txt", (damage_text,), named=False)


# ---- data sets ------------------------------------------------------------------------------------------------


def read_benchmark(name: str, folder: Path) -> Any:
    """Every pair of every split, without the index, with it, and from it."""
    from dataset import BENCHMARKS
    from dataset.pair_dataset import PairDataset
    from engine.build import build_pairs

    shutil.rmtree(folder / "cache", ignore_errors=True)
    cfg = load_config(None, ["DATASET.NAME", name, "DATASET.ROOT", str(folder), "CACHE_ROOT", str(folder / "cache")])
    found = []
    for split in BENCHMARKS[name].SPLITS:
        pairs = build_pairs(cfg, split)
        assert isinstance(pairs, PairDataset)
        found += [repr(pairs.benchmark[number]) for number in range(len(pairs.benchmark))]
        list(pairs.benchmark.images())
        if len(pairs):
            pairs[0]
    return found


def check_points(folder: Path, records: list[str]) -> None:
    assert not any("inf" in record for record in records)


def add_benchmark(name: str, write: Callable[[Path], Any], patterns: Mapping[str, Sequence[Damage]]) -> None:
    for suffix, (pattern, damages) in enumerate(patterns.items()):
        KINDS[f"{name}-{suffix}"] = Kind(
            write,
            lambda folder: read_benchmark(name.split("_")[0], folder),
            pattern,
            damages,
            check=check_points,
            named=False,
        )


def write_benchmarks() -> None:
    from tests.fixtures_dataset import tiny_custom, tiny_custom_list, tiny_pfpascal, tiny_pfwillow, tiny_spair

    text = (damage_text, damage_bytes)
    add_benchmark("spair", tiny_spair, {"*/PairAnnotation/*/*.json": (damage_json, *text), "*/Layout/*/*.txt": text})
    add_benchmark("pfpascal", tiny_pfpascal, {"*/*_pairs.csv": text, "**/*.mat": (damage_bytes,)})
    add_benchmark("pfwillow", tiny_pfwillow, {"*/*_pairs.csv": text})
    add_benchmark("custom", tiny_custom, {"*/*.json": (damage_json, *text)})
    add_benchmark("custom_list", tiny_custom_list, {"*/*.csv": text})


write_benchmarks()


# ---- images ---------------------------------------------------------------------------------------------------

FORMATS = {"png": {}, "jpg": {}, "tiff": {}, "gif": {}, "bmp": {}, "webp": {"lossless": True}}


def write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    for suffix, settings in FORMATS.items():
        Image.fromarray(pixels).save(folder / f"picture.{suffix}", **settings)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 255).save(folder / "grey.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)


def read_images(folder: Path) -> Any:
    from utils.image import read_image

    found = {path.name: read_image(path) for path in sorted(folder.iterdir())}
    assert all(picture.image.mode == "RGB" for picture in found.values())
    return [np.asarray(picture.image) for picture in found.values()]


KINDS["image"] = Kind(write_images, read_images, "*")


# ---- prompts --------------------------------------------------------------------------------------------------


def write_prompts(folder: Path) -> None:
    from tests.golden import PROMPTS

    for path in PROMPTS.iterdir():
        shutil.copytree(path, folder / path.name)


def read_prompts(folder: Path) -> Any:
    from model.prompt.store import read_prompt

    found = {path.name: read_prompt(path) for path in sorted(folder.iterdir())}
    return {f"{name} {key}": value for name, stored in found.items() for key, value in stored.tensors.items()}


KINDS["released-prompt"] = Kind(write_prompts, read_prompts, "*/*.pt", checked=True)


def forge_tensors(rng: random.Random, data: bytes) -> bytes:
    """A sound file of the authors' kind with other contents."""
    tensors = torch.load(io.BytesIO(data), weights_only=True)
    name = rng.choice(sorted(tensors))
    value = tensors[name]
    odd = [
        value * float("nan"),
        value.clone().fill_(float("inf")),
        value[..., :-1],
        value[None],
        value.to(torch.complex64),
    ]
    odd += [
        value.numpy().tolist(),
        None,
        "x",
        value.to(torch.int64),
        value.to_sparse(),
        torch.empty(0),
        value.flatten(),
    ]
    changed = rng.choice([{name: rng.choice(odd)}, {rng.choice(["x", 3, "dog"]): value}, {name: None}])
    forged = {**tensors, **changed}
    if rng.random() < 0.2:
        forged.pop(name)
    buffer = io.BytesIO()
    torch.save(rng.choice((forged, forged, forged, forged, [forged], value)), buffer)
    return buffer.getvalue()


def check_finite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, value in tensors.items():
        assert value.dtype == torch.float32 and value.isfinite().all(), name


KINDS["forged-prompt"] = Kind(write_prompts, read_prompts, "*/*.pt", (forge_tensors,), check=check_finite)


def write_own_prompt(folder: Path) -> None:
    from model.prompt.store import read_prompt, write_prompt
    from tests.golden import PROMPTS

    for path in PROMPTS.iterdir():
        write_prompt(folder / path.name, read_prompt(path), "own")


def read_own_prompt(folder: Path) -> Any:
    from model.prompt.store import read_prompt

    stored = [read_prompt(path) for path in sorted(folder.iterdir())]
    said = [{key: value for key, value in prompt.meta.items() if not is_digest(value)} for prompt in stored]
    return [prompt.tensors for prompt in stored], said


def is_digest(value: Any) -> bool:
    """The digest under another name, its own being damaged, says nothing of the prompt."""
    return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{32}", value))


KINDS["own-prompt"] = Kind(write_own_prompt, read_own_prompt, "*/*", (damage_bytes,), checked=True)


# ---- caches, states, indexes ----------------------------------------------------------------------------------


def open_cache(folder: Path):
    from utils.cache import FeatureCache

    return FeatureCache(folder, {"what": "numbers"}, (3, 4))


def write_cache(folder: Path) -> None:
    cache = open_cache(folder)
    for number in range(3):
        cache.put(f"cat/{number}", f"hash{number}", torch.arange(12.0).reshape(3, 4) + number)


def read_cache(folder: Path) -> Any:
    """An entry that is not sound is computed again."""
    cache = open_cache(folder)
    for name in cache.missing((f"cat/{number}", f"hash{number}") for number in range(3)):
        number = int(name[-1])
        cache.put(name, f"hash{number}", torch.arange(12.0).reshape(3, 4) + number)
    return [cache.get(f"cat/{number}") for number in range(3)]


KINDS["cache"] = Kind(write_cache, read_cache, "**/*", checked=True)


def write_state(folder: Path) -> None:
    from utils.checkpoint import save_checkpoint

    adam = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 3)}}, "param_groups": [{"lr": 0.1}]}
    state = {"settings": {"TRAIN.LR": 0.1, "EVAL.ALPHAS": (0.05, 0.1)}, "learner": {"optimizer": adam, "best": None}}
    save_checkpoint(folder, state)


def read_state(folder: Path) -> Any:
    from utils.checkpoint import load_checkpoint

    return load_checkpoint(folder)


KINDS["state"] = Kind(write_state, read_state, "*", (damage_bytes,), checked=True)


def write_index(folder: Path) -> None:
    from tests.fixtures_dataset import tiny_spair

    tiny_spair(folder)
    read_index(folder)


def read_index(folder: Path) -> Any:
    from engine.build import build_pairs

    cfg = load_config(None, ["DATASET.ROOT", str(folder), "CACHE_ROOT", str(folder / "cache")])
    benchmark = build_pairs(cfg, "test").benchmark
    return [repr(benchmark[number]) for number in range(len(benchmark))]


KINDS["index"] = Kind(write_index, read_index, "cache/**/*", checked=True)


# ---- results and runs -----------------------------------------------------------------------------------------


def write_result(folder: Path) -> None:
    from engine.result import write_predictions, write_scores, write_summary
    from tests.test_result import ALPHAS, NAMES, make_scores
    from utils.pck import POINT, summarise

    scores = make_scores()
    for name in NAMES:
        scores[POINT + name] = [np.ones((count, 2)) * 3.25 for count in scores["n_points"]]
    write_scores(folder / "text_pairs.csv", scores)
    write_predictions(folder / "text_predictions.csv", scores)
    write_summary(folder / "text.json", summarise(scores, NAMES, ALPHAS), {"SEED": 0}, {"commit": "x"})


def read_result(folder: Path) -> Any:
    from engine.result import read_predictions, read_scores, read_summary
    from tests.test_result import ALPHAS, NAMES
    from utils.pck import summarise

    read_predictions(folder / "text_predictions.csv")
    return summarise(read_scores(folder / "text_pairs.csv"), NAMES, ALPHAS), read_summary(folder / "text.json")


def check_result(folder: Path, found: Any) -> None:
    for summary in (found[0], found[1]["summary"]):
        for rows in summary["pck"].values():
            assert all(value is None or 0 <= value <= 1 for row in rows.values() for value in row.values())


KINDS["result"] = Kind(write_result, read_result, "*", (damage_text, damage_text, damage_bytes), check=check_result)


def train_once(folder: Path, steps: int) -> None:
    from tests.command import call
    from tests.conftest import World

    opts = World(folder).opts(folder / "output", "PROMPT.KIND", "Single", "TRAIN.MAX_STEPS", str(steps))
    silence = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with silence[0], silence[1] as err:
        status = call("train.py", "--config_file", "config/spair/base.yaml", *opts)
    if status:
        raise ConfigError(err.getvalue())


def write_run(folder: Path) -> None:
    from tests.conftest import build_world

    build_world(folder)
    train_once(folder, 1)


def read_run(folder: Path) -> Any:
    """The prompt after the run has gone on."""
    train_once(folder, 2)
    from model.prompt.store import read_prompt

    (path,) = (folder / "output").rglob("caption.pt")
    return read_prompt(path.parent).tensors


KINDS["run"] = Kind(write_run, read_run, "output/[alp]*/**/*", (damage_bytes,), checked=True, named=False)


# ---- networks -------------------------------------------------------------------------------------------------


def write_network(folder: Path) -> None:
    from tests.tiny import build_tiny_dinov2, build_tiny_stable_diffusion

    build_tiny_stable_diffusion(folder / "sd")
    build_tiny_dinov2(folder / "dino")


def read_network(folder: Path) -> Any:
    from engine.check import check_config
    from model.backbone.load import load_stable_diffusion, load_vision

    opts = ["NETWORK.FOLDER", str(folder / "sd"), "NETWORK.NAME", "tiny", "DATASET.IMAGE_SIZE", "[32, 32]"]
    check_config(load_config(None, opts), training=False)
    networks = load_stable_diffusion(str(folder / "sd"))
    vision = load_vision("DINO", str(folder / "dino"))
    modules = (networks.vae, networks.unet, networks.text_encoder, vision.model)
    return [p for module in modules for p in module.parameters()]


def check_weights(folder: Path, weights: Sequence[torch.Tensor]) -> None:
    assert all(value.isfinite().all() for value in weights)


KINDS["network-json"] = Kind(
    write_network, read_network, "**/*.json", (damage_json, damage_json, damage_bytes), named=False
)
KINDS["network-weights"] = Kind(write_network, read_network, "**/*.safetensors", check=check_weights, named=False)


# ---- the fuzzer -----------------------------------------------------------------------------------------------


class Fuzzer:
    """Damages one file at a time in a folder of sound ones, reads, and mends it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.kind, self.folder = name, KINDS[name], folder
        folder.mkdir(parents=True)
        self.kind.write(folder)
        self.files = sorted(path for path in folder.glob(self.kind.files) if path.is_file())
        self.sound = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.value = self.kind.read(folder)

    def try_seed(self, seed: int) -> str | None:
        """What is wrong with the answer to the damage of this seed."""
        rng = random.Random(f"{self.name}:{seed}")
        path = rng.choice(self.files)
        data = rng.choice(self.kind.damages)(rng, self.sound[path])
        path.write_bytes(data)
        try:
            return self._judge(path) if data != self.sound[path] else None
        finally:
            self._mend()

    def _judge(self, path: Path) -> str | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self.kind.read(self.folder)
        except EXPECTED as error:
            text = str(error)
            if self.kind.named and path.name not in text and path.parent.name not in text:
                return f"the message does not say which file: {text}"
            return None if text.strip() and "Traceback" not in text else f"no message: {error!r}"
        except Exception:
            return traceback.format_exc(limit=-6)
        try:
            if self.kind.checked and not equal(found, self.value):
                return "another value was read without a word"
            if self.kind.check:
                self.kind.check(self.folder, found)
        except Exception:
            return traceback.format_exc(limit=-6)
        return None

    def _mend(self) -> None:
        for path in [path for path in self.folder.rglob("*") if path.is_file() and path not in self.sound]:
            path.unlink()
        for path, data in self.sound.items():
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def equal(one: Any, two: Any) -> bool:
    """Nested values, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, Mapping):
        return isinstance(two, Mapping) and one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    return type(one) is type(two) and one == two


@pytest.fixture
def budget(request) -> tuple[float, range]:
    """(seconds for a kind, seeds)."""
    minutes, first = request.config.getoption("--fuzz-minutes"), request.config.getoption("--fuzz-seed") * 1_000_000
    return minutes * 60 / len(KINDS) if minutes else SECONDS, range(first, first + (1_000_000 if minutes else MOST))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused(name, tmp_path, budget, request):
    seconds, seeds = budget
    fuzzer = Fuzzer(name, tmp_path / name)
    only = request.config.getoption("--fuzz-only")
    if only:
        kind, _, seed = only.rpartition(":")
        assert kind != name or fuzzer.try_seed(int(seed)) is None
        return
    end, tried, wrong = time.monotonic() + seconds, 0, {}
    for seed in seeds:
        if time.monotonic() > end or len(wrong) == 20:
            break
        tried += 1
        if trouble := fuzzer.try_seed(seed):
            wrong[seed] = trouble
    print(f"{name}: {tried} files")
    report = "\n".join(f"---- --fuzz-only {name}:{number}\n{trouble}" for number, trouble in wrong.items())
    assert not wrong, f"{len(wrong)} of {tried} files:\n{report}"


def test_no_pickle_is_executed(tmp_path):
    """A released prompt is a pickle inside; what it would call is never called."""
    from model.error import PromptError
    from model.prompt.store import read_prompt

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    folder = tmp_path / "Single_spair_tiny_TokenEmbeds5"
    folder.mkdir()
    torch.save({"dataset": Bomb()}, folder / "caption.pt")
    with pytest.raises(PromptError, match="caption.pt"):
        read_prompt(folder)
    assert not (tmp_path / "executed").exists()


def test_a_mat_file_with_an_unknown_type_is_refused(tmp_path):
    """SciPy's reader would end the process."""
    from dataset import DatasetError
    from dataset.pfpascal import read_mat
    from tests.fixtures_dataset import write_mat

    path = write_mat(tmp_path, "cat", "x", np.ones((6, 2)), (1, 2, 3, 4))
    data = bytearray(path.read_bytes())
    assert data[176] == 9  # double: the type of the values of kps
    data[176] = 41
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="x.mat: .*unknown type 41"):
        read_mat(path, "here")
