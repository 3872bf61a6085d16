"""The arithmetic of SD2-1 at 768 px, counted without weights, against the known counts and the target."""

from dataclasses import replace

import pytest

from model.backbone.architecture import STABLE_DIFFUSION
from script.speed.flops import TERA, Work, count_parts, count_test_pair, count_training_pair

WORK = Work(STABLE_DIFFUSION["sd2-1"], image_size=(768, 768), condition_shape=(257, 768))
TARGET = 4.7  # TFLOP per training pair


@pytest.fixture(scope="module")
def parts():
    return {name: (forward / TERA, backward / TERA) for name, (forward, backward) in count_parts(WORK).items()}


@pytest.mark.parametrize(
    ("part", "forward", "backward"),
    [("VAE encoder", 2.61, 0.0), ("whole UNet", 2.15, 0.0), ("UNet to up-block 1", 1.13, 1.12)],
)
def test_networks_cost_what_is_known(parts, part, forward, backward):
    assert parts[part] == pytest.approx((forward, backward), rel=0.02)


def test_a_training_pair_costs_its_parts_and_little_else(parts):
    pair, reference = (count / TERA for count in count_training_pair(WORK))
    assert pair == pytest.approx(2 * sum(parts["UNet to up-block 1"]) + sum(parts["text transformer"]), rel=0.01)
    assert pair <= TARGET and reference == pytest.approx(11.94, rel=0.01)


def test_a_tested_pair_costs_less_than_half_of_the_reference():
    ours, reference = count_test_pair(replace(WORK, ensemble=8))
    assert reference > 2 * ours
