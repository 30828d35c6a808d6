"""Weight files: read from a path or URI, checked, loaded without running anything they hold."""

import hashlib
import io
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from saff.addresses import locate, redact
from saff.errors import SettingsError, WeightsError
from saff.storage import with_retries


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
        fs, path = locate(source)
    except (
        SettingsError
    ) as error:  # a login, say, which run.json would keep; not repeated in this message
        raise WeightsError(f"cannot read the weights {redact(source)}: {error}") from error
    try:
        data: bytes = with_retries(fs, fs.cat_file, path)
    except Exception as error:  # every kind of storage raises its own
        raise WeightsError(f"cannot read the weights {source}: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 and not found.startswith(sha256):
        raise WeightsError(f"{source} has SHA-256 {found}, expected {sha256}; fetch it again")
    return WeightsFile(source, found, data)


def open_hub(name: str, url: str, setting: str) -> WeightsFile:
    """Read published weights from torch's hub cache, downloaded if the cache lacks them.

    Parameters
    ----------
    name : str
        Name of the network, for messages.
    url : str
        Where they are published; the file's name ends in the first characters of its SHA-256.
    setting : str
        Field of the configuration that names a file instead, for messages.

    Returns
    -------
    file : WeightsFile
        Checked against the checksum in its name.

    Raises
    ------
    WeightsError
        If the cache lacks them and they cannot be downloaded, or the checksum is another.
    """
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    digest = os.path.basename(url).rsplit("-", 1)[-1].split(".")[0]
    if not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=digest, progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"the weights of {name} are not at {path} and cannot be downloaded ({error}); "
                f"put the file there, or name one with {setting} in the configuration"
            ) from error
    return open_weights(path, digest)


def read_state(file: WeightsFile) -> dict[str, Tensor]:
    """Read a state dict, ``weights_only``: nothing that the file holds is run.

    Raises
    ------
    WeightsError
        If the file is no state dict.
    """
    try:
        state = torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds, and advises to trust the file
        raise WeightsError(
            f"{file.source} is not a state dict as torch.save writes it: damaged, or holding other "
            "objects than tensors (none was run)"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise WeightsError(
            f"{file.source} is not a state dict, names to tensors; save network.state_dict() alone"
        )
    return state


def load_state(
    network: nn.Module,
    file: WeightsFile,
    *,
    drop: tuple[str, ...] = (),
    rename: Callable[[str], str] = str,
) -> None:
    """Load a state dict into a network, ``weights_only``, every name accounted for.

    Parameters
    ----------
    network : torch.nn.Module
        Receives the parameters.
    file : WeightsFile
        A state dict as ``torch.save`` writes it.
    drop : tuple of str
        Prefixes of entries to leave out, such as auxiliary classifiers.
    rename : callable
        From an entry's name to the network's; most need none.

    Raises
    ------
    WeightsError
        If the file is no state dict or belongs to another network.
    """
    state = read_state(file)
    for name in list(state):  # in place: the dict also carries the version of each layer
        value = state.pop(name)
        if not name.startswith(drop):
            state[rename(name)] = value
    try:
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        first, *details = str(error).splitlines()
        reason = (details or [first])[0].strip()[:200]
        raise WeightsError(
            f"{file.source} does not hold the weights of {type(network).__name__}: {reason}"
        ) from error
