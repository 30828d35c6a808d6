"""Cut-outs with soft edges: alpha by closed-form matting, colours without the background's share.

The alpha is that of Levin, Lischinski and Weiss (PAMI 2008) in a narrow band around the mask's
outline, the colours in the band are estimated by Germer et al. (ICPR 2020); both by the package
``pymatting``, which is an extra of saff and imported when it is first used: it brings a compiler.
"""

from typing import NamedTuple

import cv2
import numpy as np

from saff.arrays import AnyArray, Image, Mask
from saff.errors import SettingsError
from saff.quality import mask_iou, to_levels
from saff.resize import resize, shrink

SIDE = 1024  # longer images are shrunk to it; their colours stay but for the band
BAND = 0.012  # of the longer side: how far from the outline alpha may be soft
CORE = 0.6  # of the local half-width: what of a thin part stays sure
LEAST_IOU = 0.8  # of the mask and of alpha at one half, below which the matte is refused
TOLERANCE = 1e-4  # relative residual of the linear system at which alpha is good enough
UNKNOWN = 0.5  # in a trimap; 0 is background and 1 foreground


class Matte(NamedTuple):
    """Soft foreground of an image.

    Attributes
    ----------
    alpha : uint8 array of shape (H, W)
        Share of the foreground in each pixel, 0..255.
    colours : uint8 array of shape (H, W, 3)
        RGB of the foreground; the image's own but where alpha is soft.
    """

    alpha: AnyArray
    colours: Image


def load_pymatting() -> None:
    """Import what :func:`matte` needs: the first time after an installation, that compiles it.

    Raises
    ------
    SettingsError
        If the package is missing, or cannot keep what it compiles.
    """
    try:
        import pymatting  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"--matting needs the package pymatting ({error}): pip install 'saff[matting]'"
        ) from error
    except RuntimeError as error:  # numba: no locator available
        raise SettingsError(
            f"pymatting cannot keep what it compiles ({error}); name a folder that can be written "
            "in NUMBA_CACHE_DIR"
        ) from error


def matte(image: Image, mask: Mask) -> Matte | None:
    """Soften the outline of a mask to what the image shows, hair and blur included.

    Parameters
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB.
    mask : bool array of shape (H, W)
        Foreground.

    Returns
    -------
    matte : Matte or None
        None where there is nothing to soften or it would do harm: the mask is empty or whole,
        nothing sure is left on one of its sides, the equations have no solution, or alpha at one
        half and the mask have an IoU below 0.8.

    Raises
    ------
    ValueError
        If the mask has another size than the image.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask must be {image.shape[:2]}, got shape {mask.shape}")
    small = shrink(image, SIDE)
    size = (small.shape[0], small.shape[1])
    inside = resize(mask.astype(np.float32), size) >= 0.5
    known = trimap(inside)
    if not all((known == value).any() for value in (0.0, UNKNOWN, 1.0)):
        return None
    pixels = small / 255.0
    alpha = _solve(pixels, known)
    if alpha is None or mask_iou(alpha >= 0.5, inside) < LEAST_IOU:
        return None
    from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

    foreground = np.asarray(estimate_foreground_ml(pixels, alpha), np.float32)
    whole = (image.shape[0], image.shape[1])
    soft = np.clip(resize(alpha.astype(np.float32), whole), 0.0, 1.0)
    colours = to_levels(np.clip(resize(foreground, whole), 0.0, 1.0))
    levels = to_levels(soft)
    sure = (levels == 255) | (levels == 0)
    return Matte(levels, np.where(sure[..., None], image, colours))


def trimap(inside: AnyArray) -> AnyArray:
    """Mark what is sure on both sides of an outline; thin parts keep their core.

    Parameters
    ----------
    inside : bool array of shape (H, W)
        Mask.

    Returns
    -------
    known : float64 array of shape (H, W)
        1 foreground, 0 background, 0.5 unknown: nearer to the outline than 1.2 % of the longer
        side, and than .6 of what is the most in its surroundings.
    """
    reach = max(1.5, BAND * max(inside.shape))
    known = np.full(inside.shape, UNKNOWN)
    for value, side in ((1.0, inside), (0.0, ~inside)):
        depth = cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5)
        width = 2 * int(np.ceil(reach)) + 1
        most = cv2.dilate(depth, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))
        known[side & (depth > np.minimum(reach, CORE * most))] = value
    return known


def _solve(pixels: AnyArray, known: AnyArray) -> AnyArray | None:
    """Alpha in [0, 1] where the trimap leaves it open; None where there is no solution."""
    from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf

    try:
        with np.errstate(divide="ignore", invalid="ignore"):  # where no pixel touches foreground
            alpha: AnyArray = estimate_alpha_cf(pixels, known, cg_kwargs={"rtol": TOLERANCE})
    except ValueError:  # no decomposition, or no convergence
        return None
    return alpha if np.isfinite(alpha).all() else None
