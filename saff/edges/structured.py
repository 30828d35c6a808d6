"""Structured forests, the edges of the paper, with a model file of the user's own.

References
----------
Dollar and Zitnick, Structured forests for fast edge detection, ICCV 2013.  Their trained model is
for non-commercial use, and not part of any package.
"""

import hashlib
import os

import cv2
import numpy as np

from saff.arrays import Image, PixelMap
from saff.errors import WeightsError


class StructuredEdges:
    """OpenCV's structured forest.

    Parameters
    ----------
    path : str
        Model file as OpenCV reads it (``.yml`` or ``.yml.gz``); local.

    Raises
    ------
    WeightsError
        If it is missing or no such model.
    """

    def __init__(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                self.digest = hashlib.sha256(file.read()).hexdigest()
        except OSError as error:
            raise WeightsError(f"cannot read the edge model {path}: {error.strerror}") from error
        try:
            self.forest = cv2.ximgproc.createStructuredEdgeDetection(os.fspath(path))
        except (cv2.error, UnicodeDecodeError) as error:
            raise WeightsError(f"{path} is no structured forest that OpenCV can read") from error

    def __call__(self, image: Image) -> PixelMap:
        """Edge strength: uint8 (H, W, 3) RGB to float32 (H, W) in [0, 1]."""
        strength = self.forest.detectEdges(image.astype(np.float32) / 255)
        clipped: PixelMap = np.clip(strength, 0.0, 1.0).astype(np.float32)
        return clipped
