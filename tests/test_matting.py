"""Soft edges: alpha and colours come near those that a picture is made of; nothing is harmed."""

import subprocess
import sys

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings, strategies as st

from saff.errors import SettingsError
from saff.images import encode_png
from saff.matting import LEAST_IOU, load_pymatting, matte, trimap
from saff.picture_export import export_pictures
from saff.storage import Folder
from stored_runs import a_run, labelled

# the first import after an installation compiles
pytestmark = [pytest.mark.compiles, pytest.mark.timeout(900)]


def composite(height=240, width=320, blur=1.2):
    """An orange disc with a soft edge on a blue ground: image, alpha, colours of the disc."""
    y, x = np.mgrid[:height, :width]
    disc = ((y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2).astype(np.float64)
    alpha = cv2.GaussianBlur(disc, (0, 0), blur)
    front = np.array([230, 120, 30]) + 10 * np.sin(x / 9)[..., None]
    back = np.array([30, 60, 190]) + 10 * np.cos(y / 7)[..., None]
    mixed = alpha[..., None] * front + (1 - alpha[..., None]) * back
    return np.rint(mixed).astype(np.uint8), alpha, front


@pytest.mark.parametrize("shift", [0, 1])
def test_alpha_and_colours_are_nearer_to_the_truth_than_mask_and_image(shift):
    image, alpha, front = composite()
    mask = np.roll(alpha >= 0.5, shift, axis=1)  # a mask need not be exact
    found = matte(image, mask)
    assert found.alpha.dtype == found.colours.dtype == np.uint8
    error = np.abs(found.alpha / 255 - alpha).mean()
    assert error < np.abs(mask - alpha).mean() / 3
    band = (found.alpha > 25) & (found.alpha < 230)
    assert band.any()
    of_colours, of_image = (np.abs(c[band] - front[band]).mean() for c in (found.colours, image))
    assert of_colours < of_image / 3
    sure = found.alpha == 255
    np.testing.assert_array_equal(found.colours[sure], image[sure])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
def test_what_is_sure_lies_on_its_own_side_and_every_part_keeps_some(seed, height, width):
    rng = np.random.default_rng(seed)
    soft = cv2.GaussianBlur(rng.random((height, width)), (0, 0), rng.uniform(0.5, 5))
    inside = soft >= np.quantile(soft, rng.random())
    known = trimap(inside)
    assert set(np.unique(known)) <= {0.0, 0.5, 1.0}
    assert inside[known == 1].all()
    assert not inside[known == 0].any()
    for side, value in ((inside, 1), (~inside, 0)):
        count, parts = cv2.connectedComponents(side.astype(np.uint8), connectivity=8)
        thick = [p for p in range(1, count) if (parts == p).sum() > 0]
        if count == 2 and not side.all():  # of several, a small one may vanish beside a large one
            assert all((known[parts == p] == value).any() for p in thick)


def test_a_thin_limb_keeps_its_core():
    inside = np.zeros((400, 600), bool)
    inside[100:300, 100:300] = True
    inside[198:203, 300:560] = True  # five pixels thick, where the band is seven wide on each side
    known = trimap(inside)
    assert (known[200, 330:550] == 1).all()
    assert (known[[197, 203], 330:550] == 0.5).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_a_matte_keeps_to_its_mask_or_is_none(seed, height, width):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    soft = cv2.GaussianBlur(rng.random((height, width)), (0, 0), 3)
    mask = soft >= np.quantile(soft, rng.random())
    found = matte(image, mask)
    if found is not None:
        kept = found.alpha >= 128
        assert (kept & mask).sum() >= (LEAST_IOU - 0.02) * (kept | mask).sum()  # 8 bit
        assert found.colours.shape == image.shape


@pytest.mark.parametrize("level", [False, True])
def test_a_mask_without_an_outline_has_no_matte(level):
    image, alpha, _ = composite()
    assert matte(image, np.full(alpha.shape, level)) is None


def test_large_images_are_solved_small_and_keep_their_size_and_colours():
    image, alpha, _ = composite(900, 1500, blur=5)
    found = matte(image, alpha >= 0.5)
    assert found.alpha.shape == alpha.shape
    assert np.abs(found.alpha / 255 - alpha).mean() < 0.01
    sure = found.alpha == 255
    np.testing.assert_array_equal(found.colours[sure], image[sure])


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"mask must be \(4, 5\), got shape \(5, 4\)"):
        matte(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), bool))


def test_nothing_imports_the_compiler_unless_it_is_wanted():
    text = (
        "import sys, saff.cli, saff.cli.pictures, saff.matting, saff.inference, saff.labeling;"
        "print(*sorted({'numba', 'llvmlite', 'pymatting'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymatting", None)
    with pytest.raises(SettingsError, match=r"needs the package pymatting .*'saff\[matting\]'"):
        load_pymatting()


# Commands


def stored(tmp_path):
    """A run of two images: one with an outline, one whose mask is empty."""
    image, alpha, _ = composite()
    rows = [
        labelled(tmp_path, name, np.rint(255 * a).astype(np.uint8), encode_png(image))
        for name, a in (("disc.png", alpha), ("empty.png", alpha / 3))
    ]
    return a_run(tmp_path, rows), image, alpha


def test_export_gives_soft_edges_and_counts_those_it_leaves(tmp_path):
    output, image, alpha = stored(tmp_path)
    to = Folder.at(str(tmp_path / "to"))
    summary = export_pictures(output, to, "cutout", matting=True)
    assert [*summary.lines("to")] == [
        "1 of the cut-outs without a matte, which would be empty or harm: alpha is the confidence",
        "2 files in to; 0 images left out",
    ]
    soft = np.asarray(PIL.Image.open(tmp_path / "to" / "disc.png"))
    expected = matte(image, np.rint(255 * alpha) >= 128)
    np.testing.assert_array_equal(soft, np.dstack([expected.colours, expected.alpha]))
    plain = np.asarray(PIL.Image.open(tmp_path / "to" / "empty.png"))
    np.testing.assert_array_equal(plain[..., :3], image)
    np.testing.assert_array_equal(plain[..., 3], np.rint(255 * alpha / 3))


def test_matting_is_for_cutouts_alone(call, tmp_path):
    output, _, _ = stored(tmp_path)
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(composite()[0]))
    for words in (
        ("export", output.path, "--to", tmp_path / "to", "--matting"),
        ("segment", photo, "-o", tmp_path / "out.png", "--matting"),
    ):
        code, _, error = call(*words)
        assert code == 2
        assert "use it with --what cutout" in error
    assert not (tmp_path / "to").exists()


def test_segment_says_where_it_leaves_the_edges(call, tmp_path):
    wall, to = tmp_path / "wall.png", tmp_path / "out.png"
    wall.write_bytes(encode_png(np.full((60, 80, 3), 180, np.uint8)))
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_png(composite()[0]))
    words = ("-o", to, "--what", "cutout", "--matting")
    assert call("segment", photo, *words) == (0, "", "")
    assert len(np.unique(np.asarray(PIL.Image.open(to))[..., 3])) > 10
    code, _, error = call("segment", photo, *words, "--threshold", "0")  # the whole picture
    said = "without a matte, which would be empty or harm: alpha is the confidence"
    assert (code, error) == (0, f"{photo}: {said}\n")
    assert call("segment", wall, *words)[2] == f"{wall}: no foreground found; the mask is empty\n"
