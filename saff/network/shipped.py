"""The network that comes with saff: trained by this project without any mask; see its model card.

``saff segment`` uses it without a training of one's own, and ``saff train`` starts from it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saff.arrays import AnyArray
from saff.errors import SettingsError, WeightsError
from saff.modelfile import Model, pack, read_model, shipped
from saff.network import UNETS
from saff.network.unet import LiteUNet, fuse_network, lite_unet
from saff.threads import single_thread

KIND = "saff network 1"


class ShippedNetwork(NamedTuple):
    """The network that comes with saff, ready to predict."""

    network: LiteUNet
    """In evaluation mode, on the CPU."""
    digest: str
    """SHA-256 of its weights."""


def load_shipped() -> ShippedNetwork:
    """Load the network that comes with saff, for inference.

    Raises
    ------
    WeightsError
        If its file is missing or damaged.
    """
    model = read_model(shipped("network"), KIND)
    with single_thread():  # more threads wait for each other longer than they work
        with torch.device("meta"):  # without random numbers that nothing would read
            network = lite_unet(architecture(model), 2, pretrained=False, weights=None)
        network.load_state_dict(to_state(model), assign=True)
        network.eval()
        fuse_network(network)
    return ShippedNetwork(network, model.digest)


def start_from_shipped(name: str) -> LiteUNet:
    """Make the network of a training that goes on from the one that comes with saff.

    Raises
    ------
    SettingsError
        If the network of that name has another architecture.
    """
    model = read_model(shipped("network"), KIND)
    if name != architecture(model):
        raise SettingsError(
            f"the network that comes with saff is {architecture(model)!r} and cannot be the start "
            f"of {name!r}; set training.network_weights to null to start from ImageNet"
        )
    network = lite_unet(name, 2, pretrained=False, weights=None)
    network.load_state_dict(to_state(model))
    return network


def architecture(model: Model) -> str:
    """Name of the network that a model file holds the weights of."""
    name = model.notes.get("network", "")
    if name not in UNETS:
        raise WeightsError(f"{model.source} holds the unknown network {name!r}; install saff again")
    return name


def to_state(model: Model) -> dict[str, Tensor]:
    """State dict of a model file: 16-bit floats become 32-bit ones."""
    return {
        name: torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else value)
        for name, value in model.arrays.items()
    }


def to_file(network: str, state: dict[str, Tensor], notes: dict[str, str]) -> bytes:
    """Write a model file of a network's weights, floats in 16 bit.

    Parameters
    ----------
    network : str
        Name of its architecture.
    state : dict of str to tensor
        Its state dict.
    notes : dict of str to str
        What else the file says: images, seeds, figures.
    """
    arrays: dict[str, AnyArray] = {
        name: (value.half() if value.is_floating_point() else value).contiguous().numpy()
        for name, value in state.items()
    }
    return pack(KIND, arrays, {**notes, "network": network})
