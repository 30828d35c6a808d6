"""Predict with a network and with what the image says by itself: the mean of both.

A network knows what the images of a corpus have in common, a pseudo label what stands out in one
image.  They err in different places, so that their mean is better than either.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from saff.arrays import Image, PixelMap
from saff.config import Config
from saff.inference import predict_many
from saff.labeling import Models, label_image, load_models
from saff.network import Network
from saff.quality import foreground_found, sharpen, to_levels
from saff.resize import Size, resize


class FusedPrediction(NamedTuple):
    """What a network and the image by itself say."""

    confidence: PixelMap
    """float32 (H, W), in [0, 1]."""
    found: bool
    """Whether the network, which knows other images, sees any foreground."""


def labelling_beside(config: Config) -> Config:
    """Settings of the pseudo labels beside a network: without another network in them."""
    return dataclasses.replace(config, network_share=0.0)


def models_beside(config: Config) -> Models | None:
    """Models of these pseudo labels; None where the network predicts alone."""
    return load_models(labelling_beside(config)) if config.inference.pseudo_label_share else None


def predict_fused(
    network: Network,
    images: Sequence[Image],
    config: Config,
    models: Models | None,
    device: torch.device | str = "cpu",
    sizes: Sequence[Size] | None = None,
) -> list[FusedPrediction]:
    """Foreground confidence of several images: a network's, averaged with that of pseudo labels.

    Parameters
    ----------
    network, images, device, sizes
        As for :func:`saff.inference.predict_many`.
    config : Config
        ``inference`` is how the network predicts, its ``pseudo_label_share`` the weight of the
        pseudo label; the others are the settings of the pseudo label.
    models : Models or None
        As :func:`models_beside` gives them; None: the network alone.

    Returns
    -------
    predictions : list of FusedPrediction
        One per image.
    """
    peak_above = config.inference.foreground_found_above

    def found(alone: PixelMap) -> bool:
        return foreground_found(to_levels(alone), peak_above)

    if models is None:
        maps = predict_many(network, images, config.inference, device, sizes)
        return [FusedPrediction(alone, found(alone)) for alone in maps]
    share = np.float32(config.inference.pseudo_label_share)
    beside = labelling_beside(config)
    maps = predict_many(network, images, config.inference, device)
    sizes = sizes or [(image.shape[0], image.shape[1]) for image in images]
    fused = []
    for image, alone, size in zip(images, maps, sizes, strict=True):
        label = label_image(image, beside, models).confidence
        mean = np.clip(resize((1 - share) * alone + share * label, size), 0.0, 1.0)
        fused.append(FusedPrediction(sharpen(mean), found(alone)))
    return fused
