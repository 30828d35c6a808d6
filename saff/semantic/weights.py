"""Weight files: read from a path or URI, checked, loaded without running anything they hold."""

import hashlib
import io
from typing import NamedTuple

import fsspec
import torch
from torch import nn

from saff.errors import WeightsError


class WeightsFile(NamedTuple):
    """The bytes of a weights file."""

    source: str
    sha256: str
    data: bytes


def open_weights(source: str, sha256: str | None = None) -> WeightsFile:
    """Read a weights file and check it.

    Parameters
    ----------
    source : str
        Path or URI (``s3://`` and whatever else fsspec knows).
    sha256 : str, optional
        Expected SHA-256, or its first characters, in hexadecimal.

    Returns
    -------
    file : WeightsFile
        Source, SHA-256 and content.

    Raises
    ------
    WeightsError
        If it cannot be read or its checksum is another.
    """
    try:
        with fsspec.open(source, "rb") as file:
            data: bytes = file.read()
    except (OSError, ValueError, ImportError) as error:
        raise WeightsError(f"cannot read the weights {source}: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 and not found.startswith(sha256):
        raise WeightsError(f"{source} has SHA-256 {found}, expected {sha256}; fetch it again")
    return WeightsFile(source, found, data)


def load_state(network: nn.Module, file: WeightsFile, drop: tuple[str, ...] = ()) -> None:
    """Load a state dict into a network, ``weights_only``, every name accounted for.

    Parameters
    ----------
    network : torch.nn.Module
        Receives the parameters.
    file : WeightsFile
        A state dict as ``torch.save`` writes it.
    drop : tuple of str
        Prefixes of entries to leave out, such as auxiliary classifiers.

    Raises
    ------
    WeightsError
        If the file is no state dict or belongs to another network.
    """
    try:
        state = torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=True)
        network.load_state_dict({k: v for k, v in state.items() if not k.startswith(drop)})
    except Exception as error:  # torch raises a dozen kinds on damaged files
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no reason"
        raise WeightsError(
            f"{file.source} does not hold the weights of {type(network).__name__}: {reason}"
        ) from error
