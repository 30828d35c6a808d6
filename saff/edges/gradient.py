"""Colour gradient: the plainest edge map."""

import cv2
import numpy as np

from saff.arrays import Image, PixelMap

BLUR_SIGMA = 1.0  # pixels
FULL_STRENGTH = 50.0  # Lab units per pixel: half the way from black to white, counted as 1


class Gradient:
    """Sobel gradient of the smoothed Lab image, its length over the three channels.

    The unit is absolute (Lab units per pixel over 50), so a faint image has faint edges and E of
    Eq. 2 means the same on every image.
    """

    def __call__(self, image: Image) -> PixelMap:
        """Edge strength: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        smooth = cv2.GaussianBlur(lab, (0, 0), BLUR_SIGMA)
        across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
        down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
        light, a, b = cv2.split(across * across + down * down)
        clipped: PixelMap = np.minimum(np.sqrt(light + a + b) / FULL_STRENGTH, 1.0)
        return clipped
