"""Predicted peaks of a training step: known answers of the tracker, fake equals real, and the stated memory bound."""

from dataclasses import replace

import pytest
import torch

from model.backbone.architecture import STABLE_DIFFUSION
from script.speed.flops import Work
from script.speed.measure import GIB
from script.speed.memory import MemoryTracker, _build_networks, predict_training_peak, run_step
from tests.tiny import DINO_SHAPE, SD_CONFIG

FULL = Work(STABLE_DIFFUSION["sd2-1"], image_size=(768, 768), condition_shape=(257, 768), batch_size=3)
TINY = Work(SD_CONFIG, (64, 64), DINO_SHAPE, variant="Pair-DINO-Feat-G3-C4", batch_size=2)


def test_tracker_counts_what_lives():
    with MemoryTracker() as tracker:
        a = torch.zeros(256)  # 1 KiB
        b = a + 1
        view = b.view(16, 16)
        assert tracker.current == tracker.peak == 2048
        del b
        assert tracker.current == 2048
        del view
        assert tracker.current == 1024
        _ = a.sum()
    assert tracker.peak == 2048


def test_tensors_without_storage_take_what_real_ones_take():
    with MemoryTracker() as tracker:
        run_step(TINY, *_build_networks(TINY, torch.float32, False))
    assert predict_training_peak(TINY, torch.float32) == pytest.approx(tracker.peak, rel=0.1)


def test_batch_3_at_768_px_fits_8_gib_and_recomputing_saves():
    plain = predict_training_peak(FULL, torch.bfloat16) / GIB
    assert plain < 7  # leaves a GiB for what a device adds
    assert predict_training_peak(FULL, torch.bfloat16, recompute=True) / GIB < 0.6 * plain


@pytest.mark.slow
def test_batch_9_needs_no_recomputation_on_a_24_gb_card():
    assert predict_training_peak(replace(FULL, batch_size=9), torch.bfloat16) / GIB < 20
