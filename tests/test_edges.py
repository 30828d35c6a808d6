import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from skimage import data

from saff import edges
from saff.errors import SettingsError

FLOAT32 = 1e-5  # float32 sums of some dozens of Lab values up to 100, over 50
GRADIENT = edges.load("gradient")


def step(height=12, width=20):
    """Give black on the left, white on the right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, width // 2 :] = 255
    return image


def test_a_step_has_the_gradient_of_a_blurred_step():
    strength = GRADIENT(step())
    assert strength.dtype == np.float32
    assert strength.shape == (12, 20)
    # L steps by 100.  Blurred with weights g of a Gaussian of sigma 1, the central difference is
    # 100 * (g(d) + g(d + 1)) / 2 at d pixels from the step, counted from its right-hand pixel.
    g = cv2.getGaussianKernel(9, 1.0)[:, 0]
    expected = [100 * (g[4 + d] + g[5 + d]) / 2 / 50 for d in range(3)]
    np.testing.assert_allclose(strength[:, 10:13], np.tile(expected, (12, 1)), 0, FLOAT32)
    np.testing.assert_allclose(strength[:, 9:6:-1], np.tile(expected, (12, 1)), 0, FLOAT32)
    assert expected[0] == pytest.approx(0.64, abs=0.01)
    assert strength[:, :5].max() < FLOAT32
    assert strength[:, 15:].max() < FLOAT32


def test_colour_steps_count_where_brightness_does_not_change():
    image = np.full((8, 20, 3), [0, 135, 0], np.uint8)
    image[:, 10:] = [255, 0, 0]
    lightness = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    assert np.ptp(lightness) < 10
    assert GRADIENT(image)[:, 9:11].min() > 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (2, 3), (40, 60)])
def test_a_flat_image_has_no_edges(shape):
    strength = GRADIENT(np.full((*shape, 3), 90, np.uint8))
    assert strength.shape == shape
    assert strength.max() < FLOAT32


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_edges_turn_with_the_image_and_stay_in_range(seed, height, width):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    strength = GRADIENT(image)
    assert strength.shape == (height, width)
    assert strength.dtype == np.float32
    assert strength.min() >= 0
    assert strength.max() <= 1
    for turned, back in ((np.rot90(image), -1), (np.rot90(image, 2), -2), (np.rot90(image, 3), -3)):
        again = np.rot90(GRADIENT(np.ascontiguousarray(turned)), back)
        np.testing.assert_allclose(again, strength, 0, FLOAT32)
    mirrored = GRADIENT(np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(mirrored[:, ::-1], strength, 0, FLOAT32)


def test_edges_of_a_photograph_lie_where_it_changes():
    strength = GRADIENT(data.coffee())
    assert 0 < strength.mean() < 0.2
    assert strength.max() > 0.5


def test_an_unknown_name_is_explained():
    with pytest.raises(
        SettingsError, match="unknown edges 'canny'; known: gradient, learned, or your own"
    ):
        edges.load("canny")
