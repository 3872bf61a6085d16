"""What the project computes is what it computed before it was rebuilt (tests/golden)."""

import json

import pytest

from tests.golden import VALUES, measure

GOLDEN = json.loads(VALUES.read_text())
TOLERANCE = 1e-6  # of an array's largest value


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", GOLDEN)
def test_value_is_the_golden_one(world, output, name):
    found = measure(world, output, lambda wanted: wanted == name)
    assert list(found) == [name]
    compare(found[name], GOLDEN[name], name)


def test_every_value_is_compared():
    names = []
    measure(None, None, lambda name: names.append(name))
    assert set(names) == set(GOLDEN)


def compare(found, golden, name):
    """Arrays by TOLERANCE, single numbers to 1e-9, all else exactly."""
    if isinstance(golden, dict) and "norm" in golden:
        assert {**found, "norm": 0, "max": 0, "part": 0} == {**golden, "norm": 0, "max": 0, "part": 0}, name
        numbers = zip([found["norm"], *found["part"]], [golden["norm"], *golden["part"]], strict=True)
        for one, other in numbers:
            assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE * golden["max"]), name
    elif isinstance(golden, dict):
        assert set(found) == set(golden), name
        for key, value in golden.items():
            compare(found[key], value, f"{name}: {key}")
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=1e-9), name
    else:
        assert found == golden, name
