"""Quality on research images beside the repository; a floor against accidents, not a measurement.

Measurements are in docs/results.md, made with tests/benchmarks/quality.py on every image.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from saff import config, images
from saff.labeling import label_image
from saff.metrics import Evaluation
from saff.truth import read_truth

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no research images at {DATA}"),
]


@pytest.mark.parametrize(
    ("folder", "truth_format", "every", "saliency", "floor"),
    [
        ("voc2007train", "voc", 12, "drfi", 0.66),
        ("ecssd_dev", "binary", 20, "rbd", 0.8),  # the shipped DRFI has learnt from these masks
    ],
)
def test_default_is_above_its_floor_and_above_every_single_cue(
    folder, truth_format, every, saliency, floor
):
    settings = dataclasses.replace(config.default(), saliency=saliency)
    whole, cues = Evaluation(), [Evaluation() for _ in range(4)]
    for path in sorted((DATA / folder / "images").iterdir())[::every]:
        mask = (DATA / folder / "masks" / f"{path.stem}.png").read_bytes()
        truth, valid = read_truth(mask, truth_format)
        labeled = label_image(images.read(path), settings)
        whole.add(np.rint(labeled.confidence * 255).astype(np.uint8), truth, valid)
        for evaluation, column in zip(cues, labeled.features.T, strict=True):
            cue = np.rint(column * 255).astype(np.uint8)[labeled.superpixels]
            evaluation.add(cue, truth, valid)
    best = whole.summary()["mean_pr"]["max_f"]
    assert best > floor
    for evaluation in cues:
        assert best > evaluation.summary()["mean_pr"]["max_f"]
