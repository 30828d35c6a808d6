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
from saff.averaging import weighted_mean
from saff.config import Config
from saff.inference import predict_many, refine, to_working_size
from saff.labeling import Models, label_image, load_models
from saff.network import Network
from saff.quality import foreground_found, to_levels
from saff.resize import Size, resize
from saff.threads import single_thread


class FusedPrediction(NamedTuple):
    """What a network and the image by itself say."""

    confidence: PixelMap
    """float32 (H, W), in [0, 1]."""
    found: bool
    """Whether the network, which knows other images, sees any foreground."""


def labelling_beside(config: Config) -> Config:
    """Settings of the pseudo labels beside a network: without another network or outlines."""
    return dataclasses.replace(config, network_share=0.0, zoom_share=0.0, outline="none")


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

    The outline is refined last, as ``config.inference.refinement`` says.

    Parameters
    ----------
    network, images, device, sizes
        As for :func:`saff.inference.predict_many`.
    config : Config
        ``inference`` is how the network predicts, its ``pseudo_label_share`` the weight of the
        pseudo label; the others are the settings of the pseudo label, but for its outline.
    models : Models or None
        As :func:`models_beside` gives them; None: the network alone.

    Returns
    -------
    predictions : list of FusedPrediction
        One per image.
    """
    how, beside = config.inference, labelling_beside(config)
    sizes = sizes or [(image.shape[0], image.shape[1]) for image in images]
    small = [to_working_size(image) for image in images]
    maps = predict_many(network, small, dataclasses.replace(how, refinement="none"), device)
    fused = []
    for image, alone, size in zip(small, maps, sizes, strict=True):
        found = foreground_found(to_levels(alone), how.foreground_found_above)
        confidence = alone
        if models is not None:
            label = label_image(image, beside, models).confidence
            confidence = weighted_mean(label, alone, 1 - how.pseudo_label_share)
        with single_thread():
            refined = resize(refine(how.refinement, confidence, image), size)
        fused.append(FusedPrediction(np.clip(refined, 0.0, 1.0), found))
    return fused
