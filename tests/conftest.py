"""A small world for end-to-end tests: tiny real networks and a tiny benchmark on disk, built once per session."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fuzz", "tests/test_fuzz.py")
    group.addoption("--fuzz-minutes", type=float, default=0, help="for all kinds of files together; default: seconds")
    group.addoption("--fuzz-seed", type=int, default=0, help="other damages than those of every run")
    group.addoption("--fuzz-only", default="", metavar="KIND:SEED", help="one damage of a failure's report")


@dataclass(frozen=True)
class World:
    """Folders of the tiny world, and the settings that point a config at them."""

    root: Path

    def opts(self, output: Path, *more: str) -> list[str]:
        """KEY VALUE settings; everything written goes below `output`."""
        return [
            *("DATASET.ROOT", str(self.root / "data"), "DATASET.IMAGE_SIZE", "[32, 32]", "DATASET.NUM_WORKERS", "0"),
            *("NETWORK.NAME", "tiny", "NETWORK.FOLDER", str(self.root / "sd"), "DEVICE", "cpu"),
            *("CONDITION.DINO_FOLDER", str(self.root / "dino"), "CONDITION.CLIP_FOLDER", str(self.root / "clip")),
            *("OUTPUT_ROOT", str(output), "TRAIN.BATCH_SIZE", "2", "TEST.ENSEMBLE", "2", "VAL.PICTURES", "0"),
            *more,
        ]


def build_world(root: Path) -> World:
    from tests.fixtures_dataset import tiny_pfpascal, tiny_pfwillow, tiny_spair
    from tests.tiny import build_tiny_clip_vision, build_tiny_dinov2, build_tiny_stable_diffusion

    build_tiny_stable_diffusion(root / "sd")
    build_tiny_dinov2(root / "dino")
    build_tiny_clip_vision(root / "clip")
    (root / "data").mkdir()
    for build in (tiny_spair, tiny_pfpascal, tiny_pfwillow):
        build(root / "data")
    return World(root)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def text(world):
    """The text model of the tiny networks."""
    from model.backbone.load import load_stable_diffusion
    from model.backbone.text import PromptEncoder

    networks = load_stable_diffusion(str(world.root / "sd"), parts=("text_encoder", "tokenizer"))
    return PromptEncoder(networks.text_encoder, networks.tokenizer)


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps process-wide state; a test that builds an accelerator starts without it."""
    from tests.command import reset_accelerate

    reset_accelerate()
    yield
    reset_accelerate()
