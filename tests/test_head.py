"""The post-processor: sizes and names of the authors' files, its formula."""

import math

import pytest
import torch
from torch.nn import functional as F

from model.head import AggregationNetwork

DIMS = (640, 1280, 1280, 768)


def names_of_the_release():
    """Every tensor of the authors' files, with its shape."""
    yield from ((name, ()) for name in ("logit_scale", "self_logit_scale"))
    yield "mixing_weights", (4,)
    for branch, channels in enumerate(DIMS):
        convs = {"conv1": (192, channels, 1, 1), "conv2": (192, 192, 3, 3), "conv3": (768, 192, 1, 1)}
        convs |= {"shortcut": (768, channels, 1, 1)} if branch < 3 else {}
        for conv, shape in convs.items():
            name = f"bottleneck_layers.{branch}.0.{conv}"
            yield f"{name}.weight", shape
            yield from ((f"{name}.norm.{part}", shape[:1]) for part in ("weight", "bias"))


def test_tensors_are_those_of_the_released_files():
    network = AggregationNetwork()
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert state == dict(names_of_the_release()) and len(state) == 48
    assert sum(p.numel() for p in network.parameters()) == 5_150_214
    branches = [sum(p.numel() for p in layer.parameters()) for layer in network.bottleneck_layers]
    assert branches == [1_097_472, 1_711_872, 1_711_872, 628_992]
    assert network.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert network.self_logit_scale.item() == pytest.approx(math.log(10))
    std = network.bottleneck_layers[0][0].conv2.weight.std().item()
    assert std == pytest.approx(math.sqrt(2 / (192 * 9)), rel=0.02)  # Kaiming, fan-out, gain of ReLU


def test_formula():
    torch.manual_seed(0)
    network = AggregationNetwork((8, 16), width=16)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = torch.randn(2, 24, 5, 6)
    state, total = network.state_dict(), 0
    for branch, part in enumerate((x[:, :8], x[:, 8:])):

        def conv(name, value, branch=branch):
            where = f"bottleneck_layers.{branch}.0.{name}"
            weight = state[f"{where}.weight"]
            out = F.conv2d(value, weight, padding=weight.shape[-1] // 2)
            groups = math.gcd(32, len(weight))
            return F.group_norm(out, groups, state[f"{where}.norm.weight"], state[f"{where}.norm.bias"], 1e-5)

        main = conv("conv3", conv("conv2", conv("conv1", part).relu()).relu())
        shortcut = part if branch == 1 else conv("shortcut", part)
        weights = state["mixing_weights"].exp()
        total = total + weights[branch] / weights.sum() * (main + shortcut).relu()
    torch.testing.assert_close(network(x), total)
    assert (total >= 0).all()
