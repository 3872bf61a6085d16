"""PCK over the number of references: as a transfer with just these references gives it."""

import itertools

import numpy as np
import pytest
from PIL import Image

from dataset.annotation import read_labels
from sd4match import Transfer
from sd4match.label_score import score_labels
from tests.command import call
from tests.test_transfer import coco, matcher, tiny_flags, write  # noqa: F401


def test_every_number_of_references_as_a_transfer_with_them(matcher, world, tmp_path, capsys):  # noqa: F811
    path = write(tmp_path / "labels.json", coco(tmp_path, [0, 1, 2, 3, 4], boxes=True))
    settings = ["NETWORK.NAME", "tiny", "METHOD.POSTERIOR", "mode", "EVAL.BATCH_SIZE", "2", "EVAL.ALPHAS", "[0.3, 0.6]"]
    settings += ["EVAL.PICTURE_ALPHA", "0.3"]
    flags = ["--references", "2", "--output", str(tmp_path / "curve.png"), *tiny_flags(world), *settings]
    assert call("script/transfer_curve.py", path, *flags) == 0
    out = capsys.readouterr().out.splitlines()
    rows = {(line.split()[0], int(line.split()[1])): list(map(float, line.split()[2:])) for line in out[2:6]}
    assert out[0].startswith("3 held-out images") and Image.open(tmp_path / "curve.png").width > 300
    labels = read_labels(path)
    truth = labels.select(labels.objects[2:])
    for combine, count in itertools.product(("confident", "vote"), (1, 2)):
        expected = []
        for chosen in itertools.combinations(labels.objects[:2], count):
            found = Transfer(matcher, labels.select(chosen), combine=combine)(truth)
            expected.append(
                score_labels(found, truth, (0.3, 0.6), 0.05)["pck"].iloc[-1][["@0.3", "@0.6"]].astype(float)
            )
        assert rows[combine, count] == pytest.approx(100 * np.mean(expected, axis=0), abs=0.01)
