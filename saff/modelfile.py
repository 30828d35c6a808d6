"""Model files: the arrays of a trained model, read without running anything they hold.

The format is safetensors, with what the file is and a checksum of its arrays in its metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from saff.checkpoints import open_weights
from saff.errors import WeightsError

Arrays = Mapping[str, NDArray[Any]]


class Model(NamedTuple):
    """A trained model.

    Attributes
    ----------
    source : str
        The file it was read from, for messages.
    arrays : dict of str to array
        Its parameters.
    notes : dict of str to str
        What else the file says: data, figures.
    digest : str
        SHA-256 of the arrays, in hexadecimal.
    """

    source: str
    arrays: dict[str, NDArray[Any]]
    notes: dict[str, str]
    digest: str


def shipped(name: str) -> str:
    """Path of a model that comes with the package; its card is beside it."""
    return str(files("saff") / "weights" / f"{name}.safetensors")


def pack(kind: str, arrays: Arrays, notes: Mapping[str, str] | None = None) -> bytes:
    """Write a model file.

    Parameters
    ----------
    kind : str
        What reads it, and the version of its layout: ``"saff edges 1"``.
    arrays : mapping of str to array
        Numbers of fixed-size types.
    notes : mapping of str to str, optional
        More to say about it.
    """
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    about = {"kind": kind, "sha256": digest_of(ordered), "notes": dict(notes or {})}
    # One entry: the library writes several in an order that changes from call to call.
    return bytes(save(ordered, {"saff": json.dumps(about, sort_keys=True)}))


def read_model(source: str, kind: str) -> Model:
    """Read a model file, a path or URI, and check it; see :func:`parse`."""
    return parse(open_weights(source).data, source, kind)


def parse(data: bytes, source: str, kind: str) -> Model:
    """Take a model from the bytes of its file.

    Parameters
    ----------
    data : bytes
        As :func:`pack` makes them.
    source : str
        Where they come from, for messages.
    kind : str
        What it has to be.

    Raises
    ------
    WeightsError
        If it is damaged, of another kind or version, or not what its checksum says.
    """
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type NumPy has not
        raise WeightsError(
            f"{source} is damaged or no model file ({error}); fetch it again, or fit a new one"
        ) from error
    # The library has checked the header: its length in 8 bytes, then JSON.
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    try:
        about = dict(json.loads(metadata.get("saff", "{}")))
    except (ValueError, TypeError, RecursionError):
        about = {}
    found = about.get("kind", "no model of saff")
    if found != kind:
        raise WeightsError(
            f"{source} holds {found!r}, expected {kind!r}: it is another model, or one of another "
            "version of saff; fit it again"
        )
    digest = digest_of(arrays)
    if about.get("sha256") != digest:
        raise WeightsError(f"{source} is not what its checksum says: changed or damaged")
    return Model(source, arrays, about.get("notes", {}), digest)


def digest_of(arrays: Arrays) -> str:
    """SHA-256 of arrays with their names, types and shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
