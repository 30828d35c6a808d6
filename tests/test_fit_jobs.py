import dataclasses

import numpy as np
import pytest

from saff import edges, saliency
from saff.errors import SettingsError
from saff.images import encode_png
from saff.saliency.fitting import Boosting, fit_trees, make_example, targets

pytest.importorskip("lightgbm")


def scene(seed):
    """Give a bright, textured square on a dull ground, and its mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 100, (90, 120, 3), dtype=np.uint8)
    top, left = rng.integers(15, 35), rng.integers(20, 50)
    mask = np.zeros((90, 120), bool)
    mask[top : top + 40, left : left + 45] = True
    image[mask] = rng.integers(120, 255, (mask.sum(), 3))
    return image, mask


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for seed in range(12):
        image, mask = scene(seed)
        (folder / "images" / f"{seed}.png").write_bytes(encode_png(image))
        (folder / "masks" / f"{seed}.png").write_bytes(encode_png(mask.astype(np.uint8) * 255))
    return folder


def test_shares_of_regions_are_those_of_their_pixels():
    image, mask = scene(0)
    valid = np.ones_like(mask)
    valid[:, :10] = False
    example = make_example(image, mask, valid)
    share, area = targets(example)
    for region in (0, 100, len(share) - 1):
        level = example.hierarchy.level[region]
        pixels = (example.hierarchy.member[:, level] == region)[example.superpixels] & valid
        assert area[region] == pixels.sum()
        if pixels.any():
            assert share[region] == pytest.approx(mask[pixels].mean(), abs=1e-5)


def test_masks_of_one_class_are_refused():
    image, mask = scene(0)
    example = make_example(image, np.zeros_like(mask), np.ones_like(mask))
    with pytest.raises(SettingsError, match="1 masks give 0 foreground regions of"):
        fit_trees([example], Boosting(trees=2))


def test_fitting_twice_gives_the_same_trees():
    examples = [make_example(*scene(seed), np.ones((90, 120), bool)) for seed in range(3)]
    boosting = dataclasses.replace(Boosting(), trees=5, smallest_leaf=5)
    first, second = fit_trees(examples, boosting), fit_trees(examples, boosting)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


@pytest.mark.ray
@pytest.mark.slow
def test_a_regressor_is_fitted_measured_and_used(call_job, one_node, scenes, tmp_path):
    (scenes / "images" / "bad.png").write_bytes(b"no image")
    model = tmp_path / "mine.safetensors"
    words = ("--images", scenes / "images", "--truth", scenes / "masks", "--output", model)
    code, out, error = call_job("fit_saliency", *words, "--folds", 3, "--trees", 30)
    assert code == 0, error
    assert "left out: bad.png: it has no mask" in error
    assert float(out.split("mean_pr ")[1].split(",")[0]) > 0.8
    image, mask = scene(99)
    pixels = saliency.load(f"drfi:{model}")(image)
    assert pixels[mask].mean() > pixels[~mask].mean() + 0.3


@pytest.mark.ray
@pytest.mark.slow
def test_an_edge_network_is_fitted_measured_and_used(call_job, one_node, tmp_path):
    (tmp_path / "drawn").mkdir()
    for seed in range(2):
        mask = scene(seed)[1].astype(np.int8)
        outline = (np.diff(mask, axis=0, prepend=0) != 0) | (np.diff(mask, axis=1, prepend=0) != 0)
        png = encode_png(outline.astype(np.uint8) * 255)
        (tmp_path / "drawn" / f"{seed}.png").write_bytes(png)
        image = tmp_path / "images" / f"{seed}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(encode_png(scene(seed)[0]))
    model = tmp_path / "mine.safetensors"
    data = ("--images", tmp_path / "images", "--boundaries", tmp_path / "drawn")
    measure = (
        *("--validation-images", tmp_path / "images"),
        *("--validation-boundaries", tmp_path / "drawn"),
    )
    code, out, error = call_job("fit_edges", *data, *measure, "--steps", 4, "--output", model)
    assert code == 0, error
    assert out.startswith("ODS ")
    assert edges.load(f"learned:{model}")(scene(0)[0]).shape == (90, 120)


def test_an_output_that_cannot_be_written_is_named_before_the_work(call_job, scenes, tmp_path):
    words = ("--images", scenes / "images", "--output", tmp_path / "none" / "model")
    for job, own in (("fit_edges", "--boundaries"), ("fit_saliency", "--truth")):
        code, _, error = call_job(job, *words, own, scenes / "masks")
        assert code == 2
        assert "name a file in a folder that exists" in error


def test_an_image_without_boundaries_is_named(call_job, scenes, tmp_path):
    words = ("--images", scenes / "images", "--boundaries", tmp_path)
    code, _, error = call_job("fit_edges", *words, "--output", tmp_path / "model")
    assert code == 2
    assert "0.png has no boundaries in" in error
    assert "Traceback" not in error
    assert not (tmp_path / "model").exists()
