"""Draw docs/images/outlines.png: six photographs, and their masks as they were and as they are.

python docs/images/make_outlines.py
"""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

from saff import config
from saff.fused_prediction import models_beside, predict_fused
from saff.labeling import label_image
from saff.network.shipped import load_shipped

NAMES = ("chelsea", "astronaut", "coffee", "rocket", "motorcycle", "camera")
SIDE, HEIGHT, GAP = 640, 150, 6  # pixels
DIM = 0.3  # what is left of the background


def photograph(name: str) -> np.ndarray:
    """One of scikit-image's pictures, RGB."""
    pixels = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)
    scale = min(1.0, SIDE / max(pixels.shape))
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def masks(image: np.ndarray) -> list[np.ndarray]:
    """Masks of a label from superpixels alone, of today's label and of today's prediction."""
    today = config.default()
    alone = dataclasses.replace(today, network_share=0.0, outline="none")
    predicted = predict_fused(load_shipped().network, [image], today, models_beside(today))
    labels = [label_image(image, settings).confidence for settings in (alone, today)]
    return [confidence >= 0.5 for confidence in (*labels, predicted[0].confidence)]


def drawn(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The foreground as it is, the rest dim, a line between them."""
    picture = np.where(mask[..., None], image, DIM * image).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, (255, 60, 60), 2)
    return picture


def main(to: Path) -> None:
    """Draw one column per photograph."""
    columns = []
    for name in NAMES:
        image = photograph(name)
        cells = [image, *(drawn(image, mask) for mask in masks(image))]
        width = round(HEIGHT * image.shape[1] / image.shape[0])
        small = [cv2.resize(cell, (width, HEIGHT), interpolation=cv2.INTER_AREA) for cell in cells]
        columns.append(
            np.vstack([np.pad(s, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for s in small])
        )
    sheet = Image.fromarray(np.hstack(columns)[:-GAP, :-GAP])
    palette = sheet.quantize(256)
    sheet.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(to, optimize=True)
    print(f"{to}: {sheet.width} x {sheet.height} pixels, {to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(__file__).with_name("outlines.png"))
