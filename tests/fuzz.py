"""Damage to files, seeded: bytes, text, values of JSON and YAML, tensors."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import yaml

Damage = Callable[[random.Random, bytes], bytes]

ODD_TEXT = [
    *(
        "",
        " ",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1e999",
        "1e300",
        "1e-320",
        "99999999999999999999",
        "0x10",
        "1_000",
        "½",
    ),
    *(
        "null",
        "~",
        "true",
        "!!int x",
        "!!python/object:os.system",
        "2024-01-01",
        "é",
        "\u2028",
        "\x00",
        "﻿",
        "all",
        "..",
    ),
    *("../../x", "[" * 300, "{a: 1}", '"', "'", ",", ";", "\t", "- ", "&a *a", "a" * 300, "%s", "{category}", "\n"),
]
ODD_VALUES = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e300, 1e-320, float("nan"), float("inf"), "", "x"),
    *("nan", "1", "all", "../../x", "a\nb", [], [[]], {}, [None], [1], [1, 2], [1, 2, 3], {"a": 1}, "é" * 200),
]


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """A flipped bit, or a part that is cut off, lost, doubled, overwritten or inserted."""
    if not data:
        return rng.randbytes(8)
    place, length = rng.randrange(len(data)), rng.choice((1, 2, 8, 64, 1000))
    part = data[place : place + length]
    return rng.choice(
        (
            data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :],
            data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :],
            data[:place],
            data[:place] + data[place + length :],
            data[:place] + part + data[place:],
            data[:place] + bytes(len(part)) + data[place + length :],
            data[:place] + rng.randbytes(length) + data[place + length :],
            data[:place] + rng.randbytes(length) + data[place:],
            b"",
            bytes(len(data)),
        )
    )


def damage_text(rng: random.Random, data: bytes) -> bytes:
    """Words, lines and cells that are lost, doubled, swapped or replaced by something odd."""
    text = data.decode(errors="replace")
    lines = text.splitlines(keepends=True) or [""]
    number = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[number]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines) + 1), lines[number])
    elif kind == 2:
        other = rng.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    elif kind == 3:
        place = rng.randrange(len(lines[number]) + 1)
        lines[number] = lines[number][:place] + rng.choice(ODD_TEXT) + lines[number][place:]
    else:  # one word for another
        separator = rng.choice((",", " ", ":", ";", "-"))
        words = lines[number].rstrip("\n").split(separator)
        words[rng.randrange(len(words))] = rng.choice(ODD_TEXT)
        lines[number] = separator.join(words) + "\n"
    return "".join(lines).encode()


def damage_values(rng: random.Random, content: Any) -> Any:
    """A nested value with one part replaced, lost, doubled or renamed."""
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return rng.choice(ODD_VALUES)
    node, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, node[key])
    elif kind == 1:
        node[rng.choice(ODD_TEXT)] = node.pop(key)
    elif kind == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = rng.choice((-node[key], node[key] * 1000, float(node[key]), str(node[key])))
    else:
        node[key] = rng.choice(ODD_VALUES)
    return content


def _places(node: Any):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key
        yield from _places(value)


def damage_json(rng: random.Random, data: bytes) -> bytes:
    return json.dumps(damage_values(rng, json.loads(data))).encode()


def damage_yaml(rng: random.Random, data: bytes) -> bytes:
    return yaml.safe_dump(damage_values(rng, yaml.safe_load(data)), sort_keys=False).encode()
