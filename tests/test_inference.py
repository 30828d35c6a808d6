import dataclasses
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from skimage import data, measure
from torch import nn

from saff import inference
from saff.config import Inference
from saff.inference import (
    component_boxes,
    foreground_box,
    predict,
    predict_many,
    refine,
    to_working_size,
)
from saff.network import deeplab_v2
from saff.network.shipped import load_shipped
from saff.superpixels import slic

ONE = Inference(input_sides=(64,), refinement="none", zoom_share=0.0)


class Brightness(nn.Module):
    """Foreground where it is bright; its probability at a cell is the mean level of the cell."""

    mean, std, multiple = (0.0,), (255.0,), 8

    def forward(self, x):
        level = nn.functional.avg_pool2d(x.mean(1, keepdim=True), 8).clamp(1e-6, 1 - 1e-6)
        return torch.cat([torch.log(1 - level), torch.log(level)], dim=1)


@pytest.fixture(scope="module")
def network():
    return deeplab_v2("efficientnet_lite0", pretrained=True).eval()


@pytest.fixture(scope="module")
def photos():
    sources = (data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    small = [cv2.resize(s, (120, 90), interpolation=cv2.INTER_AREA) for s in sources]
    turned = np.ascontiguousarray(small[0].transpose(1, 0, 2))
    return [*small, turned, small[1][:40, :31].copy()]


def test_a_map_has_the_size_of_its_image_and_follows_it(photos):
    for image in photos:
        found = predict(Brightness(), image, dataclasses.replace(ONE, input_sides=(128,)))
        assert found.shape == image.shape[:2]
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        level = cv2.GaussianBlur(image.mean(2) / 255, None, 4)
        assert np.corrcoef(found.ravel(), level.ravel())[0, 1] > 0.9


def test_scales_and_mirror_images_are_averaged(network, photos):
    image = photos[0]
    single = [
        predict(network, image, dataclasses.replace(ONE, input_sides=(side,)))
        for side in (64, 96, 128)
    ]
    both = predict(network, image, dataclasses.replace(ONE, input_sides=(64, 96, 128)))
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=1e-6)
    mirrored = predict(network, np.ascontiguousarray(image[:, ::-1]), ONE)[:, ::-1]
    found = predict(network, image, dataclasses.replace(ONE, horizontal_flip=True))
    expected = (predict(network, image, ONE) + mirrored) / 2
    np.testing.assert_allclose(found, expected, atol=1e-5)


def bright_square(height=120, width=200, box=(slice(20, 60), slice(90, 150))):
    image = np.full((height, width, 3), 40, np.uint8)
    image[box] = 230
    return image


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_rectangle_of_the_mask_is_looked_at_again(share):
    how = dataclasses.replace(ONE, input_sides=(160,), horizontal_flip=True)
    twice = dataclasses.replace(how, input_sides=(192, 160))
    for by, image in ((Brightness(), bright_square()), (load_shipped().network, data.coffee())):
        first = predict(by, image, twice)
        (box,) = foreground_box(first)
        closer = predict(by, np.ascontiguousarray(image[box]), how)  # at the smaller side alone
        expected = first.copy()
        expected[box] = (1 - share) * first[box] + share * closer
        for part in component_boxes(expected):
            closer = predict(by, np.ascontiguousarray(image[part]), how)
            expected[part] = (1 - share) * expected[part] + share * closer
        found = predict(by, image, dataclasses.replace(twice, zoom_share=share))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.abs(found - first).max() > 0.01


def test_an_enlarged_square_has_sharper_sides():
    image, truth = bright_square(), np.zeros((120, 200), bool)
    truth[20:60, 90:150] = True
    errors = [
        np.abs(predict(Brightness(), image, dataclasses.replace(ONE, zoom_share=share)) - truth)
        for share in (0.0, 0.7)
    ]
    assert errors[1][truth].mean() < 0.8 * errors[0][truth].mean()


def test_each_of_several_objects_is_looked_at_by_itself():
    image = bright_square()
    image[70:100, 10:50] = 230
    how = dataclasses.replace(ONE, input_sides=(160,))
    first = predict(Brightness(), image, how)
    (around,) = foreground_box(first)
    assert around[1].start < 20
    assert around[1].stop > 140
    parts = component_boxes(first)
    assert [part[0].start // 10 for part in parts] == [2, 7]
    truth = image[..., 0] > 100
    errors = [
        np.abs(predict(Brightness(), image, dataclasses.replace(how, zoom_share=share)) - truth)
        for share in (0.0, 0.7)
    ]
    for part in parts:
        assert errors[1][part].mean() < errors[0][part].mean()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999))
def test_rectangles_of_objects_are_those_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.random((140, 180)).astype(np.float32), None, 9)
    mask = noise > np.quantile(noise, rng.uniform(0.6, 0.95))
    regions = measure.regionprops(measure.label(mask, connectivity=2))
    largest = sorted((region.area for region in regions), reverse=True)
    wanted = [r for r in regions if r.area >= max(largest[0] / 10, largest[:4][-1])]
    wanted = [tuple(map(slice, r.bbox[:2], r.bbox[2:])) for r in wanted]
    wanted = [box for box in wanted if min(b.stop - b.start for b in box) >= inference.LEAST_CROP]
    found = component_boxes(mask.astype(np.float32))
    many = sum(area >= largest[0] / 10 for area in largest) > 1
    if many and len(set(largest)) == len(largest):  # of equal ones any may be the fourth
        assert sorted(found, key=str) == sorted(wanted, key=str)
    elif not many:
        assert found == []


@pytest.mark.parametrize("level", [0, 255], ids=["no mask", "all of it"])
def test_without_a_rectangle_there_is_no_second_look(level):
    image = np.full((60, 90, 3), level, np.uint8)
    once, twice = (
        predict(Brightness(), image, dataclasses.replace(ONE, zoom_share=s)) for s in (0.0, 0.7)
    )
    np.testing.assert_array_equal(once, twice)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999))
def test_a_rectangle_holds_the_mask_and_no_side_can_be_moved_in(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 120, 2)
    confidence = np.zeros((height, width), np.float32)
    top, left = rng.integers(0, height), rng.integers(0, width)
    confidence[top : top + rng.integers(0, 90), left : left + rng.integers(0, 90)] = 0.5
    for box in foreground_box(confidence):
        assert confidence[box].sum() == confidence.sum() > 0
        inside = confidence[box]
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert min(inside.shape) >= inference.LEAST_CROP
        assert max(inside.shape) <= inference.MOST_CROP * max(height, width)


@pytest.mark.parametrize("refinement", ["none", "superpixels", "guided"])
@pytest.mark.parametrize("batch", [1, 4])
def test_company_changes_nothing(network, photos, refinement, batch, monkeypatch):
    """To the last bit: alone, with images of its size and with others, in any order."""
    monkeypatch.setattr(inference, "batch_on", lambda device: batch)
    how = Inference(input_sides=(64, 96), horizontal_flip=True, refinement=refinement)
    alone = [predict(network, image, how) for image in photos]
    together = predict_many(network, photos, how)
    backwards = predict_many(network, photos[::-1], how)[::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("batch", [1, 4])
def test_company_changes_nothing_of_a_second_look(batch, monkeypatch):
    monkeypatch.setattr(inference, "batch_on", lambda device: batch)
    two = bright_square()
    two[70:100, 10:50] = 230  # a third look, at each of two objects
    images = [
        two,
        bright_square(),
        np.full((60, 90, 3), 40, np.uint8),  # nothing to look at again
        bright_square(150, 120, (slice(30, 90), slice(10, 60))),
        bright_square(box=(slice(50, 110), slice(20, 60))),
    ]
    network, how = Brightness(), Inference(input_sides=(96, 128), refinement="none")
    alone = [predict(network, image, how) for image in images]
    once = [predict(network, image, dataclasses.replace(how, zoom_share=0.0)) for image in images]
    looks = [(a != b).any() for a, b in zip(alone, once, strict=True)]
    assert looks == [True, True, False, True, True]
    together = predict_many(network, images, how)
    backwards = predict_many(network, images[::-1], how)[::-1]
    for a, b, c in zip(alone, together, backwards, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_threads_change_nothing(network, photos):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(predict(network, photos[0], ONE))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_large_images_are_computed_small(network):
    image = cv2.resize(data.chelsea(), (2400, 1600))
    found = predict(network, image, ONE)
    assert found.shape == (1600, 2400)
    small = to_working_size(image)
    assert small.shape == (683, 1024, 3)
    (again,) = predict_many(network, [small], ONE, sizes=[(1600, 2400)])
    np.testing.assert_array_equal(again, found)


def test_refinement_by_superpixels_is_their_mean(photos):
    image = photos[0]
    confidence = np.random.default_rng(0).random(image.shape[:2]).astype(np.float32)
    refined = refine("superpixels", confidence, image)
    for label in np.unique(superpixels := slic(image, inference.REGIONS)):
        region = superpixels == label
        assert np.ptp(refined[region]) == 0
        assert refined[region][0] == pytest.approx(confidence[region].mean(), abs=1e-5)


def test_the_guided_filter_sharpens_a_border_that_the_image_has():
    image = np.zeros((64, 512, 3), np.uint8)
    image[:, 256:] = 255
    truth = (image[..., 0] > 0).astype(np.float32)
    rough = cv2.GaussianBlur(truth, None, 6)
    refined = refine("guided", rough, image)
    flat = refine("guided", rough, np.zeros_like(image))  # no border here: it stays soft
    steps = [float(m[32, 256] - m[32, 255]) for m in (rough, refined, flat)]
    assert steps[1] > 5 * steps[0] > 5 * steps[2]
    assert refine("none", rough, image) is rough


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), how=st.sampled_from(["superpixels", "guided"]))
def test_refined_maps_stay_in_range(seed, how):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 70, 2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    refined = refine(how, rng.random((height, width)).astype(np.float32), image)
    assert refined.shape == (height, width)
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1


def test_a_network_can_be_used_without_storage_labelling_or_a_cluster():
    """A service that only predicts imports what it needs: the import list of a fresh process."""
    unneeded = {"saff.storage", "saff.labeling", "saff.training", "saff.samples", "sqlite3", "ray"}
    text = f"import sys, saff.inference; print(*sorted({unneeded} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []


def test_mistakes_are_named(photos):
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\), got float32"):
        predict(Brightness(), photos[0].astype(np.float32), ONE)

    class Wrong(Brightness):
        def forward(self, x):
            return super().forward(x)[:, :1]

    with pytest.raises(ValueError, match=r"must give logits \(1, 2, h, w\)"):
        predict(Wrong(), photos[0], ONE)

    class Broken(Brightness):
        def forward(self, x):
            return super().forward(x) * torch.nan

    with pytest.raises(ValueError, match="gave NaN or infinity"):
        predict(Broken(), photos[0], ONE)
